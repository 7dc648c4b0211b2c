import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import make_environment

pytest.importorskip("detectron2")
nox = pytest.importorskip("nox")

ROOT = make_environment.ROOT
PROJECT = nox.project.load_toml(str(ROOT / "pyproject.toml"))["project"]
PINS = (ROOT / "requirements.txt").read_text().splitlines()


def test_another_python_stops_with_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", SimpleNamespace(major=3, minor=9))
    with pytest.raises(SystemExit, match=r"3\.10, 3\.11, 3\.12 .* is 3\.9; .*PYTHON=python3\.12"):
        make_environment.main(tmp_path / "venv", ROOT / "requirements.txt")
    assert not (tmp_path / "venv").exists()


def test_a_failed_step_says_which_and_what_to_look_at():
    with pytest.raises(SystemExit, match="exit.3.(\n|.)*network"):
        make_environment.run(sys.executable, "-c", "exit(3)")


def test_a_found_detectron2_is_used_with_all_that_is_beside_it(tmp_path, monkeypatch, capsys):
    """The tests' own interpreter has one."""
    commands = []
    run = make_environment.run

    def run_venv_alone(*command):
        if "venv" in command:
            run(*command, "--without-pip")
        else:
            commands.append(" ".join(map(str, command)))

    monkeypatch.setattr(make_environment, "run", run_venv_alone)
    venv, requirements = tmp_path / "venv", tmp_path / "requirements.txt"
    requirements.write_text(
        "# Pins\nnumpy==1\ntorch==1\nPyTest==1\nmissing_tool==3; os_name != ''\n"
    )
    make_environment.main(venv, requirements)
    assert "is used as it is" in capsys.readouterr().out

    code = (
        "from importlib.util import find_spec\n"
        "print([find_spec(name).origin for name in ('detectron2', 'torch')])"
    )
    seen, seen_here = (
        subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
        for python in (venv / "bin" / "python", sys.executable)
    )
    assert seen == seen_here
    pip, package = commands
    assert pip.endswith("pip setuptools") and package.endswith("[development]")
    (constraints,) = re.findall("--constraint (.*?) ", package)
    assert set(Path(constraints).read_text().splitlines()) == {
        "# Pins",
        "missing_tool==3; os_name != ''",
        f"numpy=={importlib.metadata.version('numpy')}",
        f"torch=={importlib.metadata.version('torch')}",
    }


def test_make_makes_it_anew_when_its_files_or_the_interpreter_change(tmp_path):
    files = ("Makefile", "requirements.txt", "pyproject.toml", "tools/install_detectron2.py")
    for name in (*files, "tools/make_environment.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1000, 1000))
    of_outer_make = {"MAKEFLAGS", "MAKEOVERRIDES", "PYTHON", "VENV", "REQUIREMENTS"}
    variables = {key: os.environ[key] for key in os.environ.keys() - of_outer_make}

    def is_ready(*settings):
        command = ["make", "--question", "environment", *settings]
        return subprocess.run(command, cwd=tmp_path, env=variables).returncode == 0

    assert not is_ready()
    ready = tmp_path / ".venv" / ".ready"
    ready.parent.mkdir()
    ready.write_text("python3\n")
    assert is_ready() and is_ready("PYTHON=python3") and is_ready("PYTHON=.venv/bin/python")
    assert not is_ready("PYTHON=python3.12") and not is_ready("VENV=other")
    for name in files[1:]:
        os.utime(tmp_path / name)
        os.utime(ready, (2000, 2000))
        assert not is_ready()
        os.utime(tmp_path / name, (1000, 1000))
        assert is_ready()


def test_whatever_the_package_asks_for_is_pinned():
    asked = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    pinned = {make_environment.normal(line) for line in PINS}
    assert {make_environment.normal(name) for name in asked} <= pinned


def test_the_oldest_pytorch_is_the_oldest_that_the_package_accepts(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = runpy.run_path("noxfile.py")["oldest_requirements"]()
    changed = dict(line.split("==") for line in lines if line not in PINS and "==" in line)
    assert changed.keys() == {"sympy", "torch", "torchvision"}
    assert f"torch>={changed['torch'].removesuffix('.0')}" in PROJECT["dependencies"]
    assert len([line for line in lines if line.startswith("torch==")]) == 1


def test_the_readme_names_the_supported_pythons():
    first, *_, last = nox.project.python_versions({"project": PROJECT})
    assert f"Python {first} to {last} " in (ROOT / "README.md").read_text()
    assert PROJECT["requires-python"] == f">={first}"
