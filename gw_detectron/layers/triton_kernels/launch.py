"""How a kernel is launched, and on what."""

import functools
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

# What runs a kernel, and its constants, by all that it depends on
_compiled: dict[tuple, tuple] = {}


def launch(
    kernel,
    programs: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int | float],
    **options,
) -> None:
    """
    Runs `programs` programs of `kernel` on the device of the first of the tensors.

    Triton looks at every argument of every launch, which for a small map takes longer than the
    work. Here it is asked once for each alignment and type of the tensors and all the options, so
    that the kernel must not be specialised for a number, and whole numbers must have 32 bits.
    """
    if interpreted(kernel):
        kernel[(programs,)](*tensors, *numbers, **options)
        return
    device = tensors[0].device
    if device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, programs, tensors, numbers, **options)
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors]
    key = (id(kernel), programs, device, *kinds, *options.values())
    if key not in _compiled:
        compiled = kernel[(programs,)](*tensors, *numbers, **options)
        constants = [options[name] for name in kernel.arg_names if name in options]
        _compiled[key] = compiled[programs, 1, 1], constants
    else:
        run, constants = _compiled[key]
        run(*tensors, *numbers, *constants)


def interpreted(kernel) -> bool:
    """Whether Triton's interpreter runs `kernel`, on the CPU."""
    return not isinstance(kernel, triton.runtime.JITFunction)


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the interpreter: a few."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
