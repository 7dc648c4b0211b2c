from dataclasses import replace

import pytest

pytest.importorskip("detectron2")

import torch

import gw_detectron.benchmark.measure as measuring
from gw_detectron.benchmark import costs
from gw_detectron.benchmark.costs import SAVED
from gw_detectron.benchmark.measure import measure_layers, measure_models, measure_parts
from gw_detectron.benchmark.workload import Setup, find_inputs
from gw_detectron.errors import UsageError

from .configs import CONFIG, LAYERS, OPTS

SETUP = Setup(CONFIG, OPTS, rounds=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "_seconds", lambda call, on_gpu: (call(), 0.001)[1])


@pytest.fixture(scope="module")
def inputs():
    return find_inputs(SETUP)


def last(steps):
    *_, results = steps
    return results


# ---- Layers ----------------------------------------------------------------------------------


def test_every_norm_is_measured_on_every_input(inputs):
    norms = ["GN", "GW", "textbook", "FrozenBN"]
    results = last(measure_layers(SETUP, inputs, norms))
    assert [at.shape for at, _ in results.costs] == [shape for shape, _ in LAYERS]
    assert results.about["measured"] == "11 of 11 inputs" and not results.notes
    for at, of in results.costs:
        assert list(of) == norms
        saved = {norm: 1e6 * cost[SAVED][0] for norm, cost in of.items()}
        size = 4 * torch.Size(at.shape).numel()
        assert saved["GN"] == pytest.approx(size + 4 * 2 * 32 * at.shape[0])
        assert saved["textbook"] > max(2 * size, saved["GW"])
        assert saved["FrozenBN"] == pytest.approx(4 * at.shape[1])


def test_half_types_are_those_of_input_and_parameters(inputs, monkeypatch):
    seen = set()

    def layer_work(layer, x, backend):
        seen.add((x.dtype, next(layer.parameters()).dtype))
        return costs.layer_work(layer, x, backend)

    monkeypatch.setattr(measuring, "layer_work", layer_work)
    results = last(measure_layers(replace(SETUP, dtype="bfloat16"), inputs[:1], ["GW", "textbook"]))
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert list(results.costs[0][1]) == ["GW", "textbook"]


def test_without_a_compiler_one_line_says_so_and_the_column_is_left_out(inputs, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **options: 1 / 0)
    results = last(measure_layers(SETUP, inputs[:2], ["GW", "compiled", "GN"]))
    assert results.measured() == ["GW", "GN"]
    line = results.markdown().splitlines()[-1]
    assert line == (
        "Without compiled: ZeroDivisionError: division by zero (at 1x64x32x32, 1x64x16x16)"
    )


def test_each_backend_computes_its_own_column(inputs, monkeypatch):
    seen = {}

    def layer_work(layer, x, backend):
        work = costs.layer_work(layer, x, None)
        seen[len(seen)] = backend
        return work

    monkeypatch.setattr(measuring, "layer_work", layer_work)
    last(measure_layers(SETUP, inputs[:1], ["GW", "GW Triton", "GW PyTorch"]))
    assert list(seen.values()) == [None, "triton", "torch"]


# ---- Models ----------------------------------------------------------------------------------


def test_models_take_turns_and_the_textbook_stands_beside_gw():
    steps = measure_models(SETUP, ["GN", "group: MODEL.FPN.NORM GN"], textbook=True)
    for count, results in enumerate(steps, start=1):
        ((_, of),) = results.costs
        assert all(len(cost["training step, ms"]) == count for cost in of.values())
    assert count == 2 and list(of) == ["GN", "group", "group, textbook"]
    assert set(of["GN"]) == {"training step, ms", "inference, ms", SAVED}
    saved = [cost[SAVED] for cost in of.values()]
    assert saved == sorted(saved) and saved[1] < saved[2]
    assert results.about["images"] == "1 of 50x64"


def test_each_backend_has_its_own_model_where_there_is_gw_and_what_fails_is_left_out(monkeypatch):
    monkeypatch.setattr(costs, "backend_for", lambda x, num_groups: torch)  # and not Triton's
    norms = ["GN", "GW(num_groups=8)"]
    steps = measure_models(
        replace(SETUP, rounds=1), norms, backends={", A": "torch", ", B": "triton"}
    )
    results = last(steps)
    assert results.measured() == ["GN", "GW(num_groups=8), A"]
    assert list(results.names) == ["GN", "GW(num_groups=8), A", "GW(num_groups=8), B"]
    ((note, _),) = results.notes.items()
    assert note.startswith("Without GW(num_groups=8), B: RuntimeError: Triton's kernels do not run")


def test_the_config_as_it_is_whose_weights_stay_so_that_every_round_does_the_same(monkeypatch):
    def model_work(model, *args):
        models.append((model, {name: p.clone() for name, p in model.named_parameters()}))
        return costs.model_work(model, *args)

    models = []
    monkeypatch.setattr(measuring, "model_work", model_work)
    assert last(measure_models(SETUP)).measured() == ["mask_rcnn_R_18_FPN_gw"]
    ((model, before),) = models
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"norms": ["GM"]}, '"GM"'),
        ({"setup": replace(SETUP, dtype="bfloat16")}, "needs a GPU"),
        ({"setup": replace(SETUP, config_file="missing.yaml")}, "missing.yaml"),
        ({"norms": ["GN"], "textbook": True}, "no GW layer"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UsageError, match=message):
        last(measure_models(**{"setup": SETUP} | arguments))


# ---- All of a GPU ----------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measuring, "LAYERS_OPTS", ())
    monkeypatch.setattr(measuring, "_MODELS", ("GN", "GW(num_groups=8)"))
    monkeypatch.setattr(measuring, "_BACKENDS", {"GW PyTorch": "torch"})
    parts = {
        "layers": ("Layers", "float32", ("GN", "GW PyTorch")),
        "amp": ("Mixed", "float16", ()),
        "models": ("Models", "float32", ()),
    }
    monkeypatch.setattr(measuring, "PARTS", parts)
    return replace(SETUP, rounds=1)


def test_parts_are_measured_one_after_the_other_and_what_fails_is_noted(small):
    titles = []
    for parts in measure_parts(small, ["layers", "amp", "models"]):
        titles.append(list(parts))
    assert titles[10:] == [["Layers"], ["Layers", "Mixed"], ["Layers", "Mixed", "Models"]]
    assert parts["Layers"].measured() == ["GN", "GW PyTorch"]
    assert "needs a GPU" in parts["Mixed"].markdown()
    assert parts["Models"].measured() == ["GN", "GW(num_groups=8), PyTorch"]
    assert parts["Models"].about["images"] == "2 of 50x64"


def test_when_the_time_is_up_nothing_new_is_begun(small):
    steps = measure_parts(
        replace(small, deadline=measuring.time.monotonic() + 0.3), ["layers", "models"]
    )
    parts = last(steps)
    assert parts["Layers"].about["measured"].endswith(" of 11 inputs")
    assert parts["Models"].about["measured"] == "nothing, the time was up"
