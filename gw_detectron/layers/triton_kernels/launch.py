"""How a kernel is launched, and on what."""

import functools
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from ..backend import CannotCompile


class Launch:
    """
    A kernel with everything but its tensors, made once for each kind of input.

    Triton looks at every argument of every launch, which for a small map takes longer than the
    work. Here it does so until all tensors lie at multiples of 16 bytes, as PyTorch's own do; from
    then on such tensors are taken to be of the same types, and what Triton compiled is run on their
    addresses, as Triton itself runs it.

    Args:
        kernel: must not be specialised for any number.
        programs: how many run.
        numbers: the arguments behind the tensors; whole ones have 32 bits.
        options: the kernel's constants, by name, and Triton's own options.
    """

    def __init__(self, kernel, programs: int, *numbers: int | float, **options) -> None:
        self.kernel, self.programs = kernel, programs
        self.numbers, self.options = numbers, options
        self._run: Callable | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        """
        On the device of the first of the tensors, and its current stream.

        Raises:
            CannotCompile: Triton cannot compile the kernel, or the GPU cannot hold it.
        """
        if interpreted(self.kernel):
            self.kernel[(self.programs,)](*tensors, *self.numbers, **self.options)
            return
        device = tensors[0].device
        if device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(*tensors)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        aligned = not [a for a in addresses if a and a % 16]  # quicker than any(...)
        if aligned and self._run:
            self._run(_stream(device), *self._behind_stream, *addresses, *self._behind_tensors)
            return
        try:
            compiled = self.kernel[(self.programs,)](*tensors, *self.numbers, **self.options)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise CannotCompile(f"{self.kernel.__name__} fails: {reason}") from error
        if aligned:
            self._run = functools.partial(compiled.run, self.programs, 1, 1)
            no_hooks = None, None, None
            self._behind_stream = compiled.function, compiled.packed_metadata, *no_hooks
            constants = [self.options[n] for n in self.kernel.arg_names if n in self.options]
            self._behind_tensors = *self.numbers, *constants


def _stream(device: torch.device) -> int:
    return triton.runtime.driver.active.get_current_stream(device.index)


def dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def interpreted(kernel) -> bool:
    """Whether Triton's interpreter runs `kernel`, on the CPU."""
    return not isinstance(kernel, triton.runtime.JITFunction)


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the interpreter: a few."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
