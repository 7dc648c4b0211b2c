import base64
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
    "LabGym/detectron2/model_zoo/configs/Base.yaml": b"VERSION: 2\n",
    "LabGym/detectron2_other.py": b"",
    "labgym-3.1.2.dist-info/METADATA": b"Name: LabGym\n",
}
RESTORED = {
    "detectron2/__init__.py": b'# Copyright (c) Facebook\n__version__ = "0.6"\n',
    "detectron2/config.py": b"import detectron2.x as x\nfrom .x import LabGym\n",
    "detectron2/model_zoo/configs/Base.yaml": b"VERSION: 2\n",
}


@pytest.fixture
def source(tmp_path):
    wheel = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FAKE_SOURCE.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def no_detectron2(monkeypatch):
    monkeypatch.setattr(install_detectron2, "describe_installed", lambda: None)


def test_restored_files_are_the_subpackage_alone_without_the_prefix(source):
    assert install_detectron2.restore(source) == RESTORED


def test_wheel_records_every_file_with_its_hash_and_size(tmp_path):
    wheel = install_detectron2.build_wheel(RESTORED, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (record,) = (name for name in contents if name.endswith("/RECORD"))
    rows = dict(line.split(",", 1) for line in contents[record].decode().splitlines())
    assert rows.pop(record) == ","
    assert rows.keys() == contents.keys() - {record} and RESTORED.keys() < rows.keys()
    for name, row in rows.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).decode()
        assert row == f"sha256={digest.rstrip('=')},{len(contents[name])}"


def test_installed_wheel_is_known_to_pip_and_carries_the_licence(tmp_path):
    wheel = install_detectron2.build_wheel(RESTORED, tmp_path)
    site = tmp_path / "site"
    run_pip("install", "--no-deps", "--no-index", f"--target={site}", str(wheel))
    assert (site / "detectron2" / "config.py").read_bytes() == RESTORED["detectron2/config.py"]
    listed = run_pip("list", f"--path={site}", "--format=freeze").split()
    assert listed == ["detectron2==0.6+e9f7e2ba"]
    (licence,) = site.glob("detectron2-*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text()
    (metadata,) = site.glob("detectron2-*.dist-info/METADATA")
    assert "License: Apache-2.0\n" in metadata.read_text()


def test_wrong_hash_is_one_line_and_installs_nothing(no_detectron2, source, monkeypatch, capsys):
    monkeypatch.setattr(install_detectron2, "download", lambda directory: source)
    monkeypatch.setattr(install_detectron2, "pip", lambda *args, **kwargs: pytest.fail("called"))
    assert install_detectron2.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and "SHA-256" in err and "nothing was installed" in err
    assert hashlib.sha256(source.read_bytes()).hexdigest() in err


def test_right_hash_installs_the_restored_package(no_detectron2, source, monkeypatch, capsys):
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    commands = []
    monkeypatch.setattr(install_detectron2, "SOURCE_SHA256", digest)
    monkeypatch.setattr(install_detectron2, "download", lambda directory: source)
    monkeypatch.setattr(install_detectron2, "pip", lambda *args, **kwargs: commands.append(args))
    assert install_detectron2.main([]) == 0
    (command,) = commands
    assert command[0] == "install" and "--no-deps" in command
    assert capsys.readouterr().out == (
        "installed Detectron2 0.6+e9f7e2ba from labgym==3.1.2 (SHA-256 verified): 3 files, "
        "without the compiled operators\n"
    )


def test_installed_detectron2_is_left_alone(tmp_path, monkeypatch, capsys):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text('raise SystemExit("imported")\n__version__ = "0.7"\n')
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr(install_detectron2, "pip", lambda *args, **kwargs: pytest.fail("called"))
    assert install_detectron2.main([]) == 0
    out = capsys.readouterr().out
    assert out == f"Detectron2 0.7 in {package} is installed: left as it is\n"


def test_folder_named_detectron2_is_no_detectron2(tmp_path, monkeypatch):
    (tmp_path / "detectron2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    assert install_detectron2.describe_installed() is None


def test_no_network_is_one_line_with_a_way_out(no_detectron2, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert install_detectron2.main([]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "could not download labgym==3.1.2" in err and "check the network" in err


def run_pip(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments], check=True, capture_output=True, text=True
    ).stdout
