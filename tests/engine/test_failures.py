import logging
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from gw_detectron import engine
from gw_detectron.engine.failures import explained
from gw_detectron.errors import UsageError
from gw_detectron.runs.run import read_run

from .commands import ROOT, arguments, command


def run_tool(*args, **kwargs):
    tool = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    return subprocess.run([*tool, *args], capture_output=True, text=True, **kwargs)


def test_a_run_that_diverges_ends_with_one_line(own_data, tmp_path):
    opts = ["SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", 0, "SOLVER.CHECKPOINT_PERIOD", 1]
    run = run_tool(*command(own_data[:4], tmp_path, opts=opts))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(
        "train_net.py: error: training diverged at iteration "
    )
    assert "Traceback" not in run.stdout + run.stderr
    assert "Traceback" in (tmp_path / "log.txt").read_text()
    assert read_run(str(tmp_path)).problem.startswith("diverged: ")


def test_a_disk_that_fills_ends_training_with_one_line_and_the_checkpoint_before(
    own_data, tmp_path
):
    engine.main(arguments(own_data[:4], tmp_path, opts=["SOLVER.MAX_ITER", 1]))
    before = (tmp_path / "model_final.pth").read_bytes()

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 2**20,) * 2)

    opts = ["SOLVER.MAX_ITER", 2]
    run = run_tool(
        *command(own_data[:4], tmp_path, "--resume", opts=opts), preexec_fn=no_large_files
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == (
        f"train_net.py: error: the disk with OUTPUT_DIR {tmp_path} is full at iteration 1; "
        f"the last checkpoint is safe: {tmp_path}/model_final.pth; make room and add --resume"
    )
    assert "Traceback" not in run.stdout + run.stderr
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.fixture
def trainer():
    """At iteration 7, without a checkpoint."""
    cfg = SimpleNamespace(OUTPUT_DIR="output")
    checkpointer = SimpleNamespace(has_checkpoint=lambda: False)
    return SimpleNamespace(iter=7, cfg=cfg, checkpointer=checkpointer)


@pytest.mark.parametrize("value, text", [("nan", "nan"), ("inf", "inf"), ("-inf", "-inf")])
def test_the_losses_that_are_not_finite_are_named(trainer, value, text):
    losses = {"loss_cls": torch.tensor(1.0), "loss_box_reg": torch.tensor(float(value))}
    with pytest.raises(UsageError) as error, explained(trainer), EventStorage():
        SimpleTrainer.write_metrics(losses, 0.0, 7)
    assert str(error.value) == (
        f"training diverged at iteration 7: loss_box_reg {text}; there is no checkpoint yet; "
        "a lower SOLVER.BASE_LR or more SOLVER.WARMUP_ITERS may help"
    )


def test_what_else_is_not_finite_is_told_as_it_was(trainer):
    with (
        pytest.raises(UsageError, match="at iteration 7: boxes are NaN; there"),
        explained(trainer),
    ):
        raise FloatingPointError("boxes\n are NaN")


def test_a_mistake_found_in_training_stays_one_line(trainer, capsys):
    console = logging.StreamHandler(sys.stdout)
    logger = logging.getLogger("detectron2")
    logger.addHandler(console)
    with pytest.raises(UsageError, match="^an image is gone$"), explained(trainer):
        try:
            raise UsageError("an image is gone")
        except UsageError:
            logger.exception("Exception during training:")
            raise
    assert "Traceback" not in capsys.readouterr().out
    logger.removeHandler(console)


def test_errors_of_the_program_stay_what_they_are(trainer):
    for error in (RuntimeError("a bug"), OSError(2, "no such file")):
        with pytest.raises(type(error)), explained(trainer):
            raise error
