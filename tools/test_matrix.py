#!/usr/bin/env python3
"""
Run `make test` on every Python that the project supports and this machine has, and once with the
oldest PyTorch that setup.py accepts; each in an environment of its own, kept in .venvs/.

`make test-matrix` calls it. A Python is looked for on the PATH and among pyenv's. A run that fails
does not stop the others; the summary at the end has a line for each, and for each Python that
isn't there. The exit status is 1 if a run failed or there was none.
"""

from __future__ import annotations

import argparse
import glob
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ".venvs"
PYTHONS = ("python3.10", "python3.11", "python3.12")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pythons", nargs="*", default=PYTHONS, help=f"commands (default: {' '.join(PYTHONS)})"
    )
    commands = parser.parse_args(argv).pythons
    found = {command: find(command) for command in commands}
    summary = [f"{command}: not there, not tested" for command in commands if not found[command]]
    pythons = dict(sorted(filter(None, found.values()), key=lambda item: as_numbers(item[0])))
    for line in summary:
        say(line)
    if not pythons:
        say("none of these Pythons can be run")
        return 1
    runs = [(version, python, False) for version, python in pythons.items()]
    runs.append((*next(iter(pythons.items())), True))
    status = 0
    try:
        for version, python, oldest_torch in runs:
            passed, line = run(version, python, oldest_torch)
            summary.append(line)
            say(line)
            if not passed:
                status = 1
    except KeyboardInterrupt:
        summary.append("interrupted: the rest has not been run")
        status = 130
    print("\nmake test-matrix:", *(f"  {line}" for line in summary), sep="\n", flush=True)
    return status


def find(command: str) -> tuple[str, str] | None:
    """
    The version ("3.11") and the interpreter itself; None where there is none. pyenv's command of
    that name refuses to run for a version that is not selected, so its folders come after it.
    """
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for python in (command, *sorted(glob.glob(f"{pyenv}/versions/*/bin/{command}"), reverse=True)):
        try:
            result = subprocess.run([python, "-c", code], capture_output=True, text=True)
        except OSError:
            continue
        if result.returncode == 0:
            version, _, executable = result.stdout.strip().partition(" ")
            return version, executable
    return None


def as_numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def run(version: str, python: str, oldest_torch: bool) -> tuple[bool, str]:
    """Whether the checks pass, and a line that says so."""
    name = f"{version}-oldest-torch" if oldest_torch else version
    title = f"Python {version}, {'oldest' if oldest_torch else 'pinned'} PyTorch"
    report = ROOT / ENVIRONMENTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    settings = [f"PYTHON={python}", f"VENV={ENVIRONMENTS}/{name}"]
    settings += [f"ENVIRONMENT={'--oldest-torch' if oldest_torch else ''}"]
    say(title)
    began = time.monotonic()
    status = make_test(settings, report)
    minutes = (time.monotonic() - began) / 60
    outcome = "passed" if status == 0 else "FAILED"
    return status == 0, f"{title}: {outcome} in {minutes:.0f} min, {describe(report)}"


def make_test(settings: list[str], report: Path) -> int:
    """The status of `make test`, which leaves pytest's results in `report`."""
    # what the outer make was told is not meant for this one
    variables = {key: os.environ[key] for key in os.environ.keys() - {"MAKEFLAGS", "MAKELEVEL"}}
    options = f"--junitxml={shlex.quote(str(report))}"
    variables["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} {options}".strip()
    with subprocess.Popen(["make", "test", *settings], cwd=ROOT, env=variables) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too, and ends by itself
            raise


def describe(report: Path) -> str:
    """ "1830 tests passed, 2 skipped"; the checks before the tests leave no report."""
    try:
        suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    except (OSError, xml.etree.ElementTree.ParseError):
        return "before the tests"
    counts = {key: int(suite.get(key)) for key in ("failures", "errors", "skipped")}
    passed = int(suite.get("tests")) - sum(counts.values())
    others = (f"{count} {key}" for key, count in counts.items() if count)
    return ", ".join([f"{passed} tests passed", *others])


def say(text: str) -> None:
    print(f"[matrix] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
