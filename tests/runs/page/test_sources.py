import os

import pytest

pytest.importorskip("detectron2")

from gw_detectron.errors import UsageError
from gw_detectron.runs.page import common_dataset, find_sources

from ..synthetic import everywhere, train_record, write_run
from .synthetic import write_json, write_tested_run


def labels(*texts):
    return [source.label for source in find_sources([str(text) for text in texts])[0]]


def test_runs_are_called_by_their_norms_and_files_by_their_names(tmp_path):
    gn = write_tested_run(tmp_path / "a", [], **everywhere("GN"))
    gw = write_tested_run(tmp_path / "b", [], **everywhere("GW(num_groups=16)"))
    file = write_json(tmp_path / "best.json", [])
    assert labels(gn, gw, file) == ["GN", "GW(num_groups=16)", "best"]


def test_a_label_can_be_given_whatever_signs_are_in_it_and_in_the_path(tmp_path):
    run = write_tested_run(tmp_path / "GW-num_groups=16" / "seed1", [], **everywhere("GW"))
    assert labels(run) == ["GW"]
    for label in ("ours", "g=16", "GW, 16 groups"):
        assert labels(f"{label}={run}") == [label]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for seed in ("seed1", "seed2"):
        write_tested_run(tmp_path / "GN" / seed, [], **everywhere("GN"))
    write_tested_run(tmp_path / "BN" / "seed1", [], **everywhere("BN"))
    assert labels(tmp_path) == ["BN", "GN (seed1)", "GN (seed2)"]
    assert labels(f"mine={tmp_path / 'GN'}") == ["mine (seed1)", "mine (seed2)"]


def test_unfinished_runs_are_left_out_of_a_directory_with_others(tmp_path):
    write_tested_run(tmp_path / "done", [], **everywhere("GN"))
    write_run(tmp_path / "late", [train_record(119)], **everywhere("BN"))
    sources, left_out = find_sources([str(tmp_path)])
    assert [source.label for source in sources] == ["GN"]
    (line,) = left_out
    assert line.startswith(str(tmp_path / "late")) and "stopped at iteration 119" in line


def test_results_are_those_of_the_last_test_set(tmp_path):
    run = write_tested_run(tmp_path / "run", [], test="('val', 'pets')")
    (source,), _ = find_sources([run])
    file = os.path.join(run, "inference", "coco_instances_results.json")
    assert source.results_of("pets") == file
    assert source.results_of("val") is None and source.results_of("other") is None
    (source,), _ = find_sources([file])
    assert source.results_of("whatever") == file


def test_a_run_without_results_has_to_be_run(tmp_path):
    run = write_run(tmp_path / "run", DATASETS__TEST="('pets',)")
    (tmp_path / "run" / "model_final.pth").touch()
    (source,), _ = find_sources([run])
    assert source.results_of("pets") is None
    assert source.weights == os.path.join(run, "model_final.pth")


@pytest.mark.parametrize(
    "text, message",
    [
        ("nowhere", "no run directory or results file nowhere"),
        ("label=nowhere", "no run directory or results file label=nowhere"),
        ("empty", "no run in empty"),
        ("late", "late: it has neither inference.* nor model_final.pth .stopped at iteration 119"),
        ("lazy", "lazy: config.yaml has no SOLVER.MAX_ITER.*results file alone can be given"),
    ],
)
def test_a_mistake_says_what_is_wrong(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "late", [train_record(119)])
    (tmp_path / "lazy").mkdir()
    (tmp_path / "lazy" / "config.yaml").write_text("model: {}")
    with pytest.raises(UsageError, match=message) as error:
        find_sources([text])
    assert "\n" not in str(error.value)


def test_one_run_twice_is_a_mistake(tmp_path):
    run = write_tested_run(tmp_path / "run", [])
    with pytest.raises(UsageError, match="given twice"):
        find_sources([run, f"other={run}"])


@pytest.mark.parametrize(
    "test_sets, expected",
    [
        (["('a',)", "('a',)"], "a"),
        (["('a', 'b')", "('b', 'c')"], "b"),
        (["('a', 'b')", "('a', 'b')"], "evaluated on a, b"),
        (["('a',)", "('b',)"], "evaluated on a, b"),
        ([], "--on$"),
    ],
)
def test_dataset_is_the_one_that_all_runs_were_evaluated_on(tmp_path, test_sets, expected):
    paths = [write_tested_run(tmp_path / str(i), [], test=test) for i, test in enumerate(test_sets)]
    sources, _ = find_sources([*paths, write_json(tmp_path / "file.json", [])])
    if len(expected) == 1:
        assert common_dataset(sources) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            common_dataset(sources)
