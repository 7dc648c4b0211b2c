import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = runpy.run_path(str(ROOT / "gw_detectron" / "version.py"))["__version__"]
METADATA = f"gw_detectron-{VERSION}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's path; built from a copy, since setuptools leaves its build/ in the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("gw_detectron", "configs", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "--wheel-dir", "dist", "."],
        cwd=copy,
        check=True,
    )
    (path,) = (copy / "dist").glob("*.whl")
    return path


def files(folder):
    paths = (path for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / folder).as_posix() for path in paths if path.is_file()}


def test_the_wheel_has_every_file_of_the_package_and_every_config_inside_it(wheel):
    assert wheel.name == f"gw_detectron-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{METADATA}/")}
    package = {f"gw_detectron/{name}" for name in files("gw_detectron")}
    configs = {f"gw_detectron/model_zoo/configs/{name}" for name in files("configs")}
    assert "gw_detectron/model_zoo/configs/quickstart/mask_rcnn_R_18_FPN_gw.yaml" in configs
    assert names == package | configs


def test_the_wheel_does_not_require_detectron2_which_no_index_has(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{METADATA}/METADATA").decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert required and not any("detectron2" in line for line in required)


def test_the_unpacked_wheel_finds_its_configs_outside_the_checkout(wheel, tmp_path):
    pytest.importorskip("detectron2")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from gw_detectron import model_zoo\n"
        "print(model_zoo.get_config_file('quickstart/mask_rcnn_R_18_FPN_gw.yaml'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(result.stdout.splitlines()[-1]).is_relative_to(tmp_path)
