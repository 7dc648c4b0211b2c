"""The order of things around the training runs, which write their results at once here."""

import io
import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from gw_detectron.errors import UsageError
from gw_detectron.runs import comparison as module
from gw_detectron.runs import training
from gw_detectron.runs.comparison import prepare
from gw_detectron.runs.progress import Progress

from ..locks import lock_held
from .synthetic import everywhere, train_record, write_run

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart" / "faster_rcnn_R_18_FPN_gn.yaml")
ON_SHAPES = ("DATASETS.TRAIN", "('gw_shapes_train',)", "DATASETS.TEST", "('gw_shapes_val',)")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_build", lambda cfg: None)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.01)


@pytest.fixture
def comparison(tmp_path):
    def make(*norms, num_seeds=1, opts=ON_SHAPES, **more):
        output = str(tmp_path / "output")
        return prepare(CONFIG, norms, num_seeds, output, opts=opts, **more)

    return make


@pytest.fixture
def trained(monkeypatch):
    """
    Replaces training by what `outcomes` says for (norm, seed): an AP, the text on the console of a
    run that fails, or a list of records. Returns outcomes, and the runs in the order of starting.
    """
    outcomes, started = {}, []

    def start(arguments, console):
        norm = arguments[arguments.index("MODEL.FPN.NORM") + 1]
        seed = int(arguments[arguments.index("SEED") + 1])
        folder = Path(arguments[-1])
        started.append((norm, seed))
        outcome = outcomes.get((norm, seed), 40.0)
        if isinstance(outcome, str):
            Path(console).write_text(outcome)
            return subprocess.Popen(["false"], start_new_session=True)
        assert not any(folder.iterdir())
        folder.rmdir()
        how = {"records": outcome} if isinstance(outcome, list) else {"ap": outcome}
        write_run(folder, SEED=seed, **everywhere(norm), **how)
        for name in ("model_0000099.pth", "model_final.pth"):
            (folder / name).touch()
        return subprocess.Popen(["true"], start_new_session=True)

    monkeypatch.setattr(training, "start", start)
    return outcomes, started


def test_all_norms_of_a_seed_come_before_the_next_seed(comparison, trained):
    outcomes, started = trained
    outcomes |= {("BN", 1): 40.0, ("BN", 2): 42.0, ("GN", 1): 43.0, ("GN", 2): 45.0}
    table = comparison("BN", "GN", num_seeds=2).run()
    assert started == [("BN", 1), ("GN", 1), ("BN", 2), ("GN", 2)]
    assert [(line.norm, line.values["bbox/AP"].mean) for line in table.lines] == [
        ("BN", 41.0),
        ("GN", 44.0),
    ]
    assert table.problems == []


def test_it_leaves_the_table_the_plot_and_the_last_checkpoints(comparison, trained, tmp_path):
    comparison("BN", "GW(num_groups=16)").run()
    output = tmp_path / "output"
    text = (output / "comparison.md").read_text()
    assert "| GW(num_groups=16) |" in text and "(comparison.png)" in text
    assert (output / "comparison.png").stat().st_size > 10_000
    assert {p.name for p in output.glob("*/*/*.pth")} == {"model_final.pth"}
    assert len(list(output.glob("GW-num_groups=16/seed1/model_final.pth"))) == 1


def test_checkpoints_are_kept_on_request(comparison, trained, tmp_path):
    comparison("BN", keep_checkpoints=True).run()
    assert len(list((tmp_path / "output").glob("BN/seed1/*.pth"))) == 2


def test_finished_runs_are_not_repeated_and_norms_and_seeds_can_be_added(comparison, trained):
    _, started = trained
    comparison("BN").run()
    table = comparison("GN", num_seeds=2).run()
    assert started == [("BN", 1), ("GN", 1), ("GN", 2)]
    assert [(line.norm, len(line.runs)) for line in table.lines] == [("BN", 1), ("GN", 2)]
    comparison("BN", "GN", num_seeds=2).run()
    assert started[3:] == [("BN", 2)]


def test_a_failing_run_is_named_and_the_rest_goes_on_and_next_time_it_is_tried_again(
    comparison, trained, tmp_path
):
    outcomes, started = trained
    outcomes["BN", 1] = "Traceback ...\nerror: no weights\n\n"
    table = comparison("BN", "GN").run()
    assert [line.norm for line in table.lines] == ["GN"]
    folder = str(tmp_path / "output" / "BN" / "seed1")
    assert table.problems == [(folder, "failed: error: no weights")]
    assert (
        f"- {folder}: failed: error: no weights"
        in Path(tmp_path / "output" / "comparison.md").read_text()
    )
    (tmp_path / "output" / "BN" / "seed1" / "console.txt").unlink()
    outcomes["BN", 1] = 41.0
    assert comparison("BN", "GN").run().problems == []
    assert started == [("BN", 1), ("GN", 1), ("BN", 1)]


def test_a_diverged_run_is_named_and_not_tried_again(comparison, trained):
    outcomes, started = trained
    outcomes["BN", 1] = [train_record(59, float("nan"))]
    for _ in range(2):
        ((_, problem),) = comparison("BN", "GN").run().problems
        assert problem == "diverged: loss nan at iteration 59"
    assert started == [("BN", 1), ("GN", 1)]


def test_it_tells_what_it_does(comparison, trained, tmp_path):
    comparison("BN").run()
    comparison("BN", "GN").run(Progress(2, out := io.StringIO()))
    there, begun, done = out.getvalue().splitlines()
    assert there == "run 1 of 2: BN, seed 1: is there, box AP 40.0"
    assert begun == f"run 2 of 2: GN, seed 1: started, in {tmp_path / 'output' / 'GN' / 'seed1'}"
    assert done.startswith("run 2 of 2: GN, seed 1: box AP 40.0, after ")


def test_an_interruption_stops_the_run_in_progress(comparison, monkeypatch):
    processes = []

    def start(arguments, console):
        processes.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        return processes[-1]

    class Interrupted(Progress):
        def show(self, text):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "start", start)
    with pytest.raises(KeyboardInterrupt):
        comparison("BN", "GN").run(Interrupted(2))
    assert [process.poll() for process in processes] == [-15]


def test_every_run_gets_its_seed_its_folder_and_the_same_rest(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    made = comparison("BN", "GN", num_seeds=2, num_gpus=4)
    bn, gn = made.entries
    arguments = made.arguments_of(gn, 2)
    assert arguments[:5] == ["--config-file", CONFIG, "--resume", "--num-gpus", "4"]
    assert arguments[-4:] == ["SEED", "2", "OUTPUT_DIR", str(tmp_path / "output/GN/seed2")]
    others = made.arguments_of(bn, 2)
    assert [b for b in others if b not in arguments] == [
        "BN",
        "BN",
        str(tmp_path / "output/BN/seed2"),
    ]


@pytest.mark.parametrize(
    "norms, more, fragments",
    [
        (["GM"], {}, ["GM", "GN"]),
        (["a: MODEL.RESNETS.NORMS GN"], {}, ['"a"', "MODEL.RESNETS.NORMS"]),
        (["a: SEED 3"], {}, ["SEED", "--seeds"]),
        (["a: SOLVER.MAX_ITER many"], {}, ["SOLVER.MAX_ITER", "many"]),
        (["a: SOLVER.MAX_ITER 0"], {}, ['"a"', "SOLVER.MAX_ITER 0"]),
        (["a: DATASETS.TEST \"('nowhere',)\""], {}, ['"a"', "nowhere"]),
        (["a: MODEL.WEIGHTS gw://R-18-GW.pth"], {}, ['"a"', "R-18-GW.pth"]),
        (["GN"], {"opts": (*ON_SHAPES, "OUTPUT_DIR", "x")}, ["OUTPUT_DIR", "--output"]),
        (["GN"], {"opts": (*ON_SHAPES[:2], "DATASETS.TEST", "()")}, ["DATASETS.TEST"]),
        (["GN"], {"num_seeds": 0}, ["--seeds 0"]),
        (["GN"], {"num_gpus": -1}, ["--num-gpus -1"]),
        (["GN"], {"num_gpus": 2}, ["2 processes", "MODEL.DEVICE cpu"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(comparison, tmp_path, norms, more, fragments):
    with pytest.raises(UsageError) as error:
        comparison(*norms, **more)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message
    assert not (tmp_path / "output").exists()


def test_a_model_that_cannot_be_built_is_found_before_anything_runs(comparison, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UsageError, match="48"):
        comparison("GN", "GW(num_groups=48)")
    with pytest.raises(UsageError, match='"odd".*S4'):
        comparison(
            "odd: MODEL.BACKBONE.NAME build_gw_resnet_fpn_backbone MODEL.GW.POSITIONS S4"
            " MODEL.RESNETS.NORM GN"
        )


class TestAnOutputDirectory:
    def test_takes_no_other_config(self, comparison, trained):
        comparison("BN").run()
        with pytest.raises(UsageError, match="SOLVER.MAX_ITER 200, not SOLVER.MAX_ITER 90"):
            comparison("GN", opts=(*ON_SHAPES, "SOLVER.MAX_ITER", "90"))

    def test_does_not_mind_where_it_runs(self, comparison, trained):
        comparison("BN").run()
        comparison("BN", opts=(*ON_SHAPES, "MODEL.DEVICE", "cpu"))

    def test_takes_no_other_entry_of_a_name(self, comparison, trained):
        comparison("a: MODEL.FPN.NORM GN").run()
        with pytest.raises(UsageError, match="another a, MODEL.FPN.NORM GN"):
            comparison("a: MODEL.FPN.NORM BN")

    def test_with_anything_else_in_it_is_left_alone(self, comparison, tmp_path):
        write_run(tmp_path / "output")
        with pytest.raises(UsageError, match="not empty"):
            comparison("BN")

    def test_with_a_state_that_is_unreadable_is_left_alone(self, comparison, trained, tmp_path):
        comparison("BN").run()
        (tmp_path / "output" / "comparison.json").write_text(json.dumps({"config": {}, "x": 1}))
        with pytest.raises(UsageError, match="can't be read"):
            comparison("BN")

    def test_is_for_one_process_at_a_time(self, comparison, trained, tmp_path):
        comparison("BN").run()
        with lock_held(tmp_path / "output"), pytest.raises(UsageError, match="--output .* in use"):
            comparison("BN").run()
