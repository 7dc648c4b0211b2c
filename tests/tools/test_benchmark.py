import json

import pytest

pytest.importorskip("detectron2")

import torch

import benchmark
from gw_detectron.benchmark import costs, measure, workload
from gw_detectron.errors import UsageError
from tests.benchmark.configs import CONFIG, OPTS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "_seconds", lambda call, on_gpu: (call(), 0.001)[1])


def run(*arguments):
    benchmark.main(benchmark.argument_parser().parse_args(arguments))


def test_the_tools_choices_are_the_packages():
    assert benchmark.NORMS == tuple(measure.NORMS)
    assert benchmark.PARTS == tuple(measure.PARTS)
    assert benchmark.DTYPES == tuple(workload.DTYPES)


def test_layers_prints_the_tables_and_leaves_them_in_the_output(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GW_BACKEND", "torch")
    arguments = ["--device", "cpu", "--rounds", "1", "--output", str(tmp_path)]
    run("layers", "--config-file", CONFIG, "--norms", "GW", "GN", *arguments, *OPTS)
    printed, written = capsys.readouterr().out, (tmp_path / "benchmark.md").read_text()
    assert "| geometric mean |" in printed and "| geometric mean |" in written
    assert "    GW_BACKEND=torch tools/benchmark.py" in written
    assert (tmp_path / "benchmark.png").exists() and (tmp_path / "benchmark.json").exists()


def test_layers_measures_gw_in_every_part_of_mask_rcnn_by_default(monkeypatch):
    def find_inputs(setup):
        asked.append(setup.config().MODEL)
        raise KeyboardInterrupt

    asked = []
    monkeypatch.setattr(workload, "find_inputs", find_inputs)
    with pytest.raises(KeyboardInterrupt):
        run("layers", "--device", "cpu")
    (model,) = asked
    norms = (model.RESNETS.NORM, model.FPN.NORM, model.ROI_BOX_HEAD.NORM, model.ROI_MASK_HEAD.NORM)
    assert norms == ("GW",) * 4 and model.ROI_BOX_HEAD.NUM_CONV == 4


def test_what_was_measured_before_ctrl_c_is_in_the_output(tmp_path, monkeypatch):
    def measure_models(*args):
        steps = real(*args)
        yield next(steps)
        raise KeyboardInterrupt

    real, to = measure.measure_models, ["--config-file", CONFIG, "--output", str(tmp_path)]
    monkeypatch.setattr(measure, "measure_models", measure_models)
    with pytest.raises(KeyboardInterrupt):
        run("model", "--norms", "GN", "GW(num_groups=8)", "--device", "cpu", *to, *OPTS)
    part = json.loads((tmp_path / "benchmark.json").read_text())["parts"]["Whole models"]
    assert part["about"]["measured"] == "1 of 20 rounds"
    assert len(part["results"][0]["costs"]["GN"]["inference, ms"]) == 1
    assert "| GN " in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").exists()


def test_gpu_without_a_gpu_is_a_mistake_and_nothing_measured_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="this machine has no GPU"):
        run("gpu", "--output", str(tmp_path))
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="nothing could be measured"):
        run("gpu", "--device", "cpu", "--parts", "models-amp", "--output", str(tmp_path), *OPTS)
    assert "needs a GPU" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(
    "arguments",
    [["layers", "--rounds", "0"], ["layers", "--device", "tpu"], ["layers", "--norms", "BN"], []],
)
def test_arguments_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
