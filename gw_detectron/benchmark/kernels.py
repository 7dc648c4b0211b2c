"""
Triton's kernels, compiled by several processes at once before anything is timed.

A kernel takes a second or two to compile, and a model's layers have some hundred variants of them.
The processes run the layers once, and Triton's cache on disk then has what they compiled.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Iterable
from multiprocessing.pool import Pool
from typing import Any

import torch
from torch import Tensor

from ..layers import GroupWhitening, set_backend
from ..layers.backend import backend_for
from .inputs import LayerInput
from .machine import Machine

__all__ = ["compile_kernels", "require_kernels"]

_LONGEST = 60  # seconds; what is not compiled by then is compiled where it is first used


def require_kernels(x: Tensor, num_groups: int) -> None:
    """
    Raises:
        RuntimeError: Triton's kernels do not compute x, and PyTorch would do it in their place.
        ValueError: Triton is not installed.
    """
    set_backend("triton")
    if "triton" not in backend_for(x, num_groups).__name__:
        raise RuntimeError(
            "Triton's kernels do not run here: they need a GPU or TRITON_INTERPRET=1, and an input "
            "that they cover"
        )


def compile_kernels(
    inputs: Iterable[LayerInput], machine: Machine, parameters: torch.dtype
) -> None:
    """
    Compiles what the layers run on the machine's GPU, forward and backward.

    Args:
        parameters: the type of weights and biases.
    """
    precision = torch.get_float32_matmul_precision()
    tasks = {
        (at.shape, at.layer.extra_repr()): (
            at.shape, _options(at.layer), machine, parameters, precision
        )
        for at in inputs
    }  # fmt: skip
    try:
        _pool().map_async(_run, tasks.values(), chunksize=1).get(_LONGEST)
    except multiprocessing.TimeoutError:
        _pool().terminate()  # or it would take part in what is timed
        _pool.cache_clear()


@functools.cache
def _pool() -> Pool:
    """Its processes end with this one, killed or not."""
    processes = max(1, len(os.sched_getaffinity(0)) - 2)
    pool = multiprocessing.get_context("spawn").Pool(processes, _prepare)
    atexit.register(pool.terminate)
    return pool


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    torch.set_num_threads(1)


def _options(layer: GroupWhitening) -> dict[str, Any]:
    names = "num_channels", "num_groups", "iterations", "eps", "method", "affine", "rescale"
    return {name: getattr(layer, name) for name in names}


def _run(task: tuple) -> None:
    """What fails here fails again where it is measured, and is noted there."""
    shape, options, machine, parameters, precision = task
    with contextlib.suppress(Exception):
        torch.set_float32_matmul_precision(precision)
        set_backend("triton")
        layer = GroupWhitening(**options).to(machine.device, parameters)
        x = torch.randn(shape, device=machine.device, dtype=machine.dtype)
        if x.dim() == 4:
            x = x.to(memory_format=machine.memory_format)
        with torch.no_grad():
            layer(x)
        y = layer(x.requires_grad_())
        y.backward(torch.randn_like(y))
        if x.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
