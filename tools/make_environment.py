#!/usr/bin/env python3
"""
Makes the virtual environment VENV, or brings it up to date; `make` calls this.

It gets what the file REQUIREMENTS pins, Detectron2 (tools/install_detectron2.py) and this package,
editable. Where the interpreter that runs this has a Detectron2 already, VENV sees its packages
instead, and gains only this package and what is missing of the development tools.
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path

from install_detectron2 import describe_installed

ROOT = Path(__file__).resolve().parent.parent


def main(venv: Path, requirements: Path) -> None:
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    if found not in supported:
        sys.exit(
            f"make_environment: Python {', '.join(supported)} are supported, but {sys.executable} "
            f"is {found}; name another, e.g.: PYTHON=python{supported[-1]} make test"
        )
    parent = venv / f"lib/python{found}/site-packages/parent_environment.pth"
    if Path(sys.prefix).resolve() == venv:
        shares = parent.exists()
    else:
        run(sys.executable, "-m", "venv", "--clear", venv)
        shares = describe_installed()
        if shares:
            print(f"{shares} is used as it is", flush=True)
            # --system-site-packages of a virtual environment leads to the interpreter below it
            folders = (path for path in sys.path if path.endswith("-packages"))
            parent.write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in folders))

    python = venv / "bin" / "python"
    # Several packages come as sources, and are built with the setuptools that is pinned. Imports
    # compile what they need: to compile all takes a quarter of the time
    pip = (python, "-m", "pip", "install", "--no-build-isolation", "--no-compile")
    run(*pip, "--constraint", requirements, "pip", "setuptools")
    if shares:
        install_beside_detectron2(pip, requirements, venv / "constraints.txt")
    else:
        print("Installing requirements.txt: about 3 minutes and 5 GB, once", flush=True)
        run(*pip, "--requirement", requirements)
        run(python, ROOT / "tools" / "install_detectron2.py")
        run(*pip, "--no-deps", "--editable", ROOT)


def install_beside_detectron2(pip: tuple, requirements: Path, constraints: Path) -> None:
    """
    What is there stays, above all the PyTorch and the NumPy that Detectron2 is compiled for. What
    is missing comes as it is pinned.
    """
    there = {normal(distribution.metadata["Name"]) for distribution in distributions()}
    lines = requirements.read_text("utf-8").splitlines()
    lines = [line for line in lines if normal(line) not in there]
    lines += [f"{name}=={version(name)}" for name in ("numpy", "torch")]
    constraints.write_text("\n".join(lines))
    if find_spec("cv2") is None:  # Detectron2 draws with it, and leaves installing it to its users
        run(*pip, "--no-deps", "--constraint", requirements, "opencv-python-headless")
    run(*pip, "--constraint", constraints, "--editable", f"{ROOT}[development]")


def normal(requirement: str) -> str:
    """ "Ml_dtypes==0.6.0" -> "ml-dtypes" """
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*", requirement)[0]).lower()


def run(*command: object) -> None:
    if subprocess.run([str(word) for word in command]).returncode:
        sys.exit(
            f"make_environment: failed, for the reason above: {' '.join(map(str, command))}\n"
            "Check the network, pip's settings and the free disk space, and run make again."
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("venv", type=Path, metavar="VENV")
    parser.add_argument("requirements", type=Path, metavar="REQUIREMENTS")
    args = parser.parse_args()
    try:
        main(args.venv.resolve(), args.requirements)
    except KeyboardInterrupt:
        sys.exit(130)
