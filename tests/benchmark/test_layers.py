import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark import layers, timing
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
        def __init__(self, layer, x, backend):
            super().__init__(layer, x, backend)
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
    assert results.remarks() == ["Without compiled: RuntimeError: no C++ compiler and more"]
    assert results.norms == ["GW", "GN"] and len(results.costs) == len(LAYERS)


def test_a_norm_that_fails_on_an_input_is_noted_and_the_rest_goes_on(quick, monkeypatch):
    def make(layer):
        if layer.num_channels == 128:
            raise RuntimeError("not with 128")
        return torch.nn.GroupNorm(1, layer.num_channels)

    monkeypatch.setitem(layers.NORMS, "GN", make)
    results = measure(["GN", "GW"])
    assert results.remarks() == ["Without GN: RuntimeError: not with 128 (at 1x128x8x8)"]
    norms = {at.label: list(by_norm) for at, by_norm in results.costs}
    assert norms.pop("1x128x8x8") == ["GW"]
    assert list(norms.values()) == [["GN", "GW"]] * (len(LAYERS) - 1)
    row = next(line for line in results.markdown().splitlines() if "1x128x8x8" in line)
    assert row.split("|")[4].strip() == "-" and "x" not in row.split("|")[5]


def test_an_input_that_fails_is_noted_and_the_rest_goes_on(quick, monkeypatch):
    def fails(*args):
        if not calls:
            calls.append(args)
            raise RuntimeError("out of memory")
        return interleaved(*args)

    calls = []
    monkeypatch.setattr(layers, "interleaved", fails)
    results = measure(["GN"])
    assert results.remarks() == ["Without all norms: RuntimeError: out of memory (at 1x64x32x32)"]
    assert len(results.costs) == len(LAYERS) - 1


def test_each_backend_computes_its_own_column_and_then_the_default_is_back(quick, monkeypatch):
    seen = []

    class Work(layers._Work):
        def __init__(self, layer, x, backend):
            super().__init__(layer, x, backend)
            layer.register_forward_pre_hook(lambda *_: seen.append((backend, chosen[-1])))

    chosen = []
    monkeypatch.setattr(layers, "set_backend", chosen.append)
    monkeypatch.setattr(layers, "require_triton", lambda *args: None)
    monkeypatch.setattr(layers, "_Work", Work)
    results = measure(["GW", "GW Triton", "GW PyTorch"])
    assert results.norms == ["GW", "GW Triton", "GW PyTorch"] and chosen[-1] is None
    assert set(seen) == {(None, None), ("triton", "triton"), ("torch", "torch")}


def test_after_the_time_is_up_no_input_is_begun(quick):
    results = layers.measure_layers(
        CONFIG, OPTS, Machine.prepare("cpu", "float32", False), ["GN"], (50, 64), 1, 1, seconds=0
    )
    assert not results.costs and not results.stopped
    assert results.notes == [f"The time was up after 0 of {len(LAYERS)} inputs."]


def test_on_a_gpu_steps_are_replayed_without_the_host(quick, monkeypatch):
    class Replay(timing.Replay):
        def __init__(self, step):
            if step.__self__.layer.num_channels == 512:
                raise RuntimeError("it waits")

        def __call__(self, lap):
            lap(self.phase)

    monkeypatch.setattr(Machine, "on_gpu", True)
    monkeypatch.setattr(Machine, "describe", lambda machine: {})
    monkeypatch.setattr(layers, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(layers, "Replay", Replay)
    results = measure(["GN", "GW"])
    for at, by_norm in results.costs:
        for cost in by_norm.values():
            of_gpu = cost.times.get("forward + backward, GPU alone")
            assert (of_gpu is None) if at.shape[1] == 512 else len(of_gpu) == 2
    table = results.sections()["Forward + backward, GPU alone, ms"]
    assert "GW's share of copy bandwidth" in table
    assert results.remarks() == [
        f"Without the time of {norm} on the GPU alone: RuntimeError: it waits (at 1x512x2x2)"
        for norm in ("GN", "GW")
    ]


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
