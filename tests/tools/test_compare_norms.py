"""The whole of it, with training."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from gw_detectron.data import register_shapes

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart" / "faster_rcnn_R_18_FPN_gn.yaml")
TINY = [
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "()",
    "SOLVER.BASE_LR", "1e-4", "SOLVER.CHECKPOINT_PERIOD", "4",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


@pytest.fixture
def arguments(tmp_path):
    register_shapes(name := f"shapes {tmp_path.name}", str(tmp_path), num_train=4, num_val=2)
    DatasetCatalog.get(f"{name}_train")
    datasets = []
    for split in ("train", "val"):
        files = MetadataCatalog.get(f"{name}_{split}")
        datasets += ["--dataset", f"{tmp_path.name}_{split}", files.json_file, files.image_root]
    return [
        "--config-file", CONFIG, "--norms", "BN", "group: MODEL.FPN.NORM 'GW(num_groups=16)'",
        "--output", str(tmp_path / "output"), *datasets, *TINY,
        "DATASETS.TRAIN", f"('{tmp_path.name}_train',)",
        "DATASETS.TEST", f"('{tmp_path.name}_val',)",
    ]  # fmt: skip


def test_a_comparison_interrupted_in_its_second_run_resumes_it(arguments, tmp_path, heeded_signals):
    output = tmp_path / "output"
    bn, group = output / "BN" / "seed1", output / "group" / "seed1"
    command = [sys.executable, str(ROOT / "tools" / "compare_norms.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        while not (group / "last_checkpoint").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and out.startswith("run 1 of 2: BN, seed 1: started")
    resumes, stopped = errors.splitlines()[-2:]
    assert resumes.startswith("The same command resumes") and stopped.endswith(": stopped")
    assert (group / "last_checkpoint").read_text() > "model_0000003.pth"
    assert "Traceback" not in (group / "console.txt").read_text()

    finished = {path: path.stat().st_mtime_ns for path in bn.rglob("*")}
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in bn.rglob("*")} == finished
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("run 1 of 2: BN, seed 1: is there, box AP")
    assert second.startswith("run 2 of 2: group, seed 1: resumed")
    assert "| BN " in done.stdout and "| GN, FPN GW(num_groups=16) " in done.stdout
    assert (output / "comparison.md").exists() and (output / "comparison.png").exists()
    for run in (bn, group):
        last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
        assert last["iteration"] == 12 and "bbox/AP" in last
        assert [path.name for path in run.glob("*.pth")] == ["model_final.pth"]
