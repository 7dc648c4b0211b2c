"""Into what tiles a kernel cuts its tensors, how it multiplies them, and how many programs run."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..precision import tf32_is_allowed
from .launch import multiprocessors
from .layout import Layout, layout_of


class Kind(NamedTuple):
    """
    What the launches for some tensors depend on, made once for each.

    Attributes:
        shape, strides, dtype, device: of x and of what is like it, x first.
        num_groups: g.
        products: how x is multiplied: "half", as it is; "tf32" where PyTorch was told that it may;
            else "tf32x3", three products of TF32's that are as good as one of float32's.
        parameters: the types of weight and bias.
    """

    shape: torch.Size
    strides: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    device: torch.device
    num_groups: int
    products: str
    parameters: tuple[torch.dtype | None, ...]

    @property
    def layouts(self) -> list[Layout]:
        return [layout_of(self.shape, stride, self.num_groups) for stride in self.strides]


def kind_of(
    tensors: Sequence[Tensor], num_groups: int, parameters: Sequence[Tensor | None] = ()
) -> Kind:
    """
    Raises:
        RuntimeError: a parameter is on another device, where a kernel must not look for it.
    """
    x = tensors[0]
    for parameter in parameters:
        if parameter is not None and parameter.device != x.device:
            raise RuntimeError(
                f"the input is on {x.device}, weight or bias on {parameter.device}: "
                "Group Whitening takes all on one device"
            )
    if x.dtype != torch.float32:
        products = "half"
    else:
        products = "tf32" if tf32_is_allowed() else "tf32x3"
    return Kind(
        x.shape,
        tuple([tensor.stride() for tensor in tensors]),
        x.dtype,
        x.device,
        num_groups,
        products,
        tuple([None if parameter is None else parameter.dtype for parameter in parameters]),
    )


class Tiling(NamedTuple):
    """
    Attributes:
        columns: of a tile; half as many in channels_last, and in float32 where numbers are read one
            by one, which take more registers.
        warps, stages: of a program; how many tiles it reads ahead.
        programs: how many of them a multiprocessor holds.
    """

    columns: int
    warps: int
    stages: int
    programs: int


# By kernel and by what is multiplied: the quickest of those measured on an H200 with g = 64
_TILINGS = {
    ("moments", "half"): Tiling(64, 4, 3, 2),
    ("moments", "tf32"): Tiling(64, 4, 3, 2),
    ("moments", "tf32x3"): Tiling(64, 4, 2, 2),
    ("whiten", "half"): Tiling(64, 4, 3, 4),
    ("whiten", "tf32"): Tiling(64, 4, 3, 3),
    ("whiten", "tf32x3"): Tiling(64, 4, 2, 2),
    ("reduce", "half"): Tiling(32, 4, 4, 2),
    ("reduce", "tf32"): Tiling(32, 4, 3, 2),
    ("reduce", "tf32x3"): Tiling(32, 4, 2, 2),
    ("input_gradient", "half"): Tiling(64, 4, 2, 3),
    ("input_gradient", "tf32"): Tiling(64, 4, 2, 2),
    ("input_gradient", "tf32x3"): Tiling(64, 4, 2, 2),
}
# A program sums no fewer tiles than this, or the g x g share that it writes would cost too much.
LEAST_TILES = 4
# How many values a sample has at most that one program takes through all passes: 256 x 16 x 16.
_MOST_AT_ONCE = 2**16


def tiling_of(
    kernel: str, kind: Kind, layouts: Sequence[Layout] | None = None
) -> tuple[Tiling, dict]:
    """The kernel's tiling and its options; `layouts` other than the kind's own may be given."""
    layouts = layouts or kind.layouts
    tiling, channels_inner = _TILINGS[kernel, kind.products], layouts[0].channels_inner
    itemsize = kind.dtype.itemsize
    vector = min(layout.vector(itemsize) for layout in layouts)
    # To read ahead is to copy 4, 8 or 16 bytes at a time; with 4 it takes longer than waiting does.
    stages = tiling.stages if vector * itemsize > 4 else 1
    columns = tiling.columns
    if channels_inner or (vector == 1 and kind.dtype == torch.float32):
        columns //= 2
    if kernel == "reduce" and not channels_inner:
        K, B = 1, columns
    else:
        K, B = layouts[0].tile(columns)
    return tiling, {
        "NUM_GROUPS": kind.num_groups,
        "G": padded(kind.num_groups),
        "K": K,
        "B": B,
        "VECTOR": vector,
        "CHANNELS_INNER": channels_inner,
        "PRECISION": "tf32" if kind.products == "half" else kind.products,
        "num_warps": tiling.warps,
        "num_stages": stages,
    }


def padded(num_groups: int) -> int:
    """The size of a tile's axis of groups; tl.dot takes 16 at least."""
    return max(16, triton.next_power_of_2(num_groups))


def matrix_options(num_groups: int) -> dict:
    """The options of a kernel whose programs work on g x g matrices alone."""
    G = padded(num_groups)
    return {"NUM_GROUPS": num_groups, "G": G, "num_warps": {16: 1, 32: 2, 64: 4}[G]}


def num_tiles(layout: Layout, options: dict) -> int:
    return math.prod(layout.tiles(options["K"], options["B"]))


def num_parts(n: int, tiling: Tiling, device: torch.device) -> int:
    """Among how many programs each of n samples is divided: so many that all run at once."""
    parts = tiling.programs * multiprocessors(device) // n
    return parts if parts > 2 else 1  # two shares cost more to add up than they gain


def at_once(x: Tensor) -> bool:
    """
    Whether one program takes a sample through all passes: where nearly every multiprocessor has a
    sample, and those that are in progress fit the GPU's cache, from which all but the first pass
    read.
    """
    n = x.shape[0]
    return 8 * n >= 7 * multiprocessors(x.device) and x.numel() <= n * _MOST_AT_ONCE
