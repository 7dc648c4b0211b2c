import math

import pytest

pytest.importorskip("detectron2")

from gw_detectron.errors import UsageError
from gw_detectron.runs.run import find_runs, read_run, tell_apart

from .synthetic import eval_record, everywhere, train_record, write_run


def test_a_finished_run_gives_its_losses_and_aps(tmp_path):
    path = write_run(
        tmp_path / "run",
        [
            train_record(99, 1.5),
            eval_record(99, 30.0),
            train_record(199, 1.0),
            eval_record(200, 41.0, segm__AP=35.0, **{"bbox__AP-cat": 1.0, "bbox_TTA__AP": 2.0}),
        ],
    )
    run = read_run(path)
    assert run.finished and run.problem is None and not run.diverged
    assert run.config["SOLVER.MAX_ITER"] == 200
    assert run.losses == {99: 1.5, 199: 1.0}
    assert run.evaluations == {
        "val": {
            99: {"bbox/AP": 30.0, "bbox/AP50": 50.0},
            200: {"bbox/AP": 41.0, "bbox/AP50": 61.0, "segm/AP": 35.0},
        }
    }
    assert run.final("val")["bbox/AP"] == 41.0
    assert run.final("elsewhere") == {}


def test_several_datasets_are_told_apart_by_their_prefixes(tmp_path):
    records = [train_record(199), eval_record(200, 41.0, "a/b/")]
    names = "('a/b', 'c')"
    run = read_run(write_run(tmp_path / "some", records, DATASETS__TEST=names))
    assert not run.finished and "not evaluated" in run.problem
    records += [eval_record(200, 12.0, "c/")]
    run = read_run(write_run(tmp_path / "all", records, DATASETS__TEST=names))
    assert run.problem is None
    assert run.final("a/b")["bbox/AP"] == 41.0 and run.final("c")["bbox/AP"] == 12.0


HALF = '{"iteration": 39, "total_lo'


@pytest.mark.parametrize(
    "records, losses, aps",
    [
        # a kill in the middle of a line, and a resumed run that wrote on in it
        ([train_record(19, 2.0), HALF], {19: 2.0}, {}),
        ([train_record(19, 2.0), HALF + '{"iteration": 39, "total_loss": 1}'], {19: 2, 39: 1}, {}),
        # resumed from a checkpoint at iteration 20
        (
            [train_record(19, 2.0), train_record(39, 9.0), eval_record(39, 9.0), train_record(59),
             train_record(39, 1.5), eval_record(39, 20.0), train_record(199), eval_record(200, 40)],
            {19: 2.0, 39: 1.5, 199: 1.0},
            {39: 20.0, 200: 40.0},
        ),
        # begun again
        (
            [train_record(19), train_record(199), eval_record(200, 40.0), train_record(19, 0.5)],
            {19: 0.5},
            {},
        ),
        # an evaluation is written after a later iteration's losses
        (
            [train_record(59), eval_record(49, 12.0), train_record(199), eval_record(200, 40.0)],
            {59: 1.0, 199: 1.0},
            {49: 12.0, 200: 40.0},
        ),
    ],
)  # fmt: skip
def test_what_counts_of_a_file_that_only_grows(tmp_path, records, losses, aps):
    run = read_run(write_run(tmp_path / "run", records))
    evaluations = run.evaluations.get("val", {})
    assert run.losses == losses and {i: e["bbox/AP"] for i, e in evaluations.items()} == aps
    last = max(losses)
    assert run.problem == (None if 200 in aps else f"stopped at iteration {last} of 200")


def log(error):
    return f"""Starting training from iteration 0
Exception during training:
Traceback (most recent call last):
  File "train_loop.py", line 155, in train
{error}
"""


BOXES = "Predicted boxes or scores contain Inf/NaN. Training has diverged."


@pytest.mark.parametrize(
    "records, log, diverged, problem",
    [
        (
            [train_record(59)],
            log("FloatingPointError: Loss became infinite or NaN at iteration=60!\nloss_dict = {}"),
            True,
            "diverged: loss nan at iteration 60",
        ),
        (
            [train_record(39), train_record(59, math.nan), train_record(79, math.nan)],
            None,
            True,
            "diverged: loss nan at iteration 59",
        ),
        (
            [train_record(59)],
            log(f"FloatingPointError: {BOXES}"),
            True,
            f"diverged after iteration 59: {BOXES}",
        ),
        (
            [train_record(59)],
            log("torch.OutOfMemoryError: CUDA out of memory."),
            False,
            "stopped at iteration 59 of 200: OutOfMemoryError: CUDA out of memory.",
        ),
        (
            [train_record(59)],
            log("RuntimeError: old") + "Starting training from iteration 40\n",
            False,
            "stopped at iteration 59 of 200",
        ),
        ([train_record(199)], None, False, "trained to the end, but not evaluated there"),
        ([], None, False, "stopped before its first losses"),
    ],
)
def test_why_a_run_ended_early_is_said(tmp_path, records, log, diverged, problem):
    run = read_run(write_run(tmp_path / "run", records, log=log))
    assert (run.finished, run.diverged, run.problem) == (False, diverged, problem)


def test_a_run_that_detects_nothing_is_finished_without_a_result(tmp_path):
    run = read_run(write_run(tmp_path / "run", [train_record(199), eval_record(200, math.nan)]))
    assert run.finished and run.problem == "no box AP on val: it detects nothing there"


def test_what_is_missing_is_said(tmp_path):
    path = tmp_path / "run"
    write_run(path, [train_record(199)])
    (path / "metrics.json").unlink()
    assert read_run(str(path)).problem == "no metrics.json"
    (path / "config.yaml").write_text("model: {_target_: x}\ntrain: {max_iter: 9}\n")
    assert "LazyConfig" in read_run(str(path)).problem
    (path / "config.yaml").unlink()
    assert read_run(str(path)).problem == "no config.yaml"


def test_a_config_that_would_run_code_is_not_read_unless_it_is_trusted(tmp_path):
    path = tmp_path / "run"
    write_run(path)
    trap = f"TRAP: !!python/object/apply:os.mkdir ['{tmp_path / 'trap'}']\n"
    (path / "config.yaml").write_text(f"{(path / 'config.yaml').read_text()}{trap}")
    run = read_run(str(path))
    assert "YAML tag" in run.problem and "--trust-config" in run.problem and not run.config
    assert not (tmp_path / "trap").exists()
    assert read_run(str(path), trust=True).finished and (tmp_path / "trap").exists()


def test_its_files_and_its_label(tmp_path):
    path = write_run(tmp_path / "run", DATASETS__TEST="('val', 'pets')", **everywhere("GN"))
    run = read_run(path)
    assert (run.label, run.test_sets) == ("GN", ["val", "pets"])
    assert run.weights == f"{path}/model_final.pth"
    file = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert run.results_file("pets") is None
    file.parent.mkdir()
    file.touch()
    assert run.results_file("pets") == str(file)  # where Detectron2 has put those of "val" before
    assert run.results_file("val") is None


def test_labels_are_told_apart_by_what_the_paths_do_not_share():
    paths = ["out/GN/seed1", "out/GN/seed2/", "out/GW/seed1"]
    assert tell_apart(["GN", "GN", "GW"], paths) == ["GN (seed1)", "GN (seed2)", "GW"]
    assert tell_apart(["GN"] * 3, paths)[1:] == ["GN (GN/seed2)", "GN (GW/seed1)"]
    assert tell_apart(["GN", "GW"], ["out", "out"]) == ["GN", "GW"]
    with pytest.raises(UsageError, match="out is given twice"):
        tell_apart(["GN", "GN"], ["out", "out"])


def test_runs_are_found_in_directories_each_once(tmp_path):
    for name in ("b/seed2", "b/seed1", "a"):
        write_run(tmp_path / name)
    (tmp_path / "a" / "inference").mkdir()
    found = [run.path for run in find_runs([str(tmp_path / "b" / "seed2"), str(tmp_path)])]
    assert found == [str(tmp_path / name) for name in ("b/seed2", "a", "b/seed1")]
    with pytest.raises(UsageError, match="no directory .*nowhere"):
        find_runs([str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="no run in"):
        find_runs([str(tmp_path / "a" / "inference")])
