"""How a kernel is launched, and on what."""

import functools

import torch
import triton
from torch import Tensor


def launch(kernel, programs: int, *arguments, on: Tensor, **options) -> None:
    """Runs `programs` programs of `kernel` on the device of `on`."""
    with torch.cuda.device_of(on):
        kernel[(programs,)](*arguments, **options)


def interpreted(kernel) -> bool:
    """Whether Triton's interpreter runs `kernel`, on the CPU."""
    return not isinstance(kernel, triton.runtime.JITFunction)


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the interpreter: a few."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
