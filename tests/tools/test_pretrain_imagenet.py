import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from gw_detectron.engine.pretraining import setup
from pretrain_imagenet import argument_parser

from ..engine.pretraining.commands import CONFIGS, command, remove_checkpoints
from ..engine.pretraining.images import CLASSES, draw_folder

TOOL = Path(__file__).parents[2] / "tools" / "pretrain_imagenet.py"


@pytest.fixture
def data(tmp_path):
    yield draw_folder(tmp_path / "data", train=3, val=1)
    remove_checkpoints(tmp_path)


def test_the_command_line_trains_with_worker_processes(data, tmp_path):
    opts = ["PRETRAINING.EPOCHS", 1, "SOLVER.IMS_PER_BATCH", 3, "DATALOADER.NUM_WORKERS", 1]
    run = subprocess.run(
        [sys.executable, str(TOOL), *command(data, tmp_path / "output", opts=opts)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "output" / "backbone.pth").is_file()
    assert f"MODEL.WEIGHTS {tmp_path / 'output' / 'backbone.pth'}" in run.stdout


@pytest.mark.parametrize(
    "options, opts, fragment",
    [
        ((), ["SOLVER.STEPS", "(5,)"], "PRETRAINING.STEPS"),
        ((), ["MODEL.RESNETS.NORMS", "GW"], "MODEL.RESNETS.NORMS"),
        ((), ["MODEL.RESNETS.NORM", "GWW"], '"GWW"'),
        ((), ["MODEL.GW.POSITIONS", "S9"], '"S9"'),
        ((), ["MODEL.WEIGHTS", "gone.pth"], "MODEL.WEIGHTS gone.pth"),
        (("--eval-only",), [], "MODEL.WEIGHTS FILE"),
        (("--data", "gone"), [], "gone/train"),
        (("--data", ""), [], "--data DIR"),
        (("--config-file", "gone.yaml"), [], "gone.yaml"),
        (("--config-file", ""), [], "configs/ImageNet-Classification"),
        (("--num-gpus", "-1"), [], "--num-gpus -1"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    data, tmp_path, monkeypatch, capsys, options, opts, fragment
):
    assert fragment in failure(data, tmp_path, monkeypatch, capsys, *options, opts=opts)


def test_a_broken_image_stops_the_run_with_its_name(data, tmp_path, monkeypatch, capsys):
    for name in CLASSES:
        bad = data / "train" / name / "1.png"
        bad.write_bytes(bad.read_bytes()[:300])
    line = failure(data, tmp_path, monkeypatch, capsys, opts=["DATALOADER.NUM_WORKERS", 1])
    assert "1.png can't be read" in line


def test_weights_of_another_kind_are_not_evaluated(data, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights.pth"
    arguments = argument_parser().parse_args(command(data, tmp_path))
    whole = build_model(setup(arguments)).state_dict()
    backbone = {name: value for name, value in whole.items() if name.startswith("backbone.")}
    for model, fragment in (
        (backbone, "linear.weight is not in the file"),
        (whole | {"linear.weight": torch.zeros(1000, 512)}, "linear.weight is (1000, 512)"),
    ):
        torch.save({"model": model}, weights)
        opts = ["MODEL.WEIGHTS", weights]
        assert fragment in failure(data, tmp_path, monkeypatch, capsys, "--eval-only", opts=opts)


def failure(data, tmp_path, monkeypatch, capsys, *options, opts=()):
    """Runs the tool, which must fail with status 2; returns the only line on stderr."""
    arguments = command(data, tmp_path / "output", *options, opts=opts)
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pretrain_imagenet.py: error: ")
    return line


def test_help_shows_where_the_recipes_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name="__main__")
    out = capsys.readouterr().out
    assert "--data DIR" in out and CONFIGS.name in out and "backbone.pth" in out
