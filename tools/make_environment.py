#!/usr/bin/env python3
"""
Make the checkout's virtual environment, .venv, or find it up to date.

Installs what requirements.txt pins, Detectron2 (tools/install_detectron2.py) and this package,
editable. Where the interpreter that runs this script has a Detectron2 already, .venv sees that
interpreter's packages instead, and gains only this package and the development tools: neither the
installed Detectron2 nor its PyTorch is touched.

`make test` and `make demo` call it; PYTHON=python3.12 in front of make chooses the interpreter, and
VENV=DIRECTORY another place than .venv.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements.txt"
OLDEST = ROOT / "requirements-oldest.txt"
VENV = (ROOT / (os.environ.get("VENV") or ".venv")).resolve()
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".ready"  # what the environment was made from; written last, so that it never lies

# In .venv's site-packages, where it shares another virtual environment's packages
PARENT = "parent_environment.pth"

PYTHONS = ((3, 10), (3, 11), (3, 12))

# The environment is brought up to date when the content of one of these changes.
INPUTS = (
    REQUIREMENTS,
    OLDEST,
    ROOT / "setup.py",
    ROOT / "gw_detectron" / "version.py",
    ROOT / "tools" / "install_detectron2.py",
    Path(__file__).resolve(),
)

# As pip names them; Python imports them without "pytest-". Without one of them tests are skipped.
DEVELOPMENT_TOOLS = ("hypothesis", "onnx", "onnxruntime", "pytest", "pytest-xdist", "ruff")


class SetupError(Exception):
    """A step that failed; the message is one line that names it and the way out."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--oldest-torch", action="store_true", help="with the PyTorch of requirements-oldest.txt"
    )
    oldest_torch = parser.parse_args(argv).oldest_torch
    try:
        check_python(sys.version_info[:2])
        if not is_ready(oldest_torch):
            make_environment(oldest_torch)
    except SetupError as error:
        print(f"make_environment: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_environment: interrupted; the next run goes on", file=sys.stderr)
        return 130
    return 0


def check_python(version: tuple[int, int]) -> None:
    if version not in PYTHONS:
        raise SetupError(
            f"Python 3.10, 3.11 or 3.12 is needed, but {sys.executable} is "
            f"{version[0]}.{version[1]}; name another, e.g.: PYTHON=python3.12 make test"
        )


def is_ready(oldest_torch: bool = False) -> bool:
    return STAMP.is_file() and STAMP.read_text() == fingerprint(oldest_torch)


def fingerprint(oldest_torch: bool) -> str:
    """Changes with whatever the environment depends on, its own place and interpreter included."""
    parts = [str(ROOT), kind_wanted(oldest_torch), str(oldest_torch)]
    parts += [path.read_text(encoding="utf-8") for path in INPUTS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def kind_wanted(oldest_torch: bool = False) -> str:
    return kind(sys.version_info[:2], shared=shares_detectron2(oldest_torch))


def kind_found() -> str | None:
    """The kind of the environment that exists, from the file that venv writes; None without one."""
    if not (VENV / "pyvenv.cfg").is_file():
        return None
    fields = read_config(VENV)
    major, minor, *_ = fields.get("version", "0.0").split(".")
    shared = sees_system_packages(VENV) or any(VENV.glob(f"lib/python*/site-packages/{PARENT}"))
    return kind((int(major), int(minor)), shared=shared)


def read_config(venv: Path) -> dict[str, str]:
    text = (venv / "pyvenv.cfg").read_text()
    return dict(re.findall(r"^([\w-]+) = (.*)$", text, re.MULTILINE))


def sees_system_packages(venv: Path) -> bool:
    return read_config(venv).get("include-system-site-packages") == "true"


def kind(version: tuple[int, int], shared: bool) -> str:
    """An environment can be brought up to date within its kind; for another it is made anew."""
    return f"Python {version[0]}.{version[1]}, {'shared' if shared else 'own'} packages"


def shares_detectron2(oldest_torch: bool = False) -> bool:
    """
    Whether .venv is to see the packages of the interpreter it is made with. The oldest PyTorch
    never goes beside an installed Detectron2, which is compiled for its own.
    """
    if runs_in_venv():
        return "shared" in (kind_found() or "")
    if oldest_torch:
        return False
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


def runs_in_venv() -> bool:
    return Path(sys.prefix).resolve() == VENV


def make_environment(oldest_torch: bool = False) -> None:
    started = time.monotonic()
    shared = shares_detectron2(oldest_torch)
    if shared and oldest_torch:
        raise SetupError(
            f"{VENV.name} uses an installed Detectron2 with its PyTorch; make another environment "
            "for the oldest, with PYTHON=python3.x VENV=.venvs/oldest-torch"
        )
    STAMP.unlink(missing_ok=True)
    if not runs_in_venv():
        create_venv(shared)
    if shared:
        say(f"Detectron2 is installed for {sys.executable}: used as it is")
        install_beside_detectron2()
    else:
        install_pinned(oldest_torch)
    STAMP.write_text(fingerprint(oldest_torch))
    say(f"ready in {time.monotonic() - started:.0f} s: {VENV}")


def create_venv(shared: bool) -> None:
    say(f"creating {VENV.name} with Python {'.'.join(map(str, sys.version_info[:3]))}")
    in_venv = sys.prefix != sys.base_prefix
    options = []
    if shared and (not in_venv or sees_system_packages(Path(sys.prefix))):
        options.append("--system-site-packages")
    if kind_found() != kind(sys.version_info[:2], shared):
        options.append("--clear")
    result = subprocess.run([sys.executable, "-m", "venv", *options, str(VENV)])
    if result.returncode != 0:
        raise SetupError(
            f"`{sys.executable} -m venv` failed; install its venv module (Debian, Ubuntu: "
            "apt install python3-venv) or name another Python: PYTHON=python3.12 make test"
        )
    if shared and in_venv:
        share_parent_venv()


def share_parent_venv() -> None:
    """
    Let .venv see the virtual environment that runs this script: made from within one,
    --system-site-packages would reach the interpreter below it, not that environment itself.
    """
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site_packages = VENV / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in sorted(folders)]
    (site_packages / PARENT).write_text("".join(lines))


def install_pinned(oldest_torch: bool) -> None:
    say("installing pip and setuptools")
    pip_install("--constraint", str(REQUIREMENTS), "pip", "setuptools")
    say("installing requirements.txt, PyTorch first of all: about 3 minutes and 5 GB once")
    # several packages come as sources: built with the setuptools above rather than the newest
    wanted = VENV / "requirements.txt"
    wanted.write_text(requirements(oldest_torch), encoding="utf-8")
    pip_install("--no-build-isolation", "--requirement", str(wanted))
    say("installing Detectron2")
    if subprocess.run([VENV_PYTHON, ROOT / "tools" / "install_detectron2.py"]).returncode != 0:
        raise SetupError("stopped at Detectron2, for the reason above")
    install_this_package()


def requirements(oldest_torch: bool) -> str:
    """requirements.txt, or with the versions of requirements-oldest.txt in place of its own."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    if oldest_torch:
        for pin in re.findall(r"^[\w-]+==\S+", OLDEST.read_text(encoding="utf-8"), re.MULTILINE):
            name = pin.partition("==")[0]
            text = re.sub(rf"^{name}==\S+", pin, text, flags=re.MULTILINE)
    return text


def install_beside_detectron2() -> None:
    say("installing setuptools, and the development tools where missing")
    names = ["setuptools"]
    names += [n for n in DEVELOPMENT_TOOLS if not is_importable(n.removeprefix("pytest-"))]
    # PyTorch and Detectron2 are compiled for the NumPy that is there: no tool may bring another
    numpy = f"numpy=={importlib.metadata.version('numpy')}"
    pip_install(numpy, *(line for name in names for line in pinned(name)))
    if not is_importable("cv2"):  # Detectron2 draws with it, and leaves installing it to the user
        pip_install("--no-deps", *pinned("opencv-python-headless"))
    install_this_package()


def install_this_package() -> None:
    say("installing gw_detectron, editable")
    pip_install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def pinned(name: str) -> list[str]:
    """Its lines of requirements.txt: several where the version depends on Python's."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    return [line.strip() for line in re.findall(rf"^{name}==[^#\n]+", text, re.MULTILINE)]


def is_importable(module: str) -> bool:
    """In .venv, whichever interpreter runs this script."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([VENV_PYTHON, "-c", code]).returncode == 0


def pip_install(*arguments: str) -> None:
    command = [VENV_PYTHON, "-m", "pip", "install", "--progress-bar=off", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        errors = show_progress(process.stdout)
    if process.returncode != 0:
        reason = errors[-1] if errors else f"status {process.returncode}"
        raise SetupError(
            f"pip could not install {arguments[-1]}: {reason}; check the network, pip's settings "
            "and the free disk space, and run it again"
        )


def show_progress(output: Iterable[str]) -> list[str]:
    """Print pip's output in a line for each big download; returns its error messages."""
    errors = []
    for line in output:
        if line.startswith("ERROR: "):
            errors.append(line[len("ERROR: ") :].strip())
        elif line.startswith("Installing collected packages: ") and "," in line:
            print(f"    unpacking {line.count(',') + 1} packages", flush=True)
        else:
            match = re.search(
                r"(Downloading|Using cached) ([^-\s]+-[^-\s]+)\S* \((\d+)\S* MB\)", line
            )
            if match and int(match[3]) >= 10:
                print(f"    {match[1].lower()} {match[2]} ({match[3]} MB)", flush=True)
    return errors


def say(text: str) -> None:
    print(f"[environment] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
