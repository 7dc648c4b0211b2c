#!/usr/bin/env python
"""Runs what a page of docs/ shows, and puts the real output into it; see --help."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from gw_detectron.errors import UsageError, ends_with_one_line

ROOT = Path(__file__).resolve().parent.parent

FORMAT = """
A page is its own source. Its steps are done in their order, in an empty folder that has the
checkout's configs/ and tools/, on the CPU:

  ```console block   one command after "$ ", that may go on in further lines after a backslash; the
                     rest of the block is replaced by what the command prints
  ```python block    a script; the ```text block below it is replaced by what the script prints

On the line above a block or a picture may be a comment:

  <!-- file: NAME -->    the block, of any language, is written to this file and not run
  <!-- keep: PARTS -->   of the output only these, separated by commas: first N, last N, /REGEX/ for
                         the lines in which it is found, /REGEX/ +N for N more below each; an
                         ellipsis stands for what is left out
  <!-- from: FILE -->    the picture, ![...](PATH.png), is a small copy of this file

Of the output, stdout alone is shown, without colours, the dates of log lines, and the paths up to
the folder and the checkout. The first failure ends it, and leaves page and pictures as they were.
"""

COMMENT = re.compile(r"<!-- *(\w+): *(.+?) *-->")
PICTURE = re.compile(r"!\[.*\]\((.+\.png)\)")
PICTURE_WIDTH, PICTURE_BYTES = 1000, 150_000


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        line: where it begins in the page, from 1.
        kind: "file", "command", "script" or "picture".
        text: of the file, of the shell's command, of Python's; the picture's path from the page.
        file: written by a file, copied by a picture.
        keep: the parts of the output that stay; empty: all.
        output: the lines of the page, from 0 and without the last, that the output replaces.
    """

    line: int
    kind: str
    text: str
    file: str = ""
    keep: tuple[str, ...] = ()
    output: tuple[int, int] = (0, 0)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Runs the commands that a page of documentation shows, and puts their real "
        "output and pictures into it.",
        epilog=FORMAT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    return parser


def main(args: argparse.Namespace) -> None:
    try:
        renew(args.page)
    except OSError as error:
        raise UsageError(str(error)) from error
    except UsageError as error:
        raise UsageError(f"{args.page}, {error}") from error


def renew(page: Path) -> None:
    """
    Raises:
        UsageError: "line N: ...", a mistake in the page or a step that failed.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    steps = parse(lines)
    pictures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for part in ("configs", "tools"):
            (folder / part).symlink_to(ROOT / part)
        shift = 0
        for step in steps:
            print(f"{page}, line {step.line}: {title(step)}", flush=True)
            if step.kind == "file":
                (folder / step.file).write_text(step.text, encoding="utf-8")
            elif step.kind == "picture":
                pictures[page.parent / step.text] = shrunk(step, folder)
            else:
                begin, end = step.output
                output = kept(step, run(step, folder))
                lines[begin + shift : end + shift] = output
                shift += len(output) - (end - begin)
    for path, content in pictures.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    page.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def title(step: Step) -> str:
    return "the script" if step.kind == "script" else step.file or step.text.partition("\n")[0]


# ---- Reading the page ------------------------------------------------------------------------


def parse(lines: list[str]) -> list[Step]:
    """
    Raises:
        UsageError: "line N: ...", where the page isn't as FORMAT says.
    """
    steps: list[Step] = []
    number = 0
    while number < len(lines):
        key, value = "", ""
        if lines[number].startswith("<!--"):
            key, value = comment(lines[number], number + 1)
            number += 1
        line = lines[number] if number < len(lines) else ""
        step = None
        end = number
        if line.startswith("```"):
            end = closing(lines, number)
            step = block(lines, number, end, key, value)
        elif key == "from" and (picture := PICTURE.fullmatch(line)):
            step = Step(number + 1, "picture", picture[1], value)
        if step:
            steps.append(step)
            end = max(end, step.output[1])
        elif key:
            raise UsageError(f'line {number}: "{key}" is not for what is on the next line')
        number = end + 1
    return steps


def comment(line: str, number: int) -> tuple[str, str]:
    match = COMMENT.fullmatch(line)
    if not match or match[1] not in ("file", "keep", "from"):
        raise UsageError(f"line {number}: {line} is not one of file:, keep: and from:")
    return match[1], match[2]


def closing(lines: list[str], begin: int) -> int:
    for number in range(begin + 1, len(lines)):
        if lines[number] == "```":
            return number
    raise UsageError(f"line {begin + 1}: the block {lines[begin]} has no end")


def block(lines: list[str], begin: int, end: int, key: str, value: str) -> Step | None:
    """What a fenced block asks for; begin, end: the lines of its fences, from 0."""
    language, content = lines[begin][3:], lines[begin + 1 : end]
    if key == "file":
        return Step(begin + 1, "file", "".join(f"{line}\n" for line in content), file=value)
    if key == "from" or language not in ("console", "python"):
        return None
    keep = parts(value, begin) if key else ()
    if language == "console":
        length = 1 + next(
            (i for i, line in enumerate(content) if not line.endswith("\\")), len(content)
        )
        command = "\n".join(content[:length])
        if not command.startswith("$ "):
            raise UsageError(f'line {begin + 2}: a console block begins with "$ " and a command')
        output = (begin + 1 + length, end)
        return Step(begin + 1, "command", command[2:], keep=keep, output=output)
    below = next((i for i in range(end + 1, len(lines)) if lines[i]), len(lines) - 1)
    if lines[below] != "```text":
        raise UsageError(f"line {begin + 1}: below the python block must be a ```text block")
    output = (below + 1, closing(lines, below))
    return Step(begin + 1, "script", "\n".join(content), keep=keep, output=output)


def parts(value: str, number: int) -> tuple[str, ...]:
    """
    "first 3, /a, b/, last 8" -> ("first 3", "/a, b/", "last 8").

    Args:
        number: of the comment's line.
    """
    found = tuple(part.strip() for part in re.findall(r"\s*/.+?/[ \d+]*(?=,|$)|[^,]+", value))
    for part in found:
        if not re.fullmatch(r"(first|last) [1-9]\d*|/.+/( \+[1-9]\d*)?", part):
            raise UsageError(
                f'line {number}: "{part}" is not first N, last N, /REGEX/ or /REGEX/ +N'
            )
        if part.startswith("/"):
            try:
                re.compile(part[1 : part.rindex("/")])
            except re.error as error:
                raise UsageError(f"line {number}: {part}: {error}") from error
    return found


# ---- Doing what it says ----------------------------------------------------------------------


def run(step: Step, folder: Path) -> list[str]:
    """The lines that a command or script prints."""
    python = Path(sys.executable)
    command = ["sh", "-c", step.text] if step.kind == "command" else [python, "-c", step.text]
    settings = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise UsageError(
            f'line {step.line}: "{title(step)}" ended with status {done.returncode}: {said}'
        )
    text = done.stdout.replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    text = re.sub(r"^\[\d\d/\d\d \d\d:\d\d:\d\d \S+\]: ", "", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines()]


def kept(step: Step, lines: list[str]) -> list[str]:
    """What the page shows of the output."""
    if not step.keep:
        return lines
    chosen: set[int] = set()
    for part in step.keep:
        numbers = range(len(lines))
        if part.startswith("/"):
            regex, _, below = part[1:].rpartition("/")
            found = [i for i in numbers if re.search(regex, lines[i])]
            if not found:
                raise UsageError(f"line {step.line}: {part} is nowhere in the output")
            for i in found:
                chosen.update(numbers[i : i + 1 + int(below or 0)])
        else:
            side, number = part.split()
            chosen.update(numbers[: int(number)] if side == "first" else numbers[-int(number) :])
    shown = []
    previous = -1
    for i in sorted(chosen):
        shown += ["..."] if i > previous + 1 else []
        shown.append(lines[i])
        previous = i
    return shown + ["..."] if previous < len(lines) - 1 else shown


def shrunk(step: Step, folder: Path) -> bytes:
    """The picture as a PNG of at most PICTURE_WIDTH pixels and PICTURE_BYTES bytes."""
    if not (folder / step.file).is_file():
        raise UsageError(f"line {step.line}: {step.file} is not there")
    with Image.open(folder / step.file) as file:
        picture = file.convert("RGB")
    width = min(PICTURE_WIDTH, picture.width)
    while True:
        size = (width, round(picture.height * width / picture.width))
        content = BytesIO()
        small = picture.resize(size, Image.Resampling.LANCZOS)
        small.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=2).save(content, "PNG")
        if content.tell() <= PICTURE_BYTES:
            return content.getvalue()
        width = width * 9 // 10


if __name__ == "__main__":
    with ends_with_one_line():
        main(argument_parser().parse_args())
