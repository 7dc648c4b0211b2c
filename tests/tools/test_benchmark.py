import pytest

pytest.importorskip("detectron2")

import pandas as pd
import torch

import benchmark
from gw_detectron.benchmark import costs, measure, workload
from gw_detectron.benchmark.costs import SAVED
from gw_detectron.errors import UsageError
from tests.benchmark.configs import CONFIG, LAYERS, OPTS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "_milliseconds", lambda call, on_gpu: (call(), 1.0)[1])


def run(*arguments):
    benchmark.main(benchmark.argument_parser().parse_args(arguments))


@pytest.fixture
def measure_small(tmp_path):
    """Runs the tool on a small model on the CPU; returns what is in benchmark.md and .csv."""

    def measure_small(*arguments):
        to = ["--config-file", CONFIG, "--rounds", "2", "--output", str(tmp_path)]
        run(*arguments, *to, "MODEL.DEVICE", "cpu", *OPTS)
        return (tmp_path / "benchmark.md").read_text(), pd.read_csv(tmp_path / "benchmark.csv")

    return measure_small


def test_the_tools_choices_are_the_packages():
    assert benchmark.NORMS == tuple(measure.NORMS)
    assert benchmark.DTYPES == tuple(measure.DTYPES)


def test_layers_measures_every_norm_on_every_input(measure_small, capsys, monkeypatch):
    monkeypatch.setenv("GW_BACKEND", "torch")
    norms = ["GN", "GW", "textbook", "FrozenBN"]
    written, rows = measure_small("layers", "--norms", *norms)
    assert written in capsys.readouterr().out and "| geometric mean " in written
    assert "    GW_BACKEND=torch tools/benchmark.py" in written and "Without" not in written
    assert list(rows["name"].unique()) == norms
    times = rows[rows["quantity"] != SAVED].groupby(["input", "name", "quantity"]).size()
    assert len(times) == len(LAYERS) * len(norms) * 2 and set(times) == {2}
    saved = rows[rows["quantity"] == SAVED].pivot(index="input", columns="name", values="value")
    for at, of in (1e6 * saved).iterrows():
        shape = tuple(map(int, at.partition(",")[0].split("x")))
        size = 4 * torch.Size(shape).numel()
        assert of["GN"] == pytest.approx(size + 4 * 2 * 32 * shape[0])
        assert of["textbook"] > max(2 * size, of["GW"])
        assert of["FrozenBN"] == pytest.approx(4 * shape[1])


def test_model_measures_norms_and_the_textbook_beside_gw(measure_small):
    written, rows = measure_small("model", "--norms", "GN", "half: MODEL.FPN.NORM GN", "--textbook")
    assert "### 1x3x50x64" in written and "Without" not in written
    assert list(rows["name"].unique()) == ["GN", "half", "half, textbook"]
    counts = rows.groupby(["name", "quantity"]).size()["half"]
    assert dict(counts) == {"training step, ms": 2, "inference, ms": 2, SAVED: 1}
    saved = list(rows[rows["quantity"] == SAVED]["value"])
    assert saved == sorted(saved) and saved[1] < saved[2]


def test_layers_measures_gw_in_every_part_of_mask_rcnn_by_default(monkeypatch):
    def find_inputs(cfg, num_images):
        asked.append(cfg.MODEL)
        raise KeyboardInterrupt

    asked = []
    monkeypatch.setattr(workload, "find_inputs", find_inputs)
    with pytest.raises(KeyboardInterrupt):
        run("layers")
    (model,) = asked
    norms = (model.RESNETS.NORM, model.FPN.NORM, model.ROI_BOX_HEAD.NORM, model.ROI_MASK_HEAD.NORM)
    assert norms == ("GW",) * 4 and model.ROI_BOX_HEAD.NUM_CONV == 4


def test_gpu_without_a_gpu_is_a_mistake(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="this machine has no GPU"):
        run("gpu", "--output", str(tmp_path))


@pytest.mark.parametrize("arguments", [["layers", "--norms", "BN"], ["model"], []])
def test_arguments_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
