#!/usr/bin/env python
"""
Runs the commands that a page of docs/ shows, and puts their real output and pictures into it.

A page is its own source. Its steps are done in their order, in an empty folder that has the
checkout's configs/ and tools/, on the CPU:

  <!-- file: NAME -->    the block below is written to this file
  ```console             the command after "$ ", which may continue after a backslash, is run; the
                         rest of the block is replaced by what it prints
  ```python              the block is run; the ```text block below is replaced by what it prints
  <!-- keep: REGEX -->   above one of these two: only the lines that a match of it touches are
                         shown, "..." stands for what is left out
  <!-- from: FILE -->    the picture below, ![...](PATH.png), becomes a small copy of this file

Of the output, stdout alone is shown, without colours, the dates of log lines, and the paths up to
the folder and the checkout. The first failure ends it, and leaves page and pictures as they were.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from arguments import run_tool, tool_parser

ROOT = Path(__file__).resolve().parent.parent

STEP = re.compile(
    r"^<!-- file: (?P<file>\S+) -->\n```\w*\n(?P<content>.*?)^```$"
    r"|^<!-- from: (?P<source>\S+) -->\n!\[[^\]]*\]\((?P<picture>\S+\.png)\)$"
    r"|^(?:<!-- keep: (?P<keep>[^\n]+) -->\n)?"
    r"(?:```console\n\$ (?P<command>(?:[^\n]*\\\n)*[^\n]*)\n"
    r"|```python\n(?P<script>.*?)^```\n\n```text\n)"
    r"(?P<output>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PICTURE_WIDTH = 900


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.errors import UsageError

    pictures = {}
    try:
        text = args.page.read_text(encoding="utf-8")
        rest = re.search(r"^(<!--|```console|```python).*", STEP.sub("", text), re.MULTILINE)
        if rest:
            raise ValueError(f'no step begins with "{rest[0]}": see --help')
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            for part in ("configs", "tools"):
                (folder / part).symlink_to(ROOT / part)
            text = STEP.sub(lambda step: done(step, folder, pictures), text)
        for path, picture in pictures.items():
            picture.save(args.page.parent / path)
        args.page.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{args.page}: {error}") from error


def done(step: re.Match, folder: Path, pictures: dict[str, Any]) -> str:
    """Does what the step says and returns its new text; a picture goes to `pictures`."""
    print(step["file"] or step["picture"] or step["command"] or "the script", flush=True)
    if step["file"]:
        (folder / step["file"]).write_text(step["content"], encoding="utf-8")
    elif step["picture"]:
        pictures[step["picture"]] = small(folder / step["source"])
    else:
        begin, end = (place - step.start() for place in step.span("output"))
        return step[0][:begin] + kept(step["keep"], printed(step, folder)) + step[0][end:]
    return step[0]


def printed(step: re.Match, folder: Path) -> str:
    python = Path(sys.executable)
    path = f"{python.parent}:{os.environ['PATH']}"
    command = ["sh", "-c", step["command"]] if step["command"] else [python, "-c", step["script"]]
    env = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
    ended = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise ValueError(f"{command[-1]!r} ended with status {ended.returncode}")
    text = ended.stdout.replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    text = re.sub(r"^\[\d\d/\d\d \d\d:\d\d:\d\d \S+\]: ", "", text, flags=re.MULTILINE)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def kept(regex: str | None, output: str) -> str:
    """The lines that a match touches, and "..." in place of the others; all lines without regex."""
    if not regex:
        return output
    touched: set[int] = set()
    for match in re.finditer(regex, output.removesuffix("\n"), re.MULTILINE):
        first, last = (output.count("\n", 0, place) for place in match.span())
        touched.update(range(first, last + 1))
    if not touched:
        raise ValueError(f"{regex} is nowhere in the output")
    shown = ""
    for is_kept, lines in groupby(enumerate(output.splitlines()), lambda line: line[0] in touched):
        shown += "".join(f"{line}\n" for _, line in lines) if is_kept else "...\n"
    return shown


def small(file: Path) -> Any:
    """The picture, a PIL.Image of at most PICTURE_WIDTH pixels a row and 256 colours."""
    from PIL import Image

    with Image.open(file) as image:
        picture = image.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, picture.height))
    return picture.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=2)


if __name__ == "__main__":
    run_tool(argument_parser(), main)
