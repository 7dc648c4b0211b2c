#!/usr/bin/env python3
"""
Run `make test` on every Python that the project supports and this machine has, and once with the
oldest PyTorch that setup.py accepts; each in an environment of its own, kept in .venvs/.

`make test-matrix` calls it. The exit status is 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3.10", "python3.11", "python3.12")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pythons", nargs="*", default=PYTHONS, help=f"commands (default: {' '.join(PYTHONS)})"
    )
    pythons = {version_of(python): python for python in parser.parse_args().pythons}
    pythons.pop(None, None)
    if not pythons:
        print("test_matrix: none of these Pythons can be run", file=sys.stderr)
        return 1
    runs = [(version, python, False) for version, python in sorted(pythons.items())]
    runs.append((*min(pythons.items()), True))
    outcomes = [run(*arguments) for arguments in runs]
    print("", *(line for _, line in outcomes), sep="\n")
    return 0 if all(passed for passed, _ in outcomes) else 1


def version_of(python: str) -> str | None:
    """ "3.11", or None where the command doesn't run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        print(f"test_matrix: {python} is not there", flush=True)
        return None
    return result.stdout.strip()


def run(version: str, python: str, oldest_torch: bool) -> tuple[bool, str]:
    """Whether the tests pass, and a line that says so."""
    name = f"{version}-oldest-torch" if oldest_torch else version
    variables = {"PYTHON": python, "VENV": f".venvs/{name}"}
    if oldest_torch:
        variables["ENVIRONMENT"] = "--oldest-torch"
    print(f"test_matrix: {name}", flush=True)
    began = time.monotonic()
    settings = [f"{key}={value}" for key, value in variables.items()]
    status = subprocess.run(["make", "test", *settings], cwd=ROOT, env=os.environ | variables)
    minutes = (time.monotonic() - began) / 60
    passed = status.returncode == 0
    return passed, f"{name}: {'passed' if passed else 'FAILED'} in {minutes:.0f} min"


if __name__ == "__main__":
    sys.exit(main())
