"""Whole runs of the command line on a GPU."""

import json
import math
import os
import re
import subprocess
import sys
import time

import pytest

from gw_detectron.layers import set_backend

from .commands import MASK_CONFIG, ROOT, command

pytestmark = pytest.mark.gpu
TRAIN, EXPORT = (str(ROOT / "tools" / name) for name in ("train_net.py", "export_model.py"))
AMP = ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True"]


@pytest.fixture
def run(tmp_path, own_data):
    """run(*command): a Python script with Triton's kernels, where they can be had."""
    environment = os.environ | {"GW_BACKEND": "triton"}
    try:
        set_backend("triton")
    except ValueError:
        del environment["GW_BACKEND"]
    finally:
        set_backend(None)

    def run(*command):
        result = subprocess.run(
            [sys.executable, *command], env=environment, cwd=tmp_path, timeout=240,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-10_000:]
        return result.stdout

    return run


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_the_quickstart_is_trained_evaluated_and_exported(own_data, tmp_path, run):
    output = tmp_path / "output"
    opts = [
        *AMP, "SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "()", "MODEL.GW.DIAGNOSTICS_PERIOD", "10",
        "DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)",
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip
    run(TRAIN, "--config-file", MASK_CONFIG, *own_data, *opts)
    records = metrics(output)
    losses = [value for record in records for key, value in record.items() if "loss" in key]
    assert losses and all(map(math.isfinite, losses))
    assert {"bbox/AP", "segm/AP"} <= set().union(*records)
    assert (output / "detections.png").exists()

    export = run(
        EXPORT, "--config-file", str(output / "config.yaml"), "--format", "torchscript",
        "--output", str(tmp_path / "export"), *own_data, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
        "MODEL.WEIGHTS", str(output / "model_final.pth"),
    )  # fmt: skip
    assert "Checked on" in export


def test_a_killed_run_goes_on(own_data, tmp_path, run):
    opts = [*AMP, "SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 1]
    arguments = command(own_data[:4], tmp_path, "--resume", config=MASK_CONFIG, opts=opts)
    process = subprocess.Popen(
        [sys.executable, TRAIN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "last_checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "model_final.pth").exists()

    run(TRAIN, *arguments)
    assert (tmp_path / "model_final.pth").exists() and not list(tmp_path.glob("*.unfinished"))
    starts = re.findall(
        r"Starting training from iteration (\d+)", (tmp_path / "log.txt").read_text()
    )
    assert starts[0] == "0" < starts[-1]
