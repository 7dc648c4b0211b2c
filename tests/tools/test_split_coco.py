import json

import pytest

pytest.importorskip("detectron2")

import split_coco
from gw_detectron.errors import UsageError

from ..runs.pets import content, write_json


def run(*arguments):
    split_coco.main(split_coco.argument_parser().parse_args([str(a) for a in arguments]))


def test_it_writes_two_files_and_says_what_is_in_them(tmp_path, capsys):
    file = write_json(tmp_path / "pets.json", content())
    run(file, "--fraction", 0.25, "--output", tmp_path / "split")
    train, val = (json.loads((tmp_path / f"split/{n}.json").read_text()) for n in ("train", "val"))
    assert [len(part["images"]) for part in (train, val)] == [3, 1]
    said = [
        f"{tmp_path}/split/{name}.json: {len(p['images'])} images, {len(p['annotations'])} annota"
        for name, p in (("train", train), ("val", val))
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line.removesuffix("tions") for line in lines] == said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing.json", "--output", "out"], "nothing.json can't be read: No such file"),
        (["text.json", "--output", "out"], "text.json is not a JSON file"),
        (["list.json", "--output", "out"], "list.json: not in COCO format"),
        (["pets.json", "--output", "there"], "there can't be written: File exists"),
        (["pets.json", "--fraction", "1", "--output", "out"], "pets.json: the fraction is 1.0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("text")
    write_json(tmp_path / "list.json", [])
    write_json(tmp_path / "pets.json", content())
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
