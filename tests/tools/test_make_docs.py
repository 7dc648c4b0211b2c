import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from PIL import Image

import make_docs
from gw_detectron.config import load_config
from gw_detectron.errors import UsageError

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text()
STEPS = list(make_docs.STEP.finditer(TOUR))
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# At the beginning of a line, after spaces, "$ " and variables at most; with its further lines
COMMAND = re.compile(r"^ *(?:\$ )?(?:\w+=\S+ )*(python tools/(?:.*\\\n)*.*)", re.MULTILINE)


def renewed(folder, text):
    page = folder / "page.md"
    page.write_text(text)
    make_docs.main(make_docs.argument_parser().parse_args([str(page)]))
    return page.read_text()


def console(command, output="", keep=""):
    comment = f"<!-- keep: {keep} -->\n" if keep else ""
    return f"{comment}```console\n$ {command}\n{output}```\n"


# ---- The generator ---------------------------------------------------------------------------


def test_steps_share_a_folder_and_their_output_takes_the_place_of_the_old(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    page = (
        "# A page\n\n<!-- file: a.yaml -->\n```yaml\nA: 1\n```\n\n```yaml\nnot: run\n```\n\n"
        + console("cat a.yaml; echo \\\n    $CUDA_VISIBLE_DEVICES $PWD/b; ls", "{}")
        + "\n```python\nprint(open('a.yaml').read())\n```\n\n```text\n{}```\nThe end.\n"
        + console("python -c 'import sys; print(sys.executable)'; echo no >&2", "{}")
        + console("echo '[11/24 01:48:04 d2.gw]: AP 1.0  '", "{}")
    )
    python = f"{sys.executable}\n".replace(f"{ROOT}/", "")
    outputs = ("A: 1\nb\na.yaml\nconfigs\ntools\n", "A: 1\n\n", python, "AP 1.0\n")
    assert renewed(tmp_path, page.format(*4 * ["old\n"])) == page.format(*outputs)
    assert renewed(tmp_path, page.format(*outputs)) == page.format(*outputs)


@pytest.mark.parametrize(
    "keep, output",
    [
        ("1|2", "1 2 ..."),
        ("^8[^$]*", "... 8 9"),
        ("[37]", "... 3 ... 7 ..."),
        ("3.*\n|9", "... 3 4 ... 9"),
        (r"[\s\S]*", "1 2 3 4 5 6 7 8 9"),
    ],
)
def test_the_lines_that_a_match_touches_are_kept(tmp_path, keep, output):
    new = console("seq 9", output.replace(" ", "\n") + "\n", keep.replace("\n", r"\n"))
    assert renewed(tmp_path, console("seq 9", keep=keep.replace("\n", r"\n"))) == new


def test_a_picture_becomes_a_small_copy(tmp_path):
    write = "python -c \"from PIL import Image; Image.effect_noise((1500, 600), 99).save('a.png')\""
    page = f"{console(write)}<!-- from: a.png -->\n![Noise](noise.png)\n"
    assert renewed(tmp_path, page) == page
    with Image.open(tmp_path / "noise.png") as picture:
        assert picture.size == (900, 360)


@pytest.mark.parametrize(
    "last, message",
    [
        (console("exit 3"), "'exit 3' ended with status 3$"),
        (console("seq 9", keep="0"), "0 is nowhere in the output$"),
        ("<!-- from: b.png -->\n![B](b.png)\n", "No such file .*b.png'$"),
        ("```python\n1 / 0\n```\n\n```text\n```\n", "'1 / 0\\\\n' ended with status 1$"),
    ],
)
def test_a_failure_leaves_the_page_and_its_pictures_as_they_were(tmp_path, last, message):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "drawn.png").write_text("old")
    page = (
        console(f"cp {tmp_path}/a.png .; echo new", "old\n")
        + f"\n<!-- from: a.png -->\n![Drawn](drawn.png)\n{last}"
    )
    with pytest.raises(UsageError, match=message):
        renewed(tmp_path, page)
    assert (tmp_path / "page.md").read_text() == page
    assert (tmp_path / "drawn.png").read_text() == "old"


@pytest.mark.parametrize(
    "mistake, begin",
    [
        ("<!-- trim: 3 -->\n```console\n$ true\n```\n", "<!-- trim: 3 -->"),
        ("<!-- keep: 1 -->\n```yaml\n```\n", "<!-- keep: 1 -->"),
        ("```console\ntrue\n```\n", "```console"),
        ("```python\n1\n```\n", "```python"),
    ],
)
def test_a_mistake_in_the_page_is_found_before_anything_runs(tmp_path, mistake, begin):
    with pytest.raises(UsageError, match=f'no step begins with "{begin}"'):
        renewed(tmp_path, console(f"touch {tmp_path}/ran") + mistake)
    assert not (tmp_path / "ran").exists()


# ---- The pages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(found[1], id=f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}")
        for page in PAGES
        for text in [page.read_text()]
        for found in COMMAND.finditer(text)
    ],
)
def test_a_command_of_the_docs_is_one_that_its_tool_takes(command, tmp_path, monkeypatch):
    _, tool, *arguments = shlex.split(command.replace("\\\n", ""), comments=True)
    assert (ROOT / tool).is_file()
    args = importlib.import_module(Path(tool).stem).argument_parser().parse_args(arguments)

    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for step in STEPS:
        if step["file"]:
            Path(step["file"]).write_text(step["content"])
    files = getattr(args, "config_file", None) or []
    for file in [files] if isinstance(files, str) else files:
        if tool == "tools/pretrain_imagenet.py":  # its config has keys of its own
            assert Path(file).is_file()
        elif "$" not in file and not file.startswith("output/"):  # of the shell, of a run
            load_config(file, args.opts)


@pytest.mark.parametrize("step", [s for s in STEPS if s["script"]], ids=lambda s: s["script"][:20])
def test_a_script_of_the_tour_is_python(step):
    compile(step["script"], "tour.md", "exec")


def test_every_page_and_picture_that_the_tour_links_to_is_there():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TOUR)
    assert {step["picture"] for step in STEPS if step["picture"]} <= set(targets)
    assert [target for target in targets if not (ROOT / "docs" / target).is_file()] == []


def test_the_tour_shows_of_every_output_what_it_says_it_keeps():
    outputs = [(step["keep"], step["output"]) for step in STEPS if step["output"] is not None]
    assert outputs and all(output for _, output in outputs)
    assert [make_docs.kept(*output) for output in outputs] == [output for _, output in outputs]


def test_the_tour_begins_with_what_its_first_script_prints(tmp_path):
    beginning = TOUR.partition("## 2.")[0]
    assert renewed(tmp_path, beginning) == beginning
