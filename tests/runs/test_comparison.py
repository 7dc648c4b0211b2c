"""The order of things around the training runs, for which a script writes results at once here."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import compare_norms
import train_net
from gw_detectron.engine import setup
from gw_detectron.errors import UsageError
from gw_detectron.runs import comparison

from ..locks import lock_held
from .synthetic import train_record, write_run

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
        opts = ["MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm, "SEED", str(seed)]
        arguments = ["--config-file", CONFIG, *ON_SHAPES, *opts, "MODEL.DEVICE", "cpu"]
        cfg = setup(train_net.argument_parser().parse_args(arguments))
        write_run(outcome, cfg=cfg, **how)
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
def compare(tmp_path, training):
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
    assert "- GN - BN: +3.0, [3.0, 3.0] over 2 seeds\n" in text and "(comparison.png)" in text
    assert (output / "comparison.png").stat().st_size > 10_000
    assert {p.name for p in output.glob("*/*/*.pth")} == {"model_final.pth"}
    begun, done = capfd.readouterr().out.splitlines()[:2]
    assert begun == f"{output}/BN/seed1: started" and done == f"{output}/BN/seed1: box AP 40.0"


def test_finished_runs_are_not_repeated_and_norms_and_seeds_can_be_added(
    compare, training, tmp_path, capfd
):
    compare("BN")
    table = compare("GN", options=["--seeds", "2"])
    assert training.started == ["BN 1", "GN 1", "GN 2"]
    assert [(line.norm, len(line.runs)) for line in table.lines] == [("GN", 2), ("BN", 1)]
    compare("BN", "GN", options=["--seeds", "2"])
    assert training.started[3:] == ["BN 2"]
    assert "GN/seed1: is there, box AP 40.0\n" in capfd.readouterr().out


def test_runs_that_fail_or_diverge_are_named_and_the_first_are_tried_again(
    compare, training, tmp_path
):
    training.set("BN", text="Traceback ...\nerror: no weights\n\n")
    training.set("GN", records=[train_record(59)], log="FloatingPointError: Loss became NaN\n")
    table = compare("BN", "GN")
    folder = tmp_path / "output" / "BN" / "seed1"
    diverged = (f"{tmp_path}/output/GN/seed1", "diverged: Loss became NaN")
    assert table.problems == [(str(folder), "failed: error: no weights"), diverged]
    text = (tmp_path / "output" / "comparison.md").read_text()
    assert f"- {folder}: failed: error: no weights" in text
    assert (folder / "console.txt").read_text().startswith("Traceback")
    training.set("BN")
    table = compare("BN", "GN")
    assert [line.norm for line in table.lines] == ["BN"] and table.problems == [diverged]
    assert training.started == ["BN 1", "GN 1", "BN 1"]


def test_every_run_gets_its_seed_its_folder_and_the_same_rest(compare, training, tmp_path):
    training.script.write_text("import sys\nsys.exit(' '.join(sys.argv[1:]))")
    options = ["--trust-config", "--num-gpus", "2", "--seeds", "2"]
    table = compare("GN", options=options)
    common = f"failed: --config-file {CONFIG} --resume --num-gpus 2 --dist-url auto --trust-config "
    common += f"{' '.join(ON_SHAPES)} MODEL.RESNETS.NORM GN MODEL.FPN.NORM GN "
    for seed, (folder, problem) in enumerate(table.problems, 1):
        assert folder == f"{tmp_path}/output/GN/seed{seed}"
        assert problem == f"{common}SEED {seed} OUTPUT_DIR {folder}"
    assert len(table.problems) == 2


@pytest.mark.parametrize(
    "norms, more, fragments",
    [
        (["GM"], {}, ["GM", "GN"]),
        (["a: MODEL.FPN.NORM 'GW(num_groups=48)'"], {}, ['"a"', "48"]),
        (["a: MODEL.RESNETS.NORMS GN"], {}, ['"a"', "MODEL.RESNETS.NORMS"]),
        (["a: SEED 3"], {}, ["SEED", "--seeds"]),
        (["a: MODEL.WEIGHTS gw://R-18-GW.pth"], {}, ['"a"', "R-18-GW.pth"]),
        (["GN"], {"opts": (*ON_SHAPES, "OUTPUT_DIR", "x")}, ["OUTPUT_DIR", "--output"]),
        (["GN"], {"opts": (*ON_SHAPES[:2], "DATASETS.TEST", "()")}, ["DATASETS.TEST"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(compare, tmp_path, norms, more, fragments):
    with pytest.raises(UsageError) as error:
        compare(*norms, **more)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message
    assert not (tmp_path / "output").exists()


def test_a_run_of_another_config_is_not_taken_for_one_of_the_comparison(compare):
    compare("BN")
    compare("BN", opts=(*ON_SHAPES, "MODEL.DEVICE", "cpu"))  # does not mind where it runs
    with pytest.raises(UsageError, match="BN/seed1 was run with SOLVER.MAX_ITER 200, not .* 90:"):
        compare("BN", opts=(*ON_SHAPES, "SOLVER.MAX_ITER", "90"))


def test_an_output_directory_is_for_one_process_at_a_time(compare, tmp_path):
    (tmp_path / "output").mkdir()
    with lock_held(tmp_path / "output"), pytest.raises(UsageError, match="--output .* in use"):
        compare("BN")
