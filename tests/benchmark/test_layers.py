import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark import layers
from gw_detectron.benchmark.machine import Machine
from gw_detectron.benchmark.timing import interleaved
from gw_detectron.errors import UsageError

from .configs import CONFIG, LAYERS, OPTS


def measure(norms, opts=(), **machine):
    machine = {"device": "cpu", "arithmetic": "float32", "channels_last": False} | machine
    return layers.measure_layers(
        CONFIG, [*OPTS, *opts], Machine.prepare(**machine), norms, (50, 64), num_images=1, rounds=2
    )


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("gw_detectron.benchmark.timing._LEAST_SECONDS", 1e-9)


def test_every_norm_is_measured_on_every_input(quick):
    results = measure(["GN", "GW", "textbook", "FrozenBN"])
    assert [at.shape for at, _ in results.costs] == [shape for shape, _ in LAYERS]
    assert not results.notes and not results.stopped and results.bandwidth is None
    for at, by_norm in results.costs:
        assert list(by_norm) == ["GN", "GW", "textbook", "FrozenBN"]
        for cost in by_norm.values():
            times = cost.times
            assert all(len(rounds) == 2 for rounds in times.values())
            pairs = zip(times["forward"], times["backward"], strict=True)
            assert times["forward + backward"] == [sum(pair) for pair in pairs]
        saved = {norm: cost.memory["saved for the backward"] for norm, cost in by_norm.items()}
        samples, size = at.shape[0], 4 * torch.Size(at.shape).numel()
        assert saved["GN"] == size + 4 * 2 * 32 * samples
        assert saved["textbook"] > max(2 * size, saved["GW"])
        assert saved["FrozenBN"] == 4 * at.shape[1]
        of_inference = {norm: cost.memory["peak of inference"] for norm, cost in by_norm.items()}
        assert min(of_inference.values()) >= size
    assert len(results.sections()) == 6


def test_half_precision_and_channels_last(quick, monkeypatch):
    seen = set()

    class Work(layers._Work):
        def __init__(self, layer, x):
            super().__init__(layer, x)
            seen.add((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))

    monkeypatch.setattr(layers, "_Work", Work)
    results = measure(["GW", "textbook"], arithmetic="bfloat16", channels_last=True)
    assert seen == {(torch.bfloat16, True)} and results.itemsize == 2
    assert results.about["arithmetic"] == "bfloat16"
    assert results.about["memory format"] == "channels_last"


def test_without_a_compiler_one_line_says_so_and_the_column_is_left_out(quick, monkeypatch):
    def fails(x):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda module, **options: wrapped(module, fails))

    def wrapped(module, forward):
        module.forward = forward
        return module

    results = measure(["GW", "compiled", "GN"])
    assert results.notes == ["Without torch.compile, which fails here: no C++ compiler"]
    assert (
        len(results.costs) == len(LAYERS) and "compiled" not in results.markdown().split("\n\n")[2]
    )


def test_what_another_norm_cannot_do_is_an_error(quick, monkeypatch):
    monkeypatch.setitem(layers.NORMS, "GN", lambda layer: torch.nn.GroupNorm(1, 1))
    with pytest.raises(RuntimeError):
        measure(["GW", "GN"])


def test_after_an_interruption_the_inputs_before_are_there(quick, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return interleaved(*args)

    monkeypatch.setattr(layers, "interleaved", interrupted)
    results = measure(["GW", "GN"])
    assert results.stopped and len(results.costs) == 2
    assert f"Stopped after 2 of {len(LAYERS)} inputs." in results.markdown()


def test_a_model_without_gw_has_nothing_to_measure():
    opts = ["MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN"]
    opts += ["MODEL.ROI_BOX_HEAD.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", ""]
    with pytest.raises(UsageError, match="no GW layer"):
        measure(["GW", "GN"], opts)


def test_what_only_a_gpu_has_is_refused_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        Machine.prepare("cuda", "float32", False)
    with pytest.raises(UsageError, match="tf32"):
        Machine.prepare(None, "tf32", False)
    assert Machine.prepare(None, "float32", False).device == torch.device("cpu")
