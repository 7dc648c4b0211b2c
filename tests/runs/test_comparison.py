"""The order of things around the training runs, for which a script writes results at once here."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import compare_norms
from gw_detectron.errors import UsageError
from gw_detectron.runs import comparison

from ..locks import lock_held
from .synthetic import everywhere, train_record, write_run

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart" / "faster_rcnn_R_18_FPN_gn.yaml")
ON_SHAPES = ("DATASETS.TRAIN", "('gw_shapes_train',)", "DATASETS.TEST", "('gw_shapes_val',)")

# What "norm seed" has in the folder beside it: a run to be copied, or a text to fail with
TRAIN_NET = """
import pathlib, shutil, sys
arguments = dict(zip(sys.argv, sys.argv[1:]))
run = f"{arguments['MODEL.FPN.NORM']} {arguments['SEED']}"
here = pathlib.Path(__file__).parent
with open(here / "started", "a") as file:
    print(run, file=file)
outcome = here / run
if outcome.is_file():
    sys.exit(outcome.read_text())
shutil.copytree(outcome, arguments["OUTPUT_DIR"], dirs_exist_ok=True)
"""


class Training:
    """Stands for tools/train_net.py."""

    def __init__(self, folder):
        self.folder, self.script = folder, folder / "train_net.py"
        folder.mkdir()
        self.script.write_text(TRAIN_NET)

    def set(self, norm, seed=1, text="", **how):
        """What it makes: a run as write_run writes it, or nothing but a text."""
        outcome = self.folder / f"{norm} {seed}"
        shutil.rmtree(outcome) if outcome.is_dir() else outcome.unlink(missing_ok=True)
        if text:
            return outcome.write_text(text)
        write_run(outcome, SEED=seed, **everywhere(norm), **how)
        for name in ("model_0000099.pth", "model_final.pth"):
            (outcome / name).touch()

    @property
    def started(self):
        return (self.folder / "started").read_text().splitlines()


@pytest.fixture
def training(tmp_path):
    training = Training(tmp_path / "training")
    for norm in ("BN", "GN"):
        for seed in (1, 2):
            training.set(norm, seed)
    return training


@pytest.fixture
def compare(tmp_path, training, monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS_BETWEEN_LOOKS", 0.05)

    def run(*norms, options=(), opts=ON_SHAPES):
        command = ["--config-file", CONFIG, "--output", str(tmp_path / "output")]
        command += ["--norms", *norms, "--seeds", "1", *options, *opts]
        args = compare_norms.argument_parser().parse_args(command)
        return comparison.compare(args, str(training.script))

    return run


def test_all_norms_of_a_seed_come_before_the_next_seed(compare, training, tmp_path, capfd):
    for norm, seed, ap in (("BN", 1, 40.0), ("BN", 2, 42.0), ("GN", 1, 43.0), ("GN", 2, 45.0)):
        training.set(norm, seed, ap=ap)
    table = compare("BN", "GN", options=["--seeds", "2"])
    assert training.started == ["BN 1", "GN 1", "BN 2", "GN 2"]
    means = [(line.norm, line.aps["bbox/AP"].mean()) for line in table.lines]
    assert means == [("BN", 41.0), ("GN", 44.0)] and table.problems == []

    output = tmp_path / "output"
    text = (output / "comparison.md").read_text()
    assert "+3.00 |" in text and "(comparison.png)" in text
    assert "- GN: `MODEL.RESNETS.NORM GN MODEL.FPN.NORM GN`" in text
    assert (output / "comparison.png").stat().st_size > 10_000
    assert {p.name for p in output.glob("*/*/*.pth")} == {"model_final.pth"}
    begun, done = capfd.readouterr().out.splitlines()[:2]
    assert begun == f"run 1 of 4: BN, seed 1: started, in {output / 'BN' / 'seed1'}"
    assert done.startswith("run 1 of 4: BN, seed 1: box AP 40.0, after ")


def test_finished_runs_are_not_repeated_and_norms_and_seeds_can_be_added(
    compare, training, tmp_path, capfd
):
    compare("BN")
    table = compare("GN", options=["--seeds", "2", "--keep-checkpoints"])
    assert training.started == ["BN 1", "GN 1", "GN 2"]
    checkpoints = (tmp_path / "output").glob("*/seed1/model_0*.pth")
    assert [path.parent.parent.name for path in checkpoints] == ["GN"]
    assert [(line.norm, len(line.runs)) for line in table.lines] == [("BN", 1), ("GN", 2)]
    compare("BN", "GN", options=["--seeds", "2"])
    assert training.started[3:] == ["BN 2"]
    assert "run 2 of 4: GN, seed 1: is there, box AP 40.0\n" in capfd.readouterr().out


def test_a_failing_run_is_named_and_the_rest_is_run_and_next_time_it_is_tried_again(
    compare, training, tmp_path
):
    training.set("BN", text="Traceback ...\nerror: no weights\n\n")
    table = compare("BN", "GN")
    assert [line.norm for line in table.lines] == ["GN"]
    folder = str(tmp_path / "output" / "BN" / "seed1")
    assert table.problems == [(folder, "failed: error: no weights")]
    text = (tmp_path / "output" / "comparison.md").read_text()
    assert f"- {folder}: failed: error: no weights" in text
    training.set("BN")
    assert compare("BN", "GN").problems == []
    assert training.started == ["BN 1", "GN 1", "BN 1"]


def test_a_diverged_run_is_named_and_not_tried_again(compare, training):
    training.set("BN", records=[train_record(59, float("nan"))])
    for _ in range(2):
        ((_, problem),) = compare("BN", "GN").problems
        assert problem == "diverged: loss nan at iteration 59"
    assert training.started == ["BN 1", "GN 1"]


def test_every_run_gets_its_seed_its_folder_and_the_same_rest(compare, training, tmp_path):
    training.script.write_text("import sys\nsys.exit(' '.join(sys.argv[1:]))")
    options = ["--trust-config", "--num-gpus", "2", "--seeds", "2"]
    table = compare("GN", options=options, opts=[*ON_SHAPES, "MODEL.DEVICE", "cpu"])
    common = f"failed: --config-file {CONFIG} --resume --num-gpus 2 --dist-url auto --trust-config "
    common += f"{' '.join(ON_SHAPES)} MODEL.DEVICE cpu MODEL.RESNETS.NORM GN MODEL.FPN.NORM GN "
    folders = [f"{tmp_path}/output/GN/seed{seed}" for seed in (1, 2)]
    assert table.problems == [
        (folder, f"{common}SEED {seed} OUTPUT_DIR {folder}")
        for seed, folder in enumerate(folders, 1)
    ]


@pytest.mark.parametrize(
    "norms, more, fragments",
    [
        (["GM"], {}, ["GM", "GN"]),
        (["GW(num_groups=48)"], {}, ["48"]),
        (["a: MODEL.FPN.NORM 'GW(num_groups=48)'"], {}, ['"a"', "48"]),
        (["a: MODEL.RESNETS.NORMS GN"], {}, ['"a"', "MODEL.RESNETS.NORMS"]),
        (["a: SEED 3"], {}, ["SEED", "--seeds"]),
        (["a: SOLVER.MAX_ITER 0"], {}, ['"a"', "SOLVER.MAX_ITER 0"]),
        (["a: DATASETS.TEST \"('nowhere',)\""], {}, ['"a"', "nowhere"]),
        (["a: MODEL.WEIGHTS gw://R-18-GW.pth"], {}, ['"a"', "R-18-GW.pth"]),
        (["GN"], {"opts": (*ON_SHAPES, "OUTPUT_DIR", "x")}, ["OUTPUT_DIR", "--output"]),
        (["GN"], {"opts": (*ON_SHAPES[:2], "DATASETS.TEST", "()")}, ["DATASETS.TEST"]),
        (["GN"], {"options": ["--seeds", "0"]}, ["--seeds 0"]),
        (["GN"], {"options": ["--num-gpus", "2"]}, ["2 processes", "MODEL.DEVICE cpu"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(compare, tmp_path, norms, more, fragments):
    with pytest.raises(UsageError) as error:
        compare(*norms, **more)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message
    assert not (tmp_path / "output").exists()


def test_an_output_directory_takes_nothing_else(compare):
    compare("BN: MODEL.FPN.NORM GN")
    compare("GN", opts=(*ON_SHAPES, "MODEL.DEVICE", "cpu"))  # does not mind where it runs
    with pytest.raises(UsageError, match="another BN, MODEL.FPN.NORM GN"):
        compare("BN")
    with pytest.raises(UsageError, match="SOLVER.MAX_ITER 200, not SOLVER.MAX_ITER 90"):
        compare("GN", opts=(*ON_SHAPES, "SOLVER.MAX_ITER", "90"))


@pytest.mark.parametrize("text", ["", '{"config": {}, "x": 1}', "[]"])
def test_an_output_directory_with_anything_else_in_it_is_left_alone(compare, tmp_path, text):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "comparison.json").write_text(text)
    with pytest.raises(UsageError, match=r"not empty, and .* can't be read"):
        compare("BN")


def test_an_output_directory_is_for_one_process_at_a_time(compare, tmp_path):
    (tmp_path / "output").mkdir()
    with lock_held(tmp_path / "output"), pytest.raises(UsageError, match="--output .* in use"):
        compare("BN")
