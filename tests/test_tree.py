"""The folder tree tells the architecture: imports point one way, and tools are thin."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gw_detectron"
# Each imports only what stands before it
ORDER = [
    "version", "layers", "errors", "files", "modeling", "config", "model_zoo", "checkpoint", "data",
    "norms", "engine", "runs", "export", "benchmark", "__init__",
]  # fmt: skip
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py") if path.name != "arguments.py")


def imported_parts(file):
    """The parts of the package that a file imports, by ORDER's names."""
    folder = file.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            names = [base] if node.module else [[*base[:-1], alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "gw_detectron":
                yield name[1] if len(name) > 1 else "__init__"


def test_imports_point_one_way():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        if "configs" in file.parts:
            continue
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imported_parts(file):
            other = "version" if other == "__version__" else other
            if ORDER.index(other) > ORDER.index(part):
                wrong.append(f"{file.relative_to(ROOT)} imports {other}")
    assert wrong == []


def test_every_part_has_its_place():
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] != "."}
    assert parts - {"__pycache__"} == set(ORDER)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_there_at_once(tool):
    """Importing PyTorch takes seconds."""
    code = """
import runpy, sys
sys.argv, sys.path[0] = sys.argv[1:], sys.argv[1].rpartition("/")[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert not {"torch", "detectron2", "matplotlib"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", code, str(ROOT / "tools" / tool), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ") and done.stderr == ""
