import pytest

pytest.importorskip("detectron2")

import torch
from torch import nn

from gw_detectron.benchmark import costs
from gw_detectron.benchmark.costs import SAVED, Work, in_turns, layer_work, saved_bytes
from gw_detectron.layers import GroupWhitening


def fails(message):
    raise RuntimeError(message)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(costs, "_milliseconds", lambda call, on_gpu: (call(), 1.0)[1])


def test_rounds_begin_with_another_work_each_and_every_work_has_its_backend(quick, monkeypatch):
    log, chosen = [], []
    monkeypatch.setattr(costs, "set_backend", chosen.append)
    works = {
        name: lambda name=name: Work(
            nn.Identity(), int, {"work": lambda: log.append((name, chosen[-1]))}, f"of {name}"
        )
        for name in "abc"
    }
    rows = [row for row in in_turns(works, 4, on_gpu=False) if row["quantity"] == "work"]
    order = "abc" + "bca" + "cab" + "abc"
    assert log[3:] == [(name, f"of {name}") for name in order]  # the first three warm up
    assert "".join(row["name"] for row in rows) == order
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert chosen[-1] is None  # the default is back


def test_a_layers_costs_have_a_value_a_round_and_what_it_saves():
    makers = {"GN": lambda: layer_work(nn.GroupNorm(4, 64), torch.randn(2, 64, 10, 10))}
    saved, *times = in_turns(makers, 3, on_gpu=False, part="Layers")
    of_map, of_sums = 4 * 2 * 64 * 100, 4 * 2 * 4 * 2
    row = {"part": "Layers", "name": "GN", "quantity": SAVED, "round": 0}
    assert saved == row | {"value": pytest.approx((of_map + of_sums) / 1e6)}
    assert [row["quantity"] for row in times] == ["inference, ms", "forward + backward, ms"] * 3
    assert all(0 < row["value"] < 1000 for row in times)


def test_a_call_is_timed_in_milliseconds(monkeypatch):
    """With one thread by the process's time, which here only the work puts forward."""
    now = [0.0]

    def work():
        now[0] += 0.002

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(costs.time, "process_time", lambda: now[0])
    assert costs._milliseconds(work, on_gpu=False) == pytest.approx(2.0)


def test_what_fails_is_told_and_the_rest_is_measured_with_peaks_on_a_gpu(quick, monkeypatch):
    monkeypatch.setattr(costs, "_peak_bytes", lambda call: 10**6)
    monkeypatch.setattr(costs, "_milliseconds_alone", lambda call: fails("it waits"))
    makers = {
        "broken": lambda: fails("no kernel"),
        "GN": lambda: layer_work(nn.GroupNorm(4, 8), torch.randn(2, 8, 5, 5)),
    }
    broken, *rows = in_turns(makers, 1, on_gpu=True)
    assert broken == {"name": "broken", "quantity": "", "failure": "RuntimeError: no kernel"}
    of = {row["quantity"]: row.get("value", row.get("failure")) for row in rows}
    assert of.pop(SAVED) > 0
    assert of == {
        "peak memory of inference, MB": 1.0,
        "peak memory of forward + backward, MB": 1.0,
        "inference, ms": 1.0,
        "forward + backward, ms": 1.0,
        "forward + backward on the GPU alone, ms": "RuntimeError: it waits",
    }


def test_an_input_that_pytorch_would_compute_in_tritons_place_is_told():
    pytest.importorskip("triton")
    layer, x = GroupWhitening(16, num_groups=8).double(), torch.randn(2, 16, 3).double()
    (row,) = in_turns({"GW": lambda: layer_work(layer, x, "triton")}, 1, on_gpu=False)
    told = ("Triton's kernels do not run here", "the kernels need Triton")  # an old one, too
    assert any(text in row["failure"] for text in told)


def test_on_the_gpu_alone_a_graph_is_replayed_of_what_does_not_wait(monkeypatch):
    testing = pytest.importorskip("triton.testing")
    modes, captured, during = ["default"], [], []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def do_bench_cudagraph(call, rep, return_mode):
        captured.append((call, modes[-1], return_mode))
        return 2.5  # ms

    monkeypatch.setattr(testing, "do_bench_cudagraph", do_bench_cudagraph)

    def call():
        during.append(modes[-1])

    assert costs._milliseconds_alone(call) == 2.5
    assert during == ["error"] and captured == [(call, "default", "median")]
    with pytest.raises(RuntimeError, match="waits"):
        costs._milliseconds_alone(lambda: fails("it waits"))
    assert modes[-1] == "default" and len(captured) == 1


def test_group_whitening_saves_its_input_and_at_most_three_matrices_a_sample():
    x = torch.randn(3, 64, 50, 60, requires_grad=True)
    layer = GroupWhitening(64, num_groups=16)
    extra = saved_bytes(lambda: layer(x), layer.parameters()) - 4 * 3 * 64 * 50 * 60
    of_matrix, of_means = 4 * 3 * 16 * 16, 4 * 3 * 16
    assert of_matrix <= extra <= 3 * of_matrix + of_means


def test_a_saved_storage_counts_once_and_whole_and_what_is_there_anyway_does_not():
    x = torch.randn(10, 10, requires_grad=True)
    # both factors of the product, and the argument of exp is its result
    assert saved_bytes(lambda: (x[0] * x[1]).exp(), []) == 4 * (100 + 10)
    assert saved_bytes(lambda: x * x * x, []) == 4 * (100 + 100)
    assert saved_bytes(lambda: x + 1, []) == 0
    weight = nn.Parameter(torch.randn(10))
    assert saved_bytes(lambda: x[0] * weight, [weight]) == 400
