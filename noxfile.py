"""
What `make test-matrix` runs: `make test` on every supported Python that is there, and once with the
oldest PyTorch. A session alone: .venv/bin/nox -s tests-3.11
"""

import glob
import os
from pathlib import Path

import nox

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))

nox.options.envdir = ".venvs"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False

# pyenv's command on the PATH refuses to run for a version that is not selected
_PYENV = os.path.expanduser(os.environ.get("PYENV_ROOT", "~/.pyenv"))
os.environ["PATH"] += "".join(f":{path}" for path in glob.glob(f"{_PYENV}/versions/*/bin"))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    make_test(session, Path("requirements.txt"))


@nox.session(python=PYTHONS[0])
def oldest_torch(session: nox.Session) -> None:
    requirements = Path(session.create_tmp()) / "requirements.txt"
    requirements.write_text("\n".join(oldest_requirements()))
    make_test(session, requirements)


def oldest_requirements() -> list[str]:
    """The lines of requirements.txt, those of requirements-oldest.txt in place of its own."""
    oldest = Path("requirements-oldest.txt").read_text().splitlines()
    replaced = tuple(line.partition("==")[0] + "==" for line in oldest)
    lines = Path("requirements.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith(replaced)] + oldest


def make_test(session: nox.Session, requirements: Path) -> None:
    """`make test` with the environment that nox has made, which make fills."""
    venv = session.virtualenv.location
    settings = [f"VENV={venv}", f"PYTHON={venv}/bin/python", f"REQUIREMENTS={requirements}"]
    session.run("make", "test", *settings, external=True)
