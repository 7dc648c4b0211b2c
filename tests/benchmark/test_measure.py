import pytest

pytest.importorskip("detectron2")

import pandas as pd
import torch

import gw_detectron.benchmark.measure as measuring
from gw_detectron.benchmark import costs
from gw_detectron.benchmark.measure import measure_gpu, measure_layers, measure_models
from gw_detectron.benchmark.workload import benchmark_config, find_inputs
from gw_detectron.errors import UsageError

from .configs import CONFIG, LAYERS, OPTS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "_milliseconds", lambda call, on_gpu: (call(), 1.0)[1])


@pytest.fixture(scope="module")
def cfg():
    return benchmark_config(CONFIG, [*OPTS, "MODEL.DEVICE", "cpu"])


@pytest.fixture(scope="module")
def inputs(cfg):
    return find_inputs(cfg)


def test_half_types_are_those_of_input_and_parameters_and_backends_those_of_the_norms(
    inputs, monkeypatch
):
    def layer_work(layer, x, backend):
        seen.append((x.dtype, next(layer.parameters()).dtype, backend))
        return costs.layer_work(layer, x)

    seen, half = [], torch.bfloat16
    monkeypatch.setattr(measuring, "layer_work", layer_work)
    norms = ["GW", "textbook", "GW Triton", "GW PyTorch"]
    rows = measure_layers(inputs[:1], norms, "cpu", "bfloat16", rounds=1)
    assert {row["name"] for row in rows if "value" in row} == set(norms)
    assert seen == [(half, half, backend) for backend in (None, None, "triton", "torch")]


def test_the_floor_on_a_gpu_is_the_least_that_a_norm_reads_and_writes(inputs, monkeypatch):
    monkeypatch.setattr(measuring, "in_turns", lambda *args, **place: iter(()))
    monkeypatch.setattr(measuring, "_set_precision", lambda device, dtype: True)
    monkeypatch.setattr(measuring, "copy_bandwidth", lambda: 1000)  # bytes in a ms
    rows = list(measure_layers(inputs[:1], ["GW"], "cpu", "float16", rounds=1))
    # 1 x 64 x 32 x 32 of 2 bytes: 131.072 ms for each time; 3 forward, and 5 backward
    floor = {row["quantity"]: row["value"] for row in rows if row["name"] == "floor"}
    assert floor == {
        "inference, ms": pytest.approx(3 * 131.072),
        "forward + backward, ms": pytest.approx(8 * 131.072),
        "forward + backward on the GPU alone, ms": pytest.approx(8 * 131.072),
    }


def test_the_config_as_it_is_whose_weights_stay_so_that_every_round_does_the_same(cfg, monkeypatch):
    def model_work(model, *args):
        models.append((model, {name: p.clone() for name, p in model.named_parameters()}))
        return costs.model_work(model, *args)

    models = []
    monkeypatch.setattr(measuring, "model_work", model_work)
    rows = list(measure_models(cfg, [], "float32", 1, 1))
    assert len(rows) == 3 and {row["name"] for row in rows} == {"the config"}
    ((model, before),) = models
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


def test_a_gpus_benchmark_has_layers_of_one_image_and_models_with_two_by_each_backend(monkeypatch):
    monkeypatch.setattr(measuring, "MASK_RCNN", CONFIG)
    monkeypatch.setattr(measuring, "GW_IN_BOX_HEAD", ())
    monkeypatch.setattr(measuring, "_MODELS", ("GN", "GW(num_groups=8)"))
    monkeypatch.setattr(measuring, "_PARTS", (("layers", "float32"), ("models", "float32")))
    monkeypatch.setattr(measuring, "_BACKENDS", {"GW PyTorch": "torch"})
    rows = pd.DataFrame(measure_gpu([*OPTS, "MODEL.DEVICE", "cpu"], rounds=1))
    measured = rows.groupby("part", sort=False)
    assert dict(measured["input"].nunique()) == {
        "Layers, float32": len(LAYERS),
        "Whole models, float32": 1,
    }
    assert [list(names) for names in measured["name"].unique()] == [
        ["GN", "GW PyTorch", "textbook", "FrozenBN"],
        ["GN", "GW(num_groups=8), PyTorch"],
    ]
    assert rows["input"].iloc[-1] == "2x3x50x64"


@pytest.mark.parametrize(
    "norms, dtype, message",
    [(["GM"], "float32", '"GM"'), ([], "bfloat16", "needs a GPU"), ([], "tf32", "the CPU takes")],
)
def test_mistakes(cfg, norms, dtype, message):
    with pytest.raises(UsageError, match=message):
        list(measure_models(cfg, norms, dtype, 1, 1))
