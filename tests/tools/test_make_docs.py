import importlib
import py_compile
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from PIL import Image

import make_docs
from gw_detectron.config import load_config
from gw_detectron.errors import UsageError

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.md"


def renewed(folder, text):
    page = folder / "page.md"
    page.write_text(text)
    make_docs.main(make_docs.argument_parser().parse_args([str(page)]))
    return page.read_text()


def console(command, output="", keep=""):
    comment = f"<!-- keep: {keep} -->\n" if keep else ""
    return f"{comment}```console\n$ {command}\n{output}```\n"


# ---- The generator ---------------------------------------------------------------------------


def test_output_takes_the_place_of_the_old_and_the_rest_stays(tmp_path):
    page = "# Tour\n\n{}\nand\n\n{}"
    old = page.format(console("echo one; echo; echo two", "old\n"), console("true", "x\n"))
    new = page.format(console("echo one; echo; echo two", "one\n\ntwo\n"), console("true"))
    assert renewed(tmp_path, old) == new
    assert renewed(tmp_path, new) == new


def test_a_command_may_have_several_lines(tmp_path):
    page = console("echo a \\\n    b", "old\n")
    assert renewed(tmp_path, page) == console("echo a \\\n    b", "a b\n")


def test_a_script_prints_into_the_text_block_below(tmp_path):
    page = "```python\nfor i in 1, 2:\n    print(i)\n```\n\n```text\n{}```\n\n```text\nstays\n```\n"
    assert renewed(tmp_path, page.format("")) == page.format("1\n2\n")


def test_steps_share_a_folder_with_the_checkouts_tools(tmp_path):
    page = (
        "<!-- file: a.yaml -->\n```yaml\nA: 1\n```\n```yaml\nnot: run\n```\n"
        + console("cat a.yaml > b; cat b; ls", "A: 1\na.yaml\nb\nconfigs\ntools\n")
        + console("test -f tools/train_net.py && test -d configs/quickstart")
    )
    assert renewed(tmp_path, page) == page


def test_commands_run_with_this_interpreter_and_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    command = "python -c 'import sys; print(sys.prefix)'; echo gpu=$CUDA_VISIBLE_DEVICES."
    prefix = sys.prefix.replace(f"{ROOT}/", "")
    assert renewed(tmp_path, console(command)) == console(command, f"{prefix}\ngpu=.\n")


def test_paths_dates_spaces_and_stderr_are_no_output(tmp_path):
    command = f"echo $PWD/a {ROOT}/b; echo '[11/24 01:48:04 d2.gw]: AP 1.0  '; echo no >&2"
    assert renewed(tmp_path, console(command)) == console(command, "a b\nAP 1.0\n")


@pytest.mark.parametrize(
    "keep, output",
    [
        ("first 2", "1 2 ..."),
        ("last 2", "... 8 9"),
        ("/[37]/", "... 3 ... 7 ..."),
        ("first 2, /3/, /[4,5]/, last 1", "1 2 3 4 5 ... 9"),
        ("/4/, first 1", "1 ... 4 ..."),
        ("/3/ +1, /[89]/ +2", "... 3 4 ... 8 9"),
        ("first 99", "1 2 3 4 5 6 7 8 9"),
        ("last 99, first 1", "1 2 3 4 5 6 7 8 9"),
    ],
)
def test_a_part_of_the_output_is_kept(tmp_path, keep, output):
    new = console("seq 9", output.replace(" ", "\n") + "\n", keep)
    assert renewed(tmp_path, console("seq 9", keep=keep)) == new


def test_a_picture_becomes_a_small_copy(tmp_path):
    write = "python -c \"from PIL import Image; Image.effect_noise((1500, 600), 99).save('a.png')\""
    page = f"{console(write)}<!-- from: a.png -->\n![Noise](images/noise.png)\n"
    assert renewed(tmp_path, page) == page
    file = tmp_path / "images" / "noise.png"
    with Image.open(file) as picture:
        width, height = picture.size
    assert file.stat().st_size <= 150_000
    assert width < 1000 and height == pytest.approx(width * 600 / 1500, abs=1)


@pytest.mark.parametrize(
    "last, message",
    [
        (console("sh -c 'echo so >&2; exit 3'"), 'line 8: "sh .*" ended with status 3: so$'),
        (console("seq 9", keep="/0/"), "line 9: /0/ is nowhere in the output$"),
        ("<!-- from: b.png -->\n![B](b.png)\n", "line 9: b.png is not there$"),
        ("```python\n1 / 0\n```\n```text\n```\n", "line 8: .*: ZeroDivisionError: division by"),
    ],
)
def test_a_failure_leaves_the_page_and_its_pictures_as_they_were(tmp_path, last, message):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "drawn.png").write_text("old")
    page = (
        console(f"cp {tmp_path}/a.png .; echo new", "old\n")
        + f"\n<!-- from: a.png -->\n![Drawn](drawn.png)\n{last}"
    )
    with pytest.raises(UsageError, match=message) as error:
        renewed(tmp_path, page)
    assert "\n" not in str(error.value)
    assert (tmp_path / "page.md").read_text() == page
    assert (tmp_path / "drawn.png").read_text() == "old"


@pytest.mark.parametrize(
    "mistake, message",
    [
        ("<!-- trim: 3 -->\n```console\n$ true\n```\n", "line 4: <!-- trim: 3 --> is not one of"),
        ("<!-- a note -->\n", "line 4: .*is not one of"),
        (console("true", keep="middle 3"), 'line 4: "middle 3" is not first N'),
        (console("true", keep="/a/ 3"), 'line 4: "/a/ 3" is not first N'),
        (console("true", keep="/(/"), "line 4: /\\(/: missing"),
        (console("true", keep="first 0"), 'line 4: "first 0" is not first N'),
        ("<!-- keep: first 1 -->\ntext\n", 'line 4: "keep"'),
        ("<!-- keep: first 1 -->\n```yaml\n```\n", 'line 4: "keep"'),
        ("<!-- from: a.png -->\n```console\n$ true\n```\n", 'line 4: "from"'),
        ("<!-- file: a -->\n", 'line 4: "file"'),
        ("```console\ntrue\n```\n", "line 5: a console block begins"),
        ("```console\n```\n", "line 5: a console block begins"),
        ("```python\n1\n```\n\ntext\n", "line 4: below the python block"),
        ("```python\n1\n```\n", "line 4: below the python block"),
        ("```console\n$ true\n", "line 4: .*has no end"),
    ],
)
def test_a_mistake_in_the_page_is_found_before_anything_runs(tmp_path, mistake, message):
    with pytest.raises(UsageError, match=message):
        renewed(tmp_path, console(f"touch {tmp_path}/ran") + mistake)
    assert not (tmp_path / "ran").exists()


def test_the_script_prints_a_failure_as_one_line_with_status_2(tmp_path):
    command = [sys.executable, ROOT / "tools" / "make_docs.py", tmp_path / "nowhere.md"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("make_docs.py: error: ") and "nowhere.md" in line


# ---- The tour --------------------------------------------------------------------------------


def tour_steps(kind):
    return [step for step in make_docs.parse(TOUR.read_text().splitlines()) if step.kind == kind]


def name(step):
    return f"line {step.line}"


@pytest.mark.parametrize("step", tour_steps("command"), ids=name)
def test_a_command_of_the_tour_is_one_that_its_tool_takes(step, tmp_path, monkeypatch):
    python, tool, *arguments = shlex.split(step.text.replace("\\\n", ""))
    assert python == "python" and (ROOT / tool).is_file()
    args = importlib.import_module(Path(tool).stem).argument_parser().parse_args(arguments)

    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for file in tour_steps("file"):
        Path(file.file).write_text(file.text)
    if getattr(args, "config_file", None):
        is_written_by_a_run = args.config_file.startswith("output/")
        load_config("" if is_written_by_a_run else args.config_file, args.opts)


@pytest.mark.parametrize("step", tour_steps("script"), ids=name)
def test_a_script_of_the_tour_is_python(step, tmp_path):
    (tmp_path / "script.py").write_text(step.text)
    py_compile.compile(str(tmp_path / "script.py"), doraise=True)


def test_every_picture_and_page_that_the_tour_links_to_is_there():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TOUR.read_text())
    assert {step.text for step in tour_steps("picture")} <= set(targets)
    assert [target for target in targets if not (TOUR.parent / target).is_file()] == []


def test_every_output_in_the_tour_was_filled_in():
    lines = TOUR.read_text().splitlines()
    for step in make_docs.parse(lines):
        begin, end = step.output
        assert end > begin or step.kind in ("file", "picture"), name(step)


def test_the_tour_begins_with_what_its_first_script_prints(tmp_path):
    beginning = TOUR.read_text().partition("## 2.")[0]
    assert renewed(tmp_path, beginning) == beginning
