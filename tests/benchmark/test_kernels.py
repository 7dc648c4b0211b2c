import multiprocessing
import pickle

import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark import kernels
from gw_detectron.benchmark.inputs import LayerInput
from gw_detectron.benchmark.machine import Machine
from gw_detectron.layers import GroupWhitening, set_backend

MACHINE = Machine.prepare("cpu", "bfloat16", channels_last=True)
LAYER = GroupWhitening(16, num_groups=8, iterations=3, affine=False)


class Pool:
    """In the place of several processes."""

    def __init__(self):
        self.tasks, self.late, self.terminated = [], False, False

    def map_async(self, run, tasks, chunksize):
        self.tasks += pickle.loads(pickle.dumps(list(tasks)))
        return self

    def get(self, seconds):
        if self.late:
            raise multiprocessing.TimeoutError

    def terminate(self):
        self.terminated = True


@pytest.fixture
def pool(monkeypatch):
    pool = Pool()
    kernels._pool.cache_clear()
    monkeypatch.setattr(kernels.multiprocessing, "get_context", lambda kind: kernels)
    monkeypatch.setattr(kernels, "Pool", lambda *args: pool)
    monkeypatch.setattr(kernels.atexit, "register", lambda call: None)
    yield pool
    kernels._pool.cache_clear()


@pytest.fixture
def runs(monkeypatch):
    """(type, memory format kept, training) of each run of a layer, and the backend chosen."""
    seen = []

    def forward(layer, x):
        assert layer.extra_repr() == LAYER.extra_repr()
        last = x.is_contiguous(memory_format=torch.channels_last)
        seen.append((x.dtype, last, torch.is_grad_enabled()))
        return x * 1

    monkeypatch.setattr(GroupWhitening, "forward", forward)
    monkeypatch.setattr(kernels, "set_backend", seen.append)
    return seen


def test_each_input_is_run_once_in_inference_and_once_with_its_gradient(pool, runs):
    inputs = [LayerInput((2, 16, 3, 3), LAYER, ("a",)), LayerInput((2, 16, 3, 3), LAYER, ("b",))]
    inputs.append(LayerInput((2, 16), LAYER, ("c",)))
    kernels.compile_kernels(inputs, MACHINE, torch.float32)
    assert [task[0] for task in pool.tasks] == [(2, 16, 3, 3), (2, 16)]
    kernels._run(pool.tasks[0])
    bf16 = torch.bfloat16
    assert runs == ["triton", (bf16, True, False), (bf16, True, True)]


def test_what_fails_there_is_left_to_where_it_is_measured(pool, monkeypatch):
    kernels.compile_kernels([LayerInput((2, 16), LAYER, ())], MACHINE, torch.float32)
    monkeypatch.setattr(kernels, "set_backend", lambda name: 1 / 0)
    kernels._run(pool.tasks[0])


def test_processes_that_take_too_long_are_ended(pool):
    pool.late = True
    kernels.compile_kernels([LayerInput((2, 16), LAYER, ())], MACHINE, torch.float32)
    assert pool.terminated and kernels._pool.cache_info().currsize == 0


def test_an_input_that_pytorch_would_compute_instead_is_refused():
    pytest.importorskip("triton")
    try:
        with pytest.raises((RuntimeError, ValueError), match="[Tt]riton"):
            kernels.require_kernels(torch.zeros(2, 16, 3, dtype=torch.float64), 8)
    finally:
        set_backend(None)
