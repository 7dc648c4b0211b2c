import os
import re
import stat
import sys
from types import SimpleNamespace

import pytest

import test_matrix as matrix  # under its own name pytest would take its functions for tests

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """
    A machine without Pythons, and without pyenv's; `make test` passes except where `machine.status`
    names the environment. `machine.made` lists what it was called with.
    """
    machine = SimpleNamespace(root=tmp_path, made=[], status={}, report=REPORT.format(9, 0, 0, 2))

    def make_test(settings, report):
        machine.made.append(settings)
        if machine.report:
            report.parent.mkdir(exist_ok=True)
            report.write_text(machine.report)
        status = machine.status.get(report.stem, 0)
        if status is KeyboardInterrupt:
            raise KeyboardInterrupt
        return status

    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "make_test", make_test)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return machine


def install(path, version, status=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version} {path}\nexit {status}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def summary(capsys):
    return capsys.readouterr().out.partition("\nmake test-matrix:\n")[2].splitlines()


def test_every_python_that_is_there_runs_and_the_oldest_once_more(machine, capsys):
    pythons = [install(machine.root / "bin" / f"python3.{n}", f"3.{n}") for n in (10, 12)]
    assert matrix.main([]) == 0
    assert machine.made == [
        [f"PYTHON={pythons[0]}", "VENV=.venvs/3.10", "ENVIRONMENT="],
        [f"PYTHON={pythons[1]}", "VENV=.venvs/3.12", "ENVIRONMENT="],
        [f"PYTHON={pythons[0]}", "VENV=.venvs/3.10-oldest-torch", "ENVIRONMENT=--oldest-torch"],
    ]
    assert summary(capsys) == [
        "  python3.11: not there, not tested",
        "  Python 3.10, pinned PyTorch: passed in 0 min, 7 tests passed, 2 skipped",
        "  Python 3.12, pinned PyTorch: passed in 0 min, 7 tests passed, 2 skipped",
        "  Python 3.10, oldest PyTorch: passed in 0 min, 7 tests passed, 2 skipped",
    ]


def test_failure_lets_the_others_go_on(machine, capsys):
    for n in (10, 11):
        install(machine.root / "bin" / f"python3.{n}", f"3.{n}")
    machine.status["3.10"] = 2
    machine.report = REPORT.format(9, 1, 2, 0)
    assert matrix.main(["python3.10", "python3.11"]) == 1
    assert len(machine.made) == 3
    first, *others = summary(capsys)
    assert "3.10, pinned" in first and "FAILED in 0 min, 6 tests passed, 1 failures, 2 err" in first
    assert len(others) == 2 and all(": passed in" in line for line in others)


def test_failure_before_the_tests_is_not_told_with_the_last_runs_numbers(machine, capsys):
    install(machine.root / "bin" / "python3.11", "3.11")
    matrix.main(["python3.11"])
    machine.report = None
    machine.status = {"3.11": 2, "3.11-oldest-torch": 2}
    capsys.readouterr()
    assert matrix.main(["python3.11"]) == 1
    assert all(line.endswith("FAILED in 0 min, before the tests") for line in summary(capsys))


def test_interrupted_it_says_what_was_run(machine, capsys):
    for n in (10, 11):
        install(machine.root / "bin" / f"python3.{n}", f"3.{n}")
    machine.status["3.11"] = KeyboardInterrupt
    assert matrix.main([]) == 130
    lines = summary(capsys)
    assert len(machine.made) == 2
    assert "3.10, pinned PyTorch: passed" in lines[1]
    assert lines[2:] == ["  interrupted: the rest has not been run"]


def test_pyenvs_python_is_found_where_its_command_refuses(machine):
    install(machine.root / "bin" / "python3.10", "", status=127)
    python = install(machine.root / "pyenv" / "versions" / "3.10.13" / "bin" / "python3.10", "3.10")
    assert matrix.find("python3.10") == ("3.10", str(python))


def test_without_any_python_it_says_so(machine, capsys):
    assert matrix.main([]) == 1
    assert machine.made == []
    assert capsys.readouterr().out.splitlines() == [
        *(f"[matrix] python3.{n}: not there, not tested" for n in (10, 11, 12)),
        "[matrix] none of these Pythons can be run",
    ]


def test_make_test_gets_its_own_settings_and_writes_a_report(tmp_path, monkeypatch):
    (tmp_path / "Makefile").write_text("test:\n\t@env > environment; echo $(VENV) >> environment\n")
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setenv("MAKEFLAGS", " -- VENV=other")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    report = tmp_path / "a folder" / "report.xml"
    assert matrix.make_test(["VENV=.venvs/x"], report) == 0
    lines = (tmp_path / "environment").read_text().splitlines()
    assert f"PYTEST_ADDOPTS=-x --junitxml='{report}'" in lines
    assert lines[-1] == ".venvs/x"
    assert os.environ["PYTEST_ADDOPTS"] == "-x"
    assert matrix.make_test(["no-such-target"], report) == 2


def test_the_supported_pythons_are_those_of_setup():
    setup = (matrix.ROOT / "setup.py").read_text()
    versions = re.findall(r'Python :: (3\.\d+)"', setup)
    assert matrix.PYTHONS == tuple(f"python{version}" for version in versions)
    assert matrix.find(sys.executable)[0] == f"{sys.version_info[0]}.{sys.version_info[1]}"
