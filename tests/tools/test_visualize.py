import pytest

pytest.importorskip("detectron2")

import visualize
from gw_detectron.errors import UsageError

from ..runs.pets import (
    forgotten,
    perfect,
    write_dataset,
    write_json,
    write_tested_run,
)
from ..runs.synthetic import everywhere


@pytest.fixture
def dataset(tmp_path):
    """What follows --dataset."""
    with forgotten("pets"):
        yield write_dataset(tmp_path / "data")


def run(*arguments):
    visualize.main(visualize.argument_parser().parse_args(list(map(str, arguments))))


def test_runs_are_shown_on_the_dataset_that_is_given(dataset, tmp_path, capsys):
    gn = write_tested_run(tmp_path / "gn", [], **everywhere("GN"))
    gw = write_tested_run(tmp_path / "gw", perfect(), **everywhere("GW"))
    out = tmp_path / "out"
    run(gn, f"ours={gw}", "--dataset", *dataset, "--output", out, "--images", 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"GN: box AP 0.00 on pets, from {gn}/inference/coco_instances_results.json",
        f"ours: box AP 100.00 on pets, from {gw}/inference/coco_instances_results.json",
        f"2 of 4 images are drawn in {out}/index.html",
    ]
    assert [path.name for path in out.iterdir()] == ["index.html"]


def test_the_dataset_of_several_is_the_runs_or_the_one_that_is_named(dataset, tmp_path, capsys):
    run_dir = write_tested_run(tmp_path / "run", perfect())
    file = write_json(tmp_path / "found.json", perfect())
    with forgotten("more"):
        both = ["--dataset", "more", *dataset[1:], "--dataset", *dataset]
        run(run_dir, *both, "--output", tmp_path)
        assert "box AP 100.00 on pets" in capsys.readouterr().out
        run(file, *both, "--on", "more", "--output", tmp_path)
        assert "found: box AP 100.00 on more" in capsys.readouterr().out
        with pytest.raises(UsageError, match="--on"):
            run(file, *both)
        with pytest.raises(UsageError, match="--output .*found.json: File exists"):
            run(run_dir, *both, "--output", file)
