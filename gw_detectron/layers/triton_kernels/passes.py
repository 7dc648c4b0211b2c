"""
What touches anything of the input's size, as Triton kernels; the functions of ../passes.py.

Every kernel reads its inputs once, a tile of all groups at a time. Sums over positions are split
over programs, which leave their shares to be added up: no atomics, the same result every time.

Half types are multiplied as they are, on the tensor cores, with sums in float32: products of two
such numbers are exact. A matrix in float32 that multiplies them is taken as the sum of two in the
half type, which keeps 16 of its bits or more. What a mean contributes is subtracted from the sums.
float32 is centred while it is read.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..passes import result_like
from ..precision import tf32_is_allowed
from .launch import Launch, multiprocessors
from .layout import Layout, as_matrix, as_tile, axes, layout_of, locate, sample


def data_of(x: Tensor) -> Tensor:
    """What the passes take for x: x as it is."""
    return x


def without_offset(x: Tensor, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What the passes take for x - mean: they subtract themselves."""
    return x, mean


def moments(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """
    Summed relative to a pivot, the mean of a few columns of each group, so that a mean that is
    large against the deviation costs no accuracy.

    Returns:
        (mean, Sigma): of each sample's groups, (N, g, 1) and (N, g, g) in float32.
    """
    n, g = x.shape[0], num_groups
    parts, sum_up, add_shares = _moments(
        x.shape, x.stride(), x.dtype, x.device, g, eps, _products_of(x)
    )
    mean = x.new_empty((n, g, 1), dtype=torch.float32)
    sigma = mean.new_empty((n, g, g))
    if parts == 1:
        sum_up(x, mean, sigma)
    else:
        shares = mean.new_empty((n, parts, g + 2, g))
        sum_up(x, mean, shares)
        add_shares(shares, mean, sigma)
    return mean, sigma


@functools.lru_cache(maxsize=1024)
def _moments(
    shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device, g: int,
    eps: float, products: str,
) -> tuple[int, Launch, Launch]:  # fmt: skip
    """(programs a sample, their launch, that of what adds up their shares)."""
    n, layout = shape[0], layout_of(shape, stride, g).with_places_merged()
    tiling, options = _options("moments", (layout,), g, dtype, products)
    parts = min(_parts(n, tiling, device), triton.cdiv(_num_tiles(layout, options), _LEAST_TILES))
    numbers = layout.places, layout.positions, *layout.strides, parts, 1 / layout.columns, eps
    return (
        parts,
        Launch(_moments_kernel, n * parts, *numbers, SPLIT=parts > 1, **options),
        Launch(_add_shares_kernel, n * g, parts, eps, NUM_GROUPS=g, G=options["G"]),
    )


_PIVOT_COLUMNS = tl.constexpr(16)


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "sample_stride", "outer_stride", "parts", "share", "eps",
    )
)  # fmt: skip
def _moments_kernel(
    x,  # (N, g, c, S)
    mean,  # (N, g)
    shares,  # (N, parts, g + 2, g): products, and sums and pivot; or Sigma, (N, g, g)
    num_places, num_positions, sample_stride, outer_stride, parts, share, eps,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program sums every parts-th tile of a sample."""
    program = tl.program_id(0)
    x = sample(x, program // parts, sample_stride, VECTOR)
    dtype: tl.constexpr = x.dtype.element_ty
    group = tl.arange(0, G)
    exists = group < NUM_GROUPS

    # The same columns in every program, spread evenly; some repeatedly where there are too few.
    num_columns = num_places * num_positions
    column = tl.arange(0, _PIVOT_COLUMNS) * tl.maximum(num_columns // _PIVOT_COLUMNS, 1)
    column = tl.minimum(column, num_columns - 1)[None, :]
    some, is_some = locate(
        group[:, None], column // num_positions, column % num_positions, NUM_GROUPS,
        num_places, num_positions, outer_stride, VECTOR, CHANNELS_INNER,
    )  # fmt: skip
    some = tl.load(x + some, mask=is_some, other=0.0).to(tl.float32)
    centre = tl.sum(some / _PIVOT_COLUMNS, axis=1)
    if dtype != tl.float32:
        # x - pivot is rounded to x's type: exact without a pivot, or where x is close to it
        spread = some - centre[:, None]
        spread = tl.sum(spread * spread / _PIVOT_COLUMNS, axis=1)
        centre = tl.where(centre * centre > 16 * spread, centre, 0.0).to(dtype).to(tl.float32)
    if CHANNELS_INNER:
        offset = centre[None, :, None]
    else:
        offset = centre[:, None, None]

    total = tl.zeros((G, K * B), tl.float32)
    products = tl.zeros((G, G), tl.float32)
    position_tiles = tl.cdiv(num_positions, B)
    for tile in range(program % parts, tl.cdiv(num_places, K) * position_tiles, parts):
        groups, places, positions = axes(
            0, tile // position_tiles * K, tile % position_tiles * B, G, K, B, CHANNELS_INNER
        )
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        values = as_matrix(tl.where(mask, values - offset, 0.0), CHANNELS_INNER)
        factor = values.to(dtype)
        total += values
        products = tl.dot(factor, tl.trans(factor), products, input_precision=PRECISION)

    shift = tl.sum(total, axis=1) * share
    products *= share
    row, column = group[:, None], group[None, :]
    if SPLIT:
        shares += program.to(tl.int64) * ((NUM_GROUPS + 2) * NUM_GROUPS)
        last = shares + NUM_GROUPS * NUM_GROUPS + group
        tl.store(last, shift, mask=exists)
        tl.store(last + NUM_GROUPS, centre, mask=exists)
    else:
        shares += program.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
        products -= shift[:, None] * shift[None, :]
        products += tl.where(row == column, eps, 0.0)
        tl.store(mean + program * NUM_GROUPS + group, shift + centre, mask=exists)
    exists = (row < NUM_GROUPS) & (column < NUM_GROUPS)
    tl.store(shares + row * NUM_GROUPS + column, products, mask=exists)


_ROWS = tl.constexpr(64)


@triton.jit(do_not_specialize=("parts", "eps"))
def _add_shares_kernel(
    shares,  # (N, parts, g + 2, g)
    mean,  # (N, g)
    sigma,  # (N, g, g)
    parts, eps,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A program makes one row of a sample's Sigma."""
    n, row = tl.program_id(0) // NUM_GROUPS, tl.program_id(0) % NUM_GROUPS
    size: tl.constexpr = (NUM_GROUPS + 2) * NUM_GROUPS
    shares += n.to(tl.int64) * parts * size
    group = tl.arange(0, G)
    products = tl.zeros((_ROWS, G), tl.float32)
    sums = tl.zeros((_ROWS, G), tl.float32)
    for first in range(0, parts, _ROWS):
        part = first + tl.arange(0, _ROWS)[:, None]
        mask = (part < parts) & (group[None, :] < NUM_GROUPS)
        of_part = shares + part * size + group[None, :]
        products += tl.load(of_part + row * NUM_GROUPS, mask=mask, other=0.0)
        sums += tl.load(of_part + NUM_GROUPS * NUM_GROUPS, mask=mask, other=0.0)
    shift = tl.sum(sums, axis=0)
    shift_of_row = tl.sum(tl.where(group == row, shift, 0.0))
    result = tl.sum(products, axis=0) - shift_of_row * shift + tl.where(group == row, eps, 0.0)
    exists = group < NUM_GROUPS
    tl.store(sigma + tl.program_id(0).to(tl.int64) * NUM_GROUPS + group, result, mask=exists)
    if row == 0:
        pivot = tl.load(shares + (NUM_GROUPS + 1) * NUM_GROUPS + group, mask=exists, other=0.0)
        tl.store(mean + n * NUM_GROUPS + group, shift + pivot, mask=exists)


def whiten(
    x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """
    weight * W (X - mean) + bias.

    Args:
        mean, w: (N, g, 1) and (N, g, g), in float32.
        weight, bias: (C,), or None for 1 and 0.

    Returns:
        Tensor: of x's shape, type and memory format.
    """
    y = result_like(x)
    launch = _whiten(
        x.shape, x.stride(), y.stride(), x.dtype, x.device, w.shape[-1], _products_of(x)
    )
    launch(x, y, *map(_dense, (mean, w, weight, bias)))
    return y


@functools.lru_cache(maxsize=1024)
def _whiten(
    shape: torch.Size, x_stride: tuple[int, ...], y_stride: tuple[int, ...], dtype: torch.dtype,
    device: torch.device, g: int, products: str,
) -> Launch:  # fmt: skip
    layouts = x, y = [layout_of(shape, stride, g) for stride in (x_stride, y_stride)]
    tiling, options = _options("whiten", layouts, g, dtype, products)
    parts = min(_parts(shape[0], tiling, device), _num_tiles(x, options))
    numbers = x.places, x.positions, *x.strides, *y.strides, parts
    return Launch(_whiten_kernel, shape[0] * parts, *numbers, **options)


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "y_sample_stride",
        "y_outer_stride", "parts",
    )
)  # fmt: skip
def _whiten_kernel(
    x, y,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    weight, bias,  # (C,) or None
    num_places, num_positions, x_sample_stride, x_outer_stride, y_sample_stride, y_outer_stride,
    parts,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program makes every parts-th tile, from the last on: the moments left that in the cache."""
    program = tl.program_id(0)
    n = program // parts
    x = sample(x, n, x_sample_stride, VECTOR)
    y = sample(y, n, y_sample_stride, VECTOR)
    matrix = _load_matrix(w, n, NUM_GROUPS, G)
    mean += n * NUM_GROUPS
    high, low, scale = _halves(matrix, x.dtype.element_ty)
    shift = _times_vector(matrix, mean, NUM_GROUPS, G)
    position_tiles = tl.cdiv(num_positions, B)
    num_tiles = tl.cdiv(num_places, K) * position_tiles
    for done in range(program % parts, num_tiles, parts):
        tile = num_tiles - 1 - done
        groups, places, positions = axes(
            0, tile // position_tiles * K, tile % position_tiles * B, G, K, B, CHANNELS_INNER
        )
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, x_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        values = tl.load(x + offsets, mask=mask, other=0.0)
        if x.dtype.element_ty == tl.float32:
            values -= tl.load(mean + groups, mask=groups < NUM_GROUPS, other=0.0)
        values = as_matrix(values, CHANNELS_INNER)
        result = _times_tile(high, low, values, tl.zeros((G, K * B), tl.float32), PRECISION)
        if x.dtype.element_ty != tl.float32:
            result = result * scale - shift[:, None]
        result = as_tile(result, K, B, CHANNELS_INNER)
        channel = groups * num_places + places
        is_channel = (groups < NUM_GROUPS) & (places < num_places)
        if weight is not None:
            result *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
        if bias is not None:
            result += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, y_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        tl.store(y + offsets, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _load_matrix(matrices, n, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    row, column = tl.arange(0, G)[:, None], tl.arange(0, G)[None, :]
    mask = (row < NUM_GROUPS) & (column < NUM_GROUPS)
    matrices += n.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    return tl.load(matrices + row * NUM_GROUPS + column, mask=mask, other=0.0)


@triton.jit
def _times_vector(matrix, vector, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    group = tl.arange(0, G)
    vector = tl.load(vector + group, mask=group < NUM_GROUPS, other=0.0)
    return tl.sum(matrix * vector[None, :], axis=1)


@triton.jit
def _halves(matrix, dtype: tl.constexpr):
    """(high, low, scale) with matrix = scale (high + low) in the type; in float32 the matrix."""
    if dtype == tl.float32:
        high, low, scale = matrix, matrix, 1.0
    else:
        scale = tl.max(tl.abs(matrix))
        scale = tl.where(scale > 0, scale, 1.0)
        matrix /= scale
        high = matrix.to(dtype)
        low = (matrix - high.to(tl.float32)).to(dtype)
    return high, low, scale


@triton.jit
def _times_tile(high, low, tile, result, PRECISION: tl.constexpr):
    """result + (high + low) tile."""
    if tile.dtype != tl.float32:
        result = tl.dot(low, tile, result)
    return tl.dot(high, tile, result, input_precision=PRECISION)


def reduce(
    dy: Tensor, x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    All that the backward needs to sum over positions, of dy and of the products dy X^T.

    Returns:
        (dW, mean of dY, dweight, dbias): (N, g, g), (N, g, 1), (C,), (C,), in float32.
    """
    n, g = x.shape[0], w.shape[-1]
    dy = _laid_out_like(dy, x, g)
    num_shares, sum_up, add_shares = _reduce(
        x.shape, x.stride(), dy.stride(), x.dtype, x.device, g, _products_of(x)
    )
    shares = mean.new_empty(num_shares)
    grad_w, mean_dy = mean.new_empty((n, g, g)), mean.new_empty((n, g, 1))
    grad_weight, grad_bias = mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])
    sum_up(x, dy, *map(_dense, (mean, w, weight)), grad_w, mean_dy, shares)
    add_shares(shares, grad_w, mean_dy, grad_weight, grad_bias)
    return grad_w, mean_dy, grad_weight, grad_bias


@functools.lru_cache(maxsize=1024)
def _reduce(
    shape: torch.Size, x_stride: tuple[int, ...], dy_stride: tuple[int, ...], dtype: torch.dtype,
    device: torch.device, g: int, products: str,
) -> tuple[int, Launch, Launch]:  # fmt: skip
    """(how many numbers the programs leave, their launch, that of what adds them up)."""
    n, c = shape[0], shape[1] // g
    layouts = x, dy = [layout_of(shape, stride, g) for stride in (x_stride, dy_stride)]
    tiling, options = _options("reduce", layouts, g, dtype, products)
    place_tiles, position_tiles = x.tiles(options["K"], options["B"])
    place_parts = min(_parts(n, tiling, device), place_tiles)
    position_parts = min(
        triton.cdiv(_parts(n, tiling, device), place_parts),
        triton.cdiv(position_tiles, _LEAST_TILES),
    )
    parts = place_parts * position_parts
    of_groups = n * parts * (g + 1) * g if parts > 1 else 0
    numbers = x.places, x.positions, *x.strides, *dy.strides, place_parts, position_parts
    return (
        of_groups + 2 * n * position_parts * c * g,
        Launch(
            _reduce_kernel, n * parts, *numbers, of_groups, 1 / x.columns, SPLIT=parts > 1,
            **options,
        ),
        Launch(
            _sums_kernel, (n * (g + 1) if parts > 1 else 0) + 2 * c,
            n, parts, n * position_parts, c, of_groups, NUM_GROUPS=g, G=options["G"],
        ),
    )  # fmt: skip


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "dy_sample_stride",
        "dy_outer_stride", "place_parts", "position_parts", "of_groups", "share",
    )
)  # fmt: skip
def _reduce_kernel(
    x, dy,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    weight,  # (C,) or None
    grad_w,  # (N, g, g)
    mean_dy,  # (N, g)
    shares,  # see _sums_kernel
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    place_parts, position_parts, of_groups, share,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """
    A program sums every position_parts-th tile of positions of every place_parts-th of places.

    One place at a time, E = dy Xc^T serves both: dW = weight * E summed over places, and
    dweight = diag(E W^T). Where places lie side by side in memory they are read together, and
    dweight is summed from dy * (W Xc).
    """
    program = tl.program_id(0)
    n = program // (place_parts * position_parts)
    place_part = program // position_parts % place_parts
    position_part = program % position_parts
    dy = sample(dy, n, dy_sample_stride, VECTOR)
    x = sample(x, n, x_sample_stride, VECTOR)
    dtype: tl.constexpr = x.dtype.element_ty
    mean += n * NUM_GROUPS
    group = tl.arange(0, G)
    exists = group < NUM_GROUPS
    row = group[:, None]
    num_channels = NUM_GROUPS * num_places
    num_samples = tl.num_programs(0) // (place_parts * position_parts)
    grad_weight = shares + of_groups + (n * position_parts + position_part) * num_channels
    grad_bias = grad_weight + num_samples * position_parts * num_channels
    mean_of_column = tl.load(mean + group, mask=exists, other=0.0)[None, :]
    if CHANNELS_INNER:
        matrix = _load_matrix(w, n, NUM_GROUPS, G)
        high, low, scale = _halves(matrix, dtype)
        shift = _times_vector(matrix, mean, NUM_GROUPS, G)

    total_w = tl.zeros((G, G), tl.float32)
    total_mean = tl.zeros((G,), tl.float32)
    for place_tile in range(place_part, tl.cdiv(num_places, K), place_parts):
        first_place = place_tile * K
        total_dy = as_tile(tl.zeros((G, K * B), tl.float32), K, B, CHANNELS_INNER)
        along_y = as_tile(tl.zeros((G, K * B), tl.float32), K, B, CHANNELS_INNER)
        product = tl.zeros((G, G), tl.float32)
        for tile in range(position_part, tl.cdiv(num_positions, B), position_parts):
            groups, places, positions = axes(0, first_place, tile * B, G, K, B, CHANNELS_INNER)
            offsets, mask = locate(
                groups, places, positions, NUM_GROUPS, num_places, num_positions,
                dy_outer_stride, VECTOR, CHANNELS_INNER,
            )  # fmt: skip
            dy_tile = tl.load(dy + offsets, mask=mask, other=0.0)
            offsets, mask = locate(
                groups, places, positions, NUM_GROUPS, num_places, num_positions,
                x_outer_stride, VECTOR, CHANNELS_INNER,
            )  # fmt: skip
            x_tile = tl.load(x + offsets, mask=mask, other=0.0)
            if dtype == tl.float32:
                x_tile -= tl.load(mean + groups, mask=groups < NUM_GROUPS, other=0.0)
            x_tile = as_matrix(x_tile, CHANNELS_INNER)
            total_dy += dy_tile.to(tl.float32)
            if CHANNELS_INNER:
                y_tile = _times_tile(high, low, x_tile, tl.zeros((G, K * B), tl.float32), PRECISION)
                if dtype != tl.float32:
                    y_tile = y_tile * scale - shift[:, None]
                along_y += dy_tile.to(tl.float32) * as_tile(y_tile, K, B, CHANNELS_INNER)
                if weight is not None:
                    dy_tile = _weighted(dy_tile, weight, groups, places, num_places, NUM_GROUPS)
            product = tl.dot(
                as_matrix(dy_tile, CHANNELS_INNER), tl.trans(x_tile), product,
                input_precision=PRECISION,
            )  # fmt: skip

        place = first_place + tl.arange(0, K)[None, :]
        channel = row * num_places + place
        is_channel = (row < NUM_GROUPS) & (place < num_places)
        if CHANNELS_INNER:
            sum_dy = tl.sum(total_dy, axis=0)
            sum_weight = tl.sum(along_y, axis=0)
        else:
            sum_dy = tl.sum(total_dy, axis=2)
            if dtype != tl.float32:
                product -= sum_dy * mean_of_column
            sum_weight = tl.sum(product * _load_matrix(w, n, NUM_GROUPS, G), axis=1)[:, None]
        tl.store(grad_bias + channel, sum_dy, mask=is_channel)
        tl.store(grad_weight + channel, sum_weight, mask=is_channel)
        if weight is not None:
            factor = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
            sum_dy *= factor
            if not CHANNELS_INNER:
                product *= factor
        sum_over_places = tl.sum(sum_dy, axis=1)
        if CHANNELS_INNER and dtype != tl.float32:
            product -= sum_over_places[:, None] * mean_of_column
        total_w += product
        total_mean += sum_over_places

    if SPLIT:
        grad_w = shares + program * ((NUM_GROUPS + 1) * NUM_GROUPS)
        mean_dy = grad_w + NUM_GROUPS * NUM_GROUPS
    else:
        grad_w += program.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
        mean_dy += program * NUM_GROUPS
    mask = (row < NUM_GROUPS) & (group[None, :] < NUM_GROUPS)
    tl.store(grad_w + row * NUM_GROUPS + group[None, :], total_w, mask=mask)
    tl.store(mean_dy + group, total_mean * share, mask=exists)


@triton.jit(do_not_specialize=("num_samples", "parts", "channel_parts", "num_places", "of_groups"))
def _sums_kernel(
    shares,  # (N, parts, g + 1, g) of dW and of the mean of dY, unless parts = 1; then
    # 2 (channel_parts, C), of dweight and dbias
    grad_w,  # (N, g, g)
    mean_dy,  # (N, g)
    grad_weight, grad_bias,  # (C,)
    num_samples, parts, channel_parts, num_places, of_groups,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A program adds up g numbers: of dweight, of dbias, or a row of a sample's."""
    program = tl.program_id(0)
    g: tl.constexpr = NUM_GROUPS
    num_channels = num_places * g
    if program < num_places:
        first = shares + of_groups + program * g
        _sum(first, grad_weight + program * g, channel_parts, num_channels, g, G)
    elif program < 2 * num_places:
        place = program - num_places
        first = shares + of_groups + channel_parts * num_channels + place * g
        _sum(first, grad_bias + place * g, channel_parts, num_channels, g, G)
    else:
        n = (program - 2 * num_places) // (g + 1)
        row = (program - 2 * num_places) % (g + 1)
        first = shares + (n * parts * (g + 1) + row) * g
        if row < g:
            _sum(first, grad_w + (n * g + row) * g, parts, (g + 1) * g, g, G)
        else:
            _sum(first, mean_dy + n * g, parts, (g + 1) * g, g, G)


@triton.jit
def _sum(shares, result, parts, stride, SIZE: tl.constexpr, G: tl.constexpr):
    column = tl.arange(0, G)
    exists = column < SIZE
    total = tl.zeros((_ROWS, G), tl.float32)
    for start in range(0, parts, _ROWS):
        part = start + tl.arange(0, _ROWS)[:, None]
        mask = (part < parts) & exists[None, :]
        total += tl.load(shares + part * stride + column[None, :], mask=mask, other=0.0)
    tl.store(result + column, tl.sum(total, axis=0), mask=exists)


@triton.jit
def _weighted(dy, weight, groups, places, num_places, NUM_GROUPS: tl.constexpr):
    """weight * dy, in dy's type."""
    mask = (groups < NUM_GROUPS) & (places < num_places)
    factor = tl.load(weight + groups * num_places + places, mask=mask, other=0.0).to(tl.float32)
    return (dy.to(tl.float32) * factor).to(dy.dtype)


def input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    mean_dy: Tensor,
    w: Tensor,
    grad_sigma: Tensor,
    weight: Tensor | None,
) -> Tensor:
    """
    W (dY - mean(dY)) + 2/m dSigma (X - mean), dY = weight * dy.

    Args:
        grad_sigma: (N, g, g), symmetric.

    Returns:
        Tensor: of x's shape, type and memory format.
    """
    g = w.shape[-1]
    dy, dx = _laid_out_like(dy, x, g), result_like(x)
    launch = _input_gradient(
        x.shape, x.stride(), dy.stride(), dx.stride(), x.dtype, x.device, g, _products_of(x)
    )
    launch(x, dy, dx, *map(_dense, (mean, mean_dy, w, grad_sigma, weight)))
    return dx


@functools.lru_cache(maxsize=1024)
def _input_gradient(
    shape: torch.Size, x_stride: tuple[int, ...], dy_stride: tuple[int, ...],
    dx_stride: tuple[int, ...], dtype: torch.dtype, device: torch.device, g: int, products: str,
) -> Launch:  # fmt: skip
    layouts = x, dy, dx = [
        layout_of(shape, stride, g) for stride in (x_stride, dy_stride, dx_stride)
    ]
    tiling, options = _options("input_gradient", layouts, g, dtype, products)
    parts = min(_parts(shape[0], tiling, device), _num_tiles(x, options))
    numbers = x.places, x.positions, *x.strides, *dy.strides, *dx.strides, parts, 2 / x.columns
    return Launch(_input_gradient_kernel, shape[0] * parts, *numbers, **options)


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "dy_sample_stride",
        "dy_outer_stride", "dx_sample_stride", "dx_outer_stride", "parts", "factor",
    )
)  # fmt: skip
def _input_gradient_kernel(
    x, dy, dx,  # (N, g, c, S)
    mean, mean_dy,  # (N, g)
    w, grad_sigma,  # (N, g, g)
    weight,  # (C,) or None
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    dx_sample_stride, dx_outer_stride, parts, factor,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program makes every parts-th tile, from the last on, which may still be in the cache."""
    program = tl.program_id(0)
    n = program // parts
    dy = sample(dy, n, dy_sample_stride, VECTOR)
    x = sample(x, n, x_sample_stride, VECTOR)
    dx = sample(dx, n, dx_sample_stride, VECTOR)
    dtype: tl.constexpr = x.dtype.element_ty
    mean += n * NUM_GROUPS
    mean_dy += n * NUM_GROUPS
    of_dy = _load_matrix(w, n, NUM_GROUPS, G)
    of_x = _load_matrix(grad_sigma, n, NUM_GROUPS, G) * factor
    shift = _times_vector(of_dy, mean_dy, NUM_GROUPS, G) + _times_vector(of_x, mean, NUM_GROUPS, G)
    dy_high, dy_low, dy_scale = _halves(of_dy, dtype)
    x_high, x_low, x_scale = _halves(of_x, dtype)
    position_tiles = tl.cdiv(num_positions, B)
    num_tiles = tl.cdiv(num_places, K) * position_tiles
    for done in range(program % parts, num_tiles, parts):
        tile = num_tiles - 1 - done
        groups, places, positions = axes(
            0, tile // position_tiles * K, tile % position_tiles * B, G, K, B, CHANNELS_INNER
        )
        exists = groups < NUM_GROUPS
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, x_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        x_tile = tl.load(x + offsets, mask=mask, other=0.0)
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, dy_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        dy_tile = tl.load(dy + offsets, mask=mask, other=0.0)
        if weight is not None:
            dy_tile = _weighted(dy_tile, weight, groups, places, num_places, NUM_GROUPS)
        if dtype == tl.float32:
            x_tile -= tl.load(mean + groups, mask=exists, other=0.0)
            dy_tile -= tl.load(mean_dy + groups, mask=exists, other=0.0)
        result = tl.zeros((G, K * B), tl.float32)
        result = _times_tile(x_high, x_low, as_matrix(x_tile, CHANNELS_INNER), result, PRECISION)
        if dtype != tl.float32:
            result *= x_scale / dy_scale
        result = _times_tile(dy_high, dy_low, as_matrix(dy_tile, CHANNELS_INNER), result, PRECISION)
        if dtype != tl.float32:
            result = result * dy_scale - shift[:, None]
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, dx_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        result = as_tile(result, K, B, CHANNELS_INNER).to(dtype)
        tl.store(dx + offsets, result, mask=mask)


class _Tiling(NamedTuple):
    """
    Attributes:
        columns: of a tile; half as many in channels_last, which takes more registers.
        warps, stages: of a program; how many tiles it reads ahead.
        programs: how many of them a multiprocessor holds.
    """

    columns: int
    warps: int
    stages: int
    programs: int


# By kernel and by what is multiplied: the quickest of those measured on an H200 with g = 64
_TILINGS = {
    ("moments", "half"): _Tiling(64, 4, 3, 2),
    ("moments", "tf32"): _Tiling(64, 4, 3, 2),
    ("moments", "tf32x3"): _Tiling(64, 4, 2, 2),
    ("whiten", "half"): _Tiling(64, 4, 3, 4),
    ("whiten", "tf32"): _Tiling(64, 4, 3, 3),
    ("whiten", "tf32x3"): _Tiling(64, 4, 2, 2),
    ("reduce", "half"): _Tiling(32, 4, 4, 2),
    ("reduce", "tf32"): _Tiling(32, 4, 3, 2),
    ("reduce", "tf32x3"): _Tiling(32, 4, 2, 2),
    ("input_gradient", "half"): _Tiling(64, 4, 3, 2),
    ("input_gradient", "tf32"): _Tiling(64, 4, 2, 2),
    ("input_gradient", "tf32x3"): _Tiling(64, 4, 2, 2),
}
# A program sums no fewer tiles than this, or the g x g share that it writes would cost too much.
_LEAST_TILES = 4


def _products_of(x: Tensor) -> str:
    """
    How x is multiplied: "half", as it is; "tf32" where PyTorch was told that it may; else "tf32x3",
    three products of TF32's that are as good as one of float32's.
    """
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if tf32_is_allowed() else "tf32x3"


def _options(
    kernel: str, layouts: Sequence[Layout], g: int, dtype: torch.dtype, products: str
) -> tuple[_Tiling, dict]:
    """The kernel's tiling and its options, for tensors that lie alike."""
    tiling, channels_inner = _TILINGS[kernel, products], layouts[0].channels_inner
    if channels_inner:
        tiling = tiling._replace(columns=tiling.columns // 2)
    if kernel == "reduce" and not channels_inner:
        K, B = 1, tiling.columns
    else:
        K, B = layouts[0].tile(tiling.columns)
    vector = min(layout.vector(dtype.itemsize) for layout in layouts)
    # To read ahead is to copy 4, 8 or 16 bytes at a time; with 4 it takes longer than waiting does.
    stages = tiling.stages if vector * dtype.itemsize > 4 else 1
    return tiling, {
        "NUM_GROUPS": g,
        "G": max(16, triton.next_power_of_2(g)),
        "K": K,
        "B": B,
        "VECTOR": vector,
        "CHANNELS_INNER": channels_inner,
        "PRECISION": "tf32" if products == "half" else products,
        "num_warps": tiling.warps,
        "num_stages": stages,
    }


def _num_tiles(layout: Layout, options: dict) -> int:
    return math.prod(layout.tiles(options["K"], options["B"]))


def _parts(n: int, tiling: _Tiling, device: torch.device) -> int:
    """Among how many programs each of n samples is divided: so many that all run at once."""
    parts = tiling.programs * multiprocessors(device) // n
    return parts if parts > 2 else 1  # two shares cost more to add up than they gain


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _laid_out_like(dy: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """dy, or a copy of it if its elements do not follow each other in x's order."""
    if dy.stride() == x.stride():
        return dy
    layout, layout_x = (layout_of(t.shape, t.stride(), num_groups) for t in (dy, x))
    if layout is not None and layout.channels_inner == layout_x.channels_inner:
        return dy
    return result_like(x).copy_(dy)
