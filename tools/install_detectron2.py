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
import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE = "labgym==3.1.2"
SOURCE_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
SOURCE_PACKAGE = "LabGym/"

# The code equals Detectron2's commit e9f7e2ba of 2023-12-20, whose own version string is "0.6".
VERSION = "0.6+e9f7e2ba"

# Detectron2's own requirements at that commit, with three changes: iopath 0.1.10 is allowed, since
# it works; black is left out, which only LazyConfig.to_py imports; and setuptools is named, whose
# pkg_resources the model zoo imports.
REQUIREMENTS = (
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
)

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"
INSTALLATION_PAGE = "https://detectron2.readthedocs.io/tutorials/install.html"


class InstallError(Exception):
    """A step that failed; the message is one line that names it and the way out."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    try:
        print(install_if_missing())
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


def install_if_missing() -> str:
    """Returns the line that says what was done."""
    found = describe_installed()
    if found:
        return f"{found} is installed: left as it is"
    with tempfile.TemporaryDirectory() as directory:
        source = download(Path(directory))
        verify(source)
        files = restore(source)
        build_wheel(files, Path(directory))
        # by name, not by file: `pip freeze` would remember the temporary folder
        pip(
            "install",
            "--no-deps",
            "--no-index",
            f"--find-links={directory}",
            f"detectron2=={VERSION}",
            problem=f"could not install Detectron2 into {sys.prefix}",
        )
    return (
        f"installed Detectron2 {VERSION} from {SOURCE} (SHA-256 verified): {len(files)} files, "
        "without the compiled operators"
    )


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


def download(directory: Path) -> Path:
    """Fetch the wheel that holds the code. It asks for Python < 3.11; the part taken does not."""
    pip(
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version=3.10",
        f"--dest={directory}",
        SOURCE,
        problem=f"could not download {SOURCE}, where PyPI has Detectron2's code",
    )
    return next(directory.glob("*.whl"))


def verify(wheel: Path) -> None:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        raise InstallError(
            f"{wheel.name} has SHA-256 {found}, not {SOURCE_SHA256}: nothing was installed; "
            f"install Detectron2 by {INSTALLATION_PAGE}"
        )


def restore(wheel: Path) -> dict[str, bytes]:
    """Detectron2's own files in the wheel, by path ("detectron2/..."), as before the renaming."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name[len(SOURCE_PACKAGE) :]: archive.read(name).replace(
                b"LabGym.detectron2", b"detectron2"
            )
            for name in archive.namelist()
            if name.startswith(f"{SOURCE_PACKAGE}detectron2/") and not name.endswith("/")
        }


def build_wheel(files: dict[str, bytes], directory: Path) -> Path:
    """Write `files` and the metadata that makes them an installable package; returns the wheel."""
    dist_info = f"detectron2-{VERSION}.dist-info"
    files = {
        **files,
        f"{dist_info}/METADATA": metadata().encode(),
        f"{dist_info}/WHEEL": (
            b"Wheel-Version: 1.0\n"
            b"Generator: gw_detectron (install_detectron2)\n"
            b"Root-Is-Purelib: true\n"
            b"Tag: py3-none-any\n"
        ),
        f"{dist_info}/top_level.txt": b"detectron2\n",
        f"{dist_info}/licenses/LICENSE": LICENSE.read_bytes(),
    }
    files[f"{dist_info}/RECORD"] = record(files, f"{dist_info}/RECORD")
    wheel = directory / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def metadata() -> str:
    fields = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: FAIR's platform for detection and segmentation, without compiled operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    description = (
        "Detectron2's Python code and model-zoo configs at commit e9f7e2ba, restored by "
        f"gw_detectron's tools/install_detectron2.py from {SOURCE}."
    )
    return "\n".join(fields) + f"\n\n{description}\n"


def record(files: dict[str, bytes], own_name: str) -> bytes:
    """A wheel's list of its files with their hashes and sizes; the list itself goes without."""
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{own_name},,\n"]).encode()


def pip(command: str, *arguments: str, problem: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", *arguments],
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.strip()]  # summary comes last
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"status {result.returncode}"
        raise InstallError(
            f"{problem}: {reason}; check the network and pip's settings and run this again, "
            f"or install Detectron2 by {INSTALLATION_PAGE}"
        )


if __name__ == "__main__":
    sys.exit(main())
