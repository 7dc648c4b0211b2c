import pytest

pytest.importorskip("detectron2")

import torch
from torch import nn

from gw_detectron.benchmark import costs
from gw_detectron.benchmark.costs import Work, in_turns, layer_work, saved_bytes
from gw_detectron.layers import GroupWhitening, set_backend


def fails(message):
    raise RuntimeError(message)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(costs, "_seconds", lambda call, on_gpu: (call(), 0.001)[1])


def measure(makers, rounds=2, on_gpu=False):
    """What they cost, and what has failed."""
    failed = []
    *_, result = in_turns(makers, rounds, on_gpu, lambda what, error: failed.append((what, error)))
    return result, failed


def test_each_round_measures_everything_once_and_begins_with_another(quick):
    log = []
    works = {
        name: lambda name=name: Work(nn.Identity(), int, {"work": lambda: log.append(name)})
        for name in "abc"
    }
    measure(works, rounds=4)
    assert "".join(log[3:]) == "abc" + "bca" + "cab" + "abc"  # the first three warm up


def test_a_layers_costs_have_a_value_a_round_and_what_it_saves():
    x = torch.randn(2, 64, 10, 10)
    result, failed = measure({"GN": lambda: layer_work(nn.GroupNorm(4, 64), x)}, rounds=3)
    times = {quantity: len(values) for quantity, values in result["GN"].items() if "ms" in quantity}
    assert times == {"inference, ms": 3, "forward + backward, ms": 3} and not failed
    assert all(0 < ms < 1000 for values in result["GN"].values() for ms in values)
    of_map, of_sums = 4 * 2 * 64 * 100, 4 * 2 * 4 * 2
    assert result["GN"][costs.SAVED] == [pytest.approx((of_map + of_sums) / 1e6)]


def test_a_call_has_the_time_of_its_work():
    x = torch.randn(300, 300)
    once = costs._seconds(lambda: x @ x, on_gpu=False)
    thrice = costs._seconds(lambda: [x @ x for _ in range(3)], on_gpu=False)
    assert 1.5 < thrice / once < 6


def test_what_fails_is_told_and_the_rest_goes_on(quick, monkeypatch):
    monkeypatch.setattr(costs, "_peak_bytes", lambda call: 10**6)
    monkeypatch.setattr(costs, "_seconds_alone", lambda call: fails("it waits"))
    x = torch.randn(2, 8, 5, 5)
    makers = {
        "broken": lambda: fails("no kernel"),
        "GN": lambda: layer_work(nn.GroupNorm(4, 8), x),
    }
    result, failed = measure(makers, rounds=1, on_gpu=True)
    assert [(what, str(error)) for what, error in failed] == [
        ("broken", "no kernel"),
        ("GN, forward + backward on the GPU alone, ms", "it waits"),
    ]
    assert list(result) == ["GN"]
    assert result["GN"]["peak memory of forward + backward, MB"] == [1.0]


def test_each_work_has_its_own_backend_and_then_the_default_is_back(quick, monkeypatch):
    seen, chosen = set(), []
    monkeypatch.setattr(costs, "set_backend", chosen.append)
    makers = {
        name: lambda name=name: Work(
            nn.Identity(), int, {"work": lambda: seen.add((name, chosen[-1]))}, name
        )
        for name in ("torch", None)
    }
    measure(makers)
    assert seen == {("torch", "torch"), (None, None)} and chosen[-1] is None


def test_an_input_that_pytorch_would_compute_in_tritons_place_is_told():
    pytest.importorskip("triton")
    x = torch.randn(2, 16, 3, dtype=torch.float64)
    layer = GroupWhitening(16, num_groups=8).double()
    try:
        _, failed = measure({"GW": lambda: layer_work(layer, x, "triton")})
    finally:
        set_backend(None)
    ((what, error),) = failed
    assert what == "GW" and "Triton" in str(error)


def test_on_the_gpu_alone_a_graph_is_replayed_of_what_does_not_wait(monkeypatch):
    testing = pytest.importorskip("triton.testing")
    modes, captured = ["default"], []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def do_bench_cudagraph(call, rep, return_mode):
        captured.append((call, modes[-1], return_mode))
        return 2.5  # ms

    monkeypatch.setattr(testing, "do_bench_cudagraph", do_bench_cudagraph)
    during = []

    def call():
        during.append(modes[-1])

    assert costs._seconds_alone(call) == 0.0025
    assert during == ["error"] and captured == [(call, "default", "median")]
    with pytest.raises(RuntimeError, match="waits"):
        costs._seconds_alone(lambda: fails("it waits"))
    assert modes[-1] == "default" and len(captured) == 1


def test_bandwidth_counts_what_is_read_and_what_is_written(monkeypatch):
    testing = pytest.importorskip("triton.testing")
    monkeypatch.setattr(testing, "do_bench", lambda call, return_mode: (call(), 100.0)[1])
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda n, dtype, device: zeros(n, dtype=dtype))
    assert costs.copy_bandwidth() == pytest.approx(2 * 2**28 / 0.1)


# ---- What is saved for the backward ----------------------------------------------------------


def test_group_whitening_saves_its_input_and_at_most_three_matrices_a_sample():
    x = torch.randn(3, 64, 50, 60, requires_grad=True)
    layer = GroupWhitening(64, num_groups=16)
    extra = saved_bytes(lambda: layer(x), layer.parameters()) - 4 * 3 * 64 * 50 * 60
    of_matrix, of_means = 4 * 3 * 16 * 16, 4 * 3 * 16
    assert of_matrix <= extra <= 3 * of_matrix + of_means


def test_a_storage_counts_once_and_whole():
    x = torch.randn(10, 10, requires_grad=True)
    # both factors of the product, and the argument of exp is its result
    assert saved_bytes(lambda: (x[0] * x[1]).exp(), []) == 4 * (100 + 10)
    assert saved_bytes(lambda: x * x * x, []) == 4 * (100 + 100)
    assert saved_bytes(lambda: x + 1, []) == 0


def test_parameters_and_buffers_are_there_anyway():
    x, weight = torch.randn(10, requires_grad=True), nn.Parameter(torch.randn(10))
    assert saved_bytes(lambda: x * weight, []) == 80
    assert saved_bytes(lambda: x * weight, [weight]) == 40
