import hashlib
import subprocess
import sys
import zipfile

import pytest

import install_detectron2

# what another project's wheel would hold: the sub-package renamed, and things of its own
FAKE_SOURCE = {
    "LabGym/__init__.py": b"raise SystemExit('not wanted')\n",
    "LabGym/detectron2/__init__.py": b'# Copyright (c) Facebook\n__version__ = "0.6"\n',
    "LabGym/detectron2/config.py": b"import LabGym.detectron2.x as x\nfrom .x import LabGym\n",
    "LabGym/detectron2/model_zoo/__init__.py": b"",
    "LabGym/detectron2/model_zoo/configs/COCO-Detection/Base.yaml": b"VERSION: 2\n",
    "LabGym/detectron2/model_zoo/configs/common.py": b"a = 1\n",
    "LabGym/detectron2_other.py": b"",
    "labgym-3.1.2.dist-info/METADATA": b"Name: LabGym\n",
}
RESTORED = {
    "detectron2/__init__.py": b'# Copyright (c) Facebook\n__version__ = "0.6"\n',
    "detectron2/config.py": b"import detectron2.x as x\nfrom .x import LabGym\n",
    "detectron2/model_zoo/__init__.py": b"",
    "detectron2/model_zoo/configs/COCO-Detection/Base.yaml": b"VERSION: 2\n",
    "detectron2/model_zoo/configs/common.py": b"a = 1\n",
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """What is downloaded where no Detectron2 is installed; what is installed goes to site/."""
    wheel = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FAKE_SOURCE.items():
            archive.writestr(name, content)
    monkeypatch.setattr(install_detectron2, "describe_installed", lambda: None)
    monkeypatch.setattr(install_detectron2, "download", lambda folder: wheel)
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # 0 means: without isolation
    return wheel


def test_the_subpackage_alone_is_installed_as_it_was_before_the_renaming(
    source, tmp_path, monkeypatch
):
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setattr(install_detectron2, "SOURCE_SHA256", digest)
    assert install_detectron2.install_if_missing() == (
        "installed Detectron2 0.6+e9f7e2ba from labgym==3.1.2, without the compiled operators"
    )
    site = tmp_path / "site"
    files = [path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    contents = {path.relative_to(site).as_posix(): path.read_bytes() for path in files}
    metadata = {name for name in contents if name.startswith("detectron2-0.6+e9f7e2ba.dist-info/")}
    assert {name: contents[name] for name in contents.keys() - metadata} == RESTORED
    (licence,) = (name for name in metadata if name.endswith("licenses/LICENSE"))
    assert b"Apache License" in contents[licence]
    command = [sys.executable, "-m", "pip", "list", f"--path={site}", "--format=freeze"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert listed == "detectron2==0.6+e9f7e2ba\n"


def test_wrong_hash_is_one_line_and_installs_nothing(source, tmp_path):
    with pytest.raises(SystemExit) as end:
        install_detectron2.install_if_missing()
    line = end.value.code
    assert "\n" not in line and "SHA-256" in line and "nothing was installed" in line
    assert hashlib.sha256(source.read_bytes()).hexdigest() in line
    assert not (tmp_path / "site").exists()


def test_installed_detectron2_is_left_alone(tmp_path, monkeypatch):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text('raise SystemExit("imported")\n__version__ = "0.7"\n')
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr(install_detectron2, "pip", lambda *args: pytest.fail("called"))
    line = install_detectron2.install_if_missing()
    assert line == f"Detectron2 0.7 in {package} is installed: left as it is"


def test_folder_named_detectron2_is_no_detectron2(tmp_path, monkeypatch):
    (tmp_path / "detectron2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    assert install_detectron2.describe_installed() is None


def test_no_network_is_one_line_with_a_way_out(monkeypatch):
    monkeypatch.setattr(install_detectron2, "describe_installed", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SystemExit) as end:
        install_detectron2.install_if_missing()
    line = end.value.code
    assert "\n" not in line and "pip download labgym==3.1.2" in line and "check the network" in line
