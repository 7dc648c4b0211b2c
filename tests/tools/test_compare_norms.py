"""The whole of it, with training: two norms, killed in the second run and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

import compare_norms
from gw_detectron.data import register_shapes

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart" / "faster_rcnn_R_18_FPN_gn.yaml")
TINY = [
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()",
    "SOLVER.CHECKPOINT_PERIOD", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
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


def processes_with(text):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] if text in path.read_bytes().decode("utf-8", "replace") else []
        except OSError:  # it has ended meanwhile
            pass
    return found


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_comparison_killed_in_its_second_run_goes_on_with_it(arguments, tmp_path, capsys):
    output = tmp_path / "output"
    command = [sys.executable, "-u", str(ROOT / "tools" / "compare_norms.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        for line in killed.stdout:
            if line.startswith("run 2 of 2"):
                break
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, line
    if os.path.exists("/proc/self/cmdline"):
        deadline = time.monotonic() + 60
        while processes_with(str(output)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes_with(str(output))  # the run has ended too

    finished = stamps(output / "BN" / "seed1")
    assert compare_norms.main(compare_norms.argument_parser().parse_args(arguments)) == 0
    assert stamps(output / "BN" / "seed1") == finished
    out = capsys.readouterr().out
    assert "run 1 of 2: BN, seed 1: is there, box AP" in out
    assert "| BN " in out and "| GN, FPN GW(num_groups=16) " in out

    assert (output / "comparison.md").exists() and (output / "comparison.png").exists()
    runs = [output / folder / "seed1" for folder in ("BN", "group")]
    for run in runs:
        last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
        assert last["iteration"] == 2 and "bbox/AP" in last
        assert (run / "model_final.pth").exists() and not (run / "model_0000000.pth").exists()


def test_ctrl_c_saves_the_run_in_progress(arguments, tmp_path, heeded_signals):
    long = ["SOLVER.MAX_ITER", "9999", "SOLVER.CHECKPOINT_PERIOD", "9999", "SOLVER.BASE_LR", "1e-4"]
    command = [sys.executable, str(ROOT / "tools" / "compare_norms.py"), *arguments, *long]
    run = tmp_path / "output" / "BN" / "seed1"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not list(run.glob("metrics.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().splitlines()[-1].startswith("Stopped. The same command goes on")
    (checkpoint,) = run.glob("*.pth")
    assert (run / "last_checkpoint").read_text() == checkpoint.name
    assert "Traceback" not in (run / "console.txt").read_text()


def test_the_script_prints_a_mistake_as_one_line_with_status_2(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "compare_norms.py"), "--config-file", CONFIG]
    done = subprocess.run(
        [*command, "--norms", "GN", "GM", "--seeds", "2", "DATASETS.TRAIN", "('gw_shapes_train',)",
         "DATASETS.TEST", "('gw_shapes_val',)"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("compare_norms.py: error: ") and '"GM"' in line
    assert not list(tmp_path.iterdir())
