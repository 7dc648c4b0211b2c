"""
Compiles Group Whitening's Triton kernels for an H100 or H200, without one, as they would be for
some inputs, and prints a line of JSON for each: what it takes of a multiprocessor.

    python -m tests.layers.compiled_kernels [--groups 64] [--dtype float32] [--tf32]
                                            [--channels-last] [--places 4]

A multiprocessor has 65536 registers, at most 255 a thread, and 227 KiB of shared memory.
"""

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

KERNELS = "gw_detectron.layers.triton_kernels"


class Driver:
    """What Triton's compiler asks the driver of a GPU."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_kernel(launch, *tensors):
    """In place of Launch.__call__: the same kernel, compiled but not run."""
    kernel, arguments = launch.kernel, (*tensors, *launch.numbers)
    compiled = kernel.warmup(*arguments, grid=(launch.programs,), **launch.options)
    registers, stack = resources(compiled.asm["cubin"])
    figures = {
        "kernel": kernel.__name__.strip("_"),
        "warps": compiled.metadata.num_warps,
        "registers a thread": registers,
        "spilled bytes a thread": stack,
        "shared bytes": compiled.metadata.shared,
    }
    print(json.dumps(figures), flush=True)


def resources(cubin):
    """(registers, bytes of stack) a thread."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", text).groups()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--tf32", action="store_true", help="as if PyTorch was allowed TF32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--places", type=int, default=4, help="channels a group")
    options = parser.parse_args()

    triton.runtime.driver.set_active(Driver())
    launch, tiling = (importlib.import_module(f"{KERNELS}.{name}") for name in ("launch", "tiling"))
    launch.Launch.__call__ = compile_kernel
    tiling.multiprocessors = lambda device: 132
    torch.backends.cuda.matmul.allow_tf32 = options.tf32

    g, channels = options.groups, options.groups * options.places
    kernels = importlib.import_module(KERNELS)
    x = torch.zeros(2, channels, 32, 64, dtype=getattr(torch, options.dtype))
    side = min(7, math.isqrt(2**16 // channels))  # such that one program takes a sample
    small = torch.zeros(132, channels, side, side, dtype=x.dtype)
    if options.channels_last:
        x, small = (t.to(memory_format=torch.channels_last) for t in (x, small))
    for weight in (torch.zeros(channels), None):
        for y in (x, small):
            results = kernels.forward(y, g, weight, weight, 5, 1e-5)
            kernels.backward(y, y, weight, *results[1:], 5)
    _, mean, w, _ = kernels.forward(x, g, None, None, 5, 1e-5)
    kernels.whiten(x, mean, w, None, None)
    kernels.input_gradient(x, x, mean, mean, w, w, None)
    kernels.newton(w, 5)
    kernels.newton_backward(w, w, w, 5)


if __name__ == "__main__":
    main()
