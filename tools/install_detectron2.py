#!/usr/bin/env python3
"""
Install Detectron2's Python code where no Detectron2 is installed; leave an installed one alone.

Detectron2 is on no package index under its own name, but the wheel of another project, labgym,
carries its Python code (Apache-2.0, Meta's headers intact) as the sub-package LabGym/detectron2,
changed in nothing but the import prefix. This tool downloads that wheel with pip, verifies its
SHA-256, takes the sub-package alone, undoes the prefix, and installs the result as a package of its
own, which `pip show detectron2` and `pip uninstall detectron2` know. Its dependencies are not
installed.

The compiled operators (rotated boxes, deformable convolution) are not in it. For those, follow
https://detectron2.readthedocs.io/tutorials/install.html instead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

SOURCE = "labgym==3.1.2"
SOURCE_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
SOURCE_PACKAGE = "LabGym/"

# The code equals Detectron2's commit e9f7e2ba of 2023-12-20, whose own version string is "0.6".
VERSION = "0.6+e9f7e2ba"

# Detectron2's own requirements at that commit, with three changes: iopath 0.1.10 is allowed, since
# it works; black is left out, which only LazyConfig.to_py imports; and setuptools is named, whose
# pkg_resources the model zoo imports.
PYPROJECT = f"""
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "{VERSION}"
description = "FAIR's platform for detection and segmentation, without compiled operators"
authors = [{{ name = "FAIR" }}]
license = "Apache-2.0"
urls = {{ Homepage = "https://github.com/facebookresearch/detectron2" }}
requires-python = ">=3.7"
dependencies = [
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore<0.1.6,>=0.1.5",
    "iopath<0.1.11,>=0.1.7",
    "omegaconf<2.4,>=2.1",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<82",
]

[tool.setuptools]
packages.find = {{ include = ["detectron2*"], namespaces = false }}
package-data = {{ "*" = ["**/*"] }}
"""

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"
INSTALLATION_PAGE = "https://detectron2.readthedocs.io/tutorials/install.html"


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(install_if_missing())


def install_if_missing() -> str:
    """
    Returns:
        the line that says what was done.

    Raises:
        SystemExit: a step failed; one line names it and the way out.
    """
    found = describe_installed()
    if found:
        return f"{found} is installed: left as it is"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = download(folder)
        verify(wheel)
        restore(wheel, folder / "source")
        pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(folder / "source"))
        # by name, not by file: `pip freeze` would remember the temporary folder
        options = ("--no-deps", "--no-index", f"--find-links={folder}")
        pip("install", *options, f"detectron2=={VERSION}")
    return f"installed Detectron2 {VERSION} from {SOURCE}, without the compiled operators"


def describe_installed() -> str | None:
    """Name, version and place of the Detectron2 that this interpreter imports; None without one."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # no origin: a mere folder of that name
        return None
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        # on the path without being installed; importing it to ask would import torch
        text = Path(spec.origin).read_text(encoding="utf-8")
        match = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
        version = match[1] if match else "of unknown version"
    return f"Detectron2 {version} in {Path(spec.origin).parent}"


def download(folder: Path) -> Path:
    """Fetches the wheel that holds the code. It asks for Python < 3.11; the part taken does not."""
    options = ("--no-deps", "--only-binary=:all:", "--python-version=3.10", f"--dest={folder}")
    pip("download", *options, SOURCE)
    return next(folder.glob("*.whl"))


def verify(wheel: Path) -> None:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        fail(f"{wheel.name} has SHA-256 {found}, not {SOURCE_SHA256}: nothing was installed")


def restore(wheel: Path, folder: Path) -> None:
    """Writes Detectron2's own files as before the renaming, and what makes a package of them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{SOURCE_PACKAGE}detectron2/") and not name.endswith("/"):
                path = folder / name[len(SOURCE_PACKAGE) :]
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.read(name)
                path.write_bytes(content.replace(b"LabGym.detectron2", b"detectron2"))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    shutil.copy(LICENSE, folder)


def pip(command: str, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        errors = re.findall(r"^ERROR: (.*)", result.stderr, re.MULTILINE)  # the summary comes last
        reason = errors[-1] if errors else f"status {result.returncode}"
        fail(f"pip {command} {arguments[-1]}: {reason}; check the network and pip's settings")


def fail(reason: str) -> NoReturn:
    sys.exit(f"install_detectron2: {reason}, or install Detectron2 by {INSTALLATION_PAGE}")


if __name__ == "__main__":
    main()
