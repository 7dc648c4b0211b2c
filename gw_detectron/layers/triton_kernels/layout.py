"""
How an input lies in memory, how it is cut into tiles, and which inputs the kernels cover.

An input (N, C, *spatial) is seen as (N, g, c, S): g groups of c channels, each at a place k within
its group, and S positions. A kernel works on tiles of all groups, some places and some positions.
What is contiguous in memory comes last in a tile, so that threads read neighbours:

    positions last, (G, K, B), of a contiguous input,
    places last, (B, G, K), of a channels_last one.

To be multiplied, either is turned into a matrix (G, K B). G, K and B are powers of two; what is
beyond the input is masked.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import interpreted

MAX_GROUPS = 64
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Layout(NamedTuple):
    """
    Attributes:
        places, positions: c and S.
        channels_inner: whether the places of a group are what is contiguous in memory; otherwise
            the positions are.
        sample_stride: between samples, in elements.
        outer_stride: between positions if channels_inner, else between channels.
    """

    places: int
    positions: int
    channels_inner: bool
    sample_stride: int
    outer_stride: int

    @property
    def strides(self) -> tuple[int, int]:
        return self.sample_stride, self.outer_stride

    @property
    def columns(self) -> int:
        """m, how many values a group has."""
        return self.places * self.positions

    def vector(self, itemsize: int) -> int:
        """How many elements every run of neighbours is a multiple of, up to 16 bytes."""
        inner = self.places if self.channels_inner else self.positions
        return math.gcd(inner, self.sample_stride, self.outer_stride, 16 // itemsize)

    def tile(self, columns: int) -> tuple[int, int]:
        """
        (K, B) with K B = columns, of as much as there is of what is contiguous; but B >= 8, since
        Triton 3.7 cannot lay out narrower tiles for the tensor cores ("Illegal shared layout").
        """
        if self.channels_inner:
            B = columns // min(triton.next_power_of_2(self.places), columns // 8)
        else:
            B = min(max(triton.next_power_of_2(self.positions), 8), columns)
        return columns // B, B

    def tiles(self, K: int, B: int) -> tuple[int, int]:
        """How many tiles there are along places and positions."""
        return triton.cdiv(self.places, K), triton.cdiv(self.positions, B)

    def extent(self, num_groups: int) -> int:
        """How many elements of memory a sample spreads over."""
        outer = self.positions if self.channels_inner else num_groups * self.places
        return outer * self.outer_stride

    def with_places_merged(self) -> "Layout":
        """Groups taken as one channel each, where their channels follow each other in memory."""
        if self.channels_inner or self.outer_stride != self.positions:
            return self
        return Layout(1, self.columns, False, self.sample_stride, self.columns)


@functools.lru_cache(maxsize=1024)
def layout_of(shape: torch.Size, stride: tuple[int, ...], num_groups: int) -> Layout | None:
    """None where a tensor's samples are neither contiguous nor channels_last."""
    position_stride, positions = 1, 1
    for size, step in zip(reversed(shape[2:]), reversed(stride[2:]), strict=True):
        if size == 1:
            continue
        if positions == 1:
            position_stride = step
        elif step != position_stride * positions:
            return None
        positions *= size
    n, channels = shape[:2]
    places = channels // num_groups
    sample_stride, channel_stride = stride[0] if n > 1 else 0, stride[1]
    if max(sample_stride, position_stride, channel_stride) >= 2**31:
        return None
    if positions == 1:
        return Layout(places, 1, True, sample_stride, 0) if channel_stride == 1 else None
    if position_stride == 1 and channel_stride >= positions:
        return Layout(places, positions, False, sample_stride, channel_stride)
    if (
        len(shape) in (4, 5)
        and (channel_stride, position_stride) == (1, channels)
        and sample_stride in (0, channels * positions)
    ):
        return Layout(places, positions, True, sample_stride, position_stride)
    return None


def covers(x: Tensor, num_groups: int) -> bool:
    """
    Whether the kernels take x: on a GPU (or anywhere in the interpreter), not empty, of 2 to 64
    groups, in float32 or a half type, and contiguous or channels_last within each sample.
    """
    return _covers(x.shape, x.stride(), x.dtype, x.device, num_groups)


@functools.lru_cache(maxsize=1024)
def _covers(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    num_groups: int,
) -> bool:
    return (
        dtype in _DTYPES
        and 2 <= num_groups <= MAX_GROUPS
        and shape.numel() > 0
        and (interpreted(locate) or (device.type == "cuda" and _capability(device) >= (8, 0)))
        and (layout := layout_of(shape, stride, num_groups)) is not None
        # Offsets within a sample are 32 bits wide.
        and layout.extent(num_groups) < 2**31
    )


def are_quicker(x: Tensor) -> bool:
    """Whether the kernels have been measured to be quicker, of an input that they cover."""
    return _capability(x.device) == (9, 0)


@functools.lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) where the GPU is not NVIDIA's."""
    return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)


@triton.jit
def axes(
    first_place, first_position,
    G: tl.constexpr, K: tl.constexpr, B: tl.constexpr, CHANNELS_INNER: tl.constexpr,
):  # fmt: skip
    """(groups, places, positions) of a tile: along its axes and of size 1 along the others."""
    groups = tl.arange(0, G)
    places = first_place + tl.arange(0, K)
    positions = first_position + tl.arange(0, B)
    if CHANNELS_INNER:
        return groups[None, :, None], places[None, None, :], positions[:, None, None]
    else:
        return groups[:, None, None], places[None, :, None], positions[None, None, :]


@triton.jit
def locate(
    groups, places, positions, num_groups, num_places, num_positions, outer_stride,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr,
):  # fmt: skip
    """
    (offsets within the sample, mask of what exists).

    Dividing by VECTOR and multiplying again tells the compiler what it cannot see: that runs start
    and end at multiples of it, so that they can be read as vectors.
    """
    outer_stride = outer_stride // VECTOR * VECTOR
    if CHANNELS_INNER:
        num_places = num_places // VECTOR * VECTOR
        offsets = positions * outer_stride + groups * num_places + places
    else:
        num_positions = num_positions // VECTOR * VECTOR
        offsets = (groups * num_places + places) * outer_stride + positions
    mask = (groups < num_groups) & (places < num_places) & (positions < num_positions)
    return offsets, mask


@triton.jit
def sample(pointer, n, stride, VECTOR: tl.constexpr):
    """Where sample n begins."""
    return pointer + n.to(tl.int64) * (stride // VECTOR * VECTOR)


@triton.jit
def along_groups(vector, CHANNELS_INNER: tl.constexpr):
    """A vector (G,) to be combined with tiles."""
    if CHANNELS_INNER:
        return vector[None, :, None]
    else:
        return vector[:, None, None]


@triton.jit
def as_matrix(tile, CHANNELS_INNER: tl.constexpr):
    """A tile as (G, K B)."""
    if CHANNELS_INNER:
        tile = tl.permute(tile, (1, 2, 0))
    return tl.reshape(tile, (tile.shape[0], tile.shape[1] * tile.shape[2]))


@triton.jit
def as_tile(matrix, K: tl.constexpr, B: tl.constexpr, CHANNELS_INNER: tl.constexpr):
    """The inverse of :func:`as_matrix`."""
    tile = tl.reshape(matrix, (matrix.shape[0], K, B))
    if CHANNELS_INNER:
        tile = tl.permute(tile, (2, 0, 1))
    return tile
