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
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..passes import result_like
from ..precision import tf32_is_allowed
from .launch import launch, multiprocessors
from .layout import Layout, as_matrix, as_tile, axes, channels_of, layout_of, locate, sample


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
    n, g = len(x), num_groups
    layout = layout_of(x, g).with_places_merged()
    parts, options = _moments_options(layout, n, g, x.dtype, x.device, _kind(x))
    mean = x.new_empty((n, g, 1), dtype=torch.float32)
    sigma = mean.new_empty((n, g, g))
    shares = mean.new_empty((n, parts, g + 2, g)) if parts > 1 else sigma
    launch(
        _moments_kernel,
        n * parts,
        (x, mean, shares),
        (layout.places, layout.positions, *layout.strides, parts, 1 / layout.columns, eps),
        **options,
    )  # fmt: skip
    if parts > 1:
        launch(
            _add_shares_kernel,
            n * g,
            (shares, mean, sigma),
            (parts, eps),
            NUM_GROUPS=g,
            G=options["G"],
        )  # fmt: skip
    return mean, sigma


@functools.lru_cache(maxsize=1024)
def _moments_options(
    layout: Layout, n: int, g: int, dtype: torch.dtype, device: torch.device, kind: str
) -> tuple[int, dict]:
    """(programs a sample, the kernel's options)."""
    tile = _tile("moments", kind, layout)
    K, B = layout.tile(tile.columns)
    place_tiles, position_tiles = layout.tiles(K, B)
    vector = _vector(dtype, layout)
    parts = min(
        _parts(n, tile.programs, device), triton.cdiv(place_tiles * position_tiles, _LEAST_TILES)
    )
    return parts, {
        "NUM_GROUPS": g,
        "G": _padded(g),
        "K": K,
        "B": B,
        "VECTOR": vector,
        "CHANNELS_INNER": layout.channels_inner,
        "SPLIT": parts > 1,
        "PRECISION": "tf32" if kind == "half" else kind,
        "num_warps": tile.warps,
        "num_stages": _stages(tile, dtype, vector),
    }


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
    n, g = len(x), w.shape[-1]
    y = result_like(x)
    layouts = layout_of(x, g), layout_of(y, g)
    channel_size = layouts[0].positions
    (layout, result), parts, options = _applying_options(layouts, n, g, x.dtype, x.device, _kind(x))
    launch(
        _whiten_kernel,
        n * parts,
        (x, y, *map(_dense, (mean, w, weight, bias))),
        (layout.places, layout.positions, *layout.strides, *result.strides, channel_size, parts),
        **options,
    )  # fmt: skip
    return y


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "y_sample_stride",
        "y_outer_stride", "channel_size", "parts",
    )
)  # fmt: skip
def _whiten_kernel(
    x, y,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    weight, bias,  # (C,) or None
    num_places, num_positions, x_sample_stride, x_outer_stride, y_sample_stride, y_outer_stride,
    channel_size, parts,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, MERGED: tl.constexpr,
    PRECISION: tl.constexpr,
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
        channel, is_channel = channels_of(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, channel_size, MERGED
        )
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
    n, g = len(x), w.shape[-1]
    dy = _laid_out_like(dy, x, g)
    layout, layout_dy = layout_of(x, g), layout_of(dy, g)
    place_parts, position_parts, options = _reduce_options(
        layout, layout_dy, n, g, x.dtype, x.device, _kind(x)
    )
    parts = place_parts * position_parts
    of_groups = [mean.new_empty((n, parts, g, size)) for size in (g, 1)]
    of_channels = [mean.new_empty((n * position_parts, x.shape[1])) for _ in range(2)]
    launch(
        _reduce_kernel,
        n * parts,
        (x, dy, *map(_dense, (mean, w, weight)), *of_groups, *of_channels),
        (
            layout.places, layout.positions, *layout.strides, *layout_dy.strides,
            place_parts, position_parts, 1 / layout.columns,
        ),
        **options,
    )  # fmt: skip
    grad_w, mean_dy = mean.new_empty((n, g, g)), mean.new_empty((n, g, 1))
    grad_weight, grad_bias = mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])
    if parts == 1:
        grad_w, mean_dy = (shares.squeeze(1) for shares in of_groups)
    group_rows = n * (g + 1) if parts > 1 else 0
    launch(
        _sums_kernel,
        group_rows + 2 * layout.places,
        (*of_groups, *of_channels, grad_w, mean_dy, grad_weight, grad_bias),
        (group_rows, parts, n * position_parts, layout.places),
        NUM_GROUPS=g,
        G=options["G"],
    )
    return grad_w, mean_dy, grad_weight, grad_bias


@functools.lru_cache(maxsize=1024)
def _reduce_options(
    layout: Layout, layout_dy: Layout, n: int, g: int, dtype: torch.dtype, device: torch.device,
    kind: str,
) -> tuple[int, int, dict]:  # fmt: skip
    """(programs that share the places of a sample, those that share its positions, options)."""
    tile = _tile("reduce", kind, layout)
    K, B = layout.tile(tile.columns) if layout.channels_inner else (1, tile.columns)
    place_tiles, position_tiles = layout.tiles(K, B)
    parts = _parts(n, tile.programs, device)
    vector = _vector(dtype, layout, layout_dy)
    place_parts = min(parts, place_tiles)
    position_parts = min(triton.cdiv(parts, place_parts), triton.cdiv(position_tiles, _LEAST_TILES))
    return (
        place_parts,
        position_parts,
        {
            "NUM_GROUPS": g,
            "G": _padded(g),
            "K": K,
            "B": B,
            "VECTOR": vector,
            "CHANNELS_INNER": layout.channels_inner,
            "PRECISION": "tf32" if kind == "half" else kind,
            "num_warps": tile.warps,
            "num_stages": _stages(tile, dtype, vector),
        },
    )


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "dy_sample_stride",
        "dy_outer_stride", "place_parts", "position_parts", "share",
    )
)  # fmt: skip
def _reduce_kernel(
    x, dy,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    weight,  # (C,) or None
    grad_w,  # (N, parts, g, g)
    mean_dy,  # (N, parts, g)
    grad_weight, grad_bias,  # (N, position_parts, C)
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    place_parts, position_parts, share,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
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
    grad_channels = (n * position_parts + position_part).to(tl.int64) * NUM_GROUPS * num_places
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
                    channel, is_channel = channels_of(
                        groups, places, positions, NUM_GROUPS, num_places, num_positions, 1, False
                    )
                    dy_tile = _weighted(dy_tile, weight, channel, is_channel)
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
        tl.store(grad_bias + grad_channels + channel, sum_dy, mask=is_channel)
        tl.store(grad_weight + grad_channels + channel, sum_weight, mask=is_channel)
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

    grad_w += program.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    mask = (row < NUM_GROUPS) & (group[None, :] < NUM_GROUPS)
    tl.store(grad_w + row * NUM_GROUPS + group[None, :], total_w, mask=mask)
    tl.store(mean_dy + program * NUM_GROUPS + group, total_mean * share, mask=exists)


@triton.jit(do_not_specialize=("group_rows", "parts", "channel_parts", "num_places"))
def _sums_kernel(
    w_shares,  # (N, parts, g, g)
    mean_shares,  # (N, parts, g)
    weight_shares, bias_shares,  # (channel_parts, C)
    grad_w,  # (N, g, g)
    mean_dy,  # (N, g)
    grad_weight, grad_bias,  # (C,)
    group_rows, parts, channel_parts, num_places,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """
    A program adds up the shares of g numbers: each sample's g rows of dW and its mean of dY, then
    dweight and dbias.
    """
    program = tl.program_id(0)
    g: tl.constexpr = NUM_GROUPS
    if program < group_rows:
        n, row = program // (g + 1), program % (g + 1)
        before = n.to(tl.int64) * parts * g
        if row < g:
            _sum(w_shares + (before + row) * g, grad_w + (n * g + row) * g, parts, g * g, g, G)
        else:
            _sum(mean_shares + before, mean_dy + n * g, parts, g, g, G)
    else:
        place = program - group_rows
        if place < num_places:
            first = place * g
            _sum(weight_shares + first, grad_weight + first, channel_parts, num_places * g, g, G)
        else:
            first = (place - num_places) * g
            _sum(bias_shares + first, grad_bias + first, channel_parts, num_places * g, g, G)


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
def _weighted(dy, weight, channel, mask):
    """weight * dy, in dy's type."""
    factor = tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
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
    n, g = len(x), w.shape[-1]
    dy, dx = _laid_out_like(dy, x, g), result_like(x)
    layouts = layout_of(x, g), layout_of(dy, g), layout_of(dx, g)
    channel_size = layouts[0].positions
    (layout, layout_dy, result), parts, options = _applying_options(
        layouts, n, g, x.dtype, x.device, _kind(x)
    )
    launch(
        _input_gradient_kernel,
        n * parts,
        (x, dy, dx, *map(_dense, (mean, mean_dy, w, grad_sigma, weight))),
        (
            layout.places, layout.positions, *layout.strides, *layout_dy.strides, *result.strides,
            channel_size, parts, 2 / layout.columns,
        ),
        **options,
    )  # fmt: skip
    return dx


@functools.lru_cache(maxsize=1024)
def _applying_options(
    layouts: tuple[Layout, ...], n: int, g: int, dtype: torch.dtype, device: torch.device, kind: str
) -> tuple[tuple[Layout, ...], int, dict]:
    """
    (layouts, programs a sample, the kernel's options), where g x g matrices are applied to columns:
    of the groups as they lie in memory where that fills vectors or tiles better than by channels.
    """
    tile = _tile("whiten" if len(layouts) == 2 else "input_gradient", kind, layouts[0])
    merged = tuple(layout.with_places_merged() for layout in layouts)
    vector, vector_if_merged = (_vector(dtype, *ls) for ls in (layouts, merged))
    is_merged = (
        layouts[0].places > 1
        and all(layout.places == 1 for layout in merged)
        and (vector_if_merged > vector or layouts[0].positions < tile.columns)
    )
    if is_merged:
        layouts, vector = merged, vector_if_merged
    K, B = layouts[0].tile(tile.columns)
    place_tiles, position_tiles = layouts[0].tiles(K, B)
    parts = min(_parts(n, tile.programs, device), place_tiles * position_tiles)
    return (
        layouts,
        parts,
        {
            "NUM_GROUPS": g,
            "G": _padded(g),
            "K": K,
            "B": B,
            "VECTOR": vector,
            "CHANNELS_INNER": layouts[0].channels_inner,
            "MERGED": is_merged,
            "PRECISION": "tf32" if kind == "half" else kind,
            "num_warps": tile.warps,
            "num_stages": _stages(tile, dtype, vector),
        },
    )


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "dy_sample_stride",
        "dy_outer_stride", "dx_sample_stride", "dx_outer_stride", "channel_size", "parts",
        "factor",
    )
)  # fmt: skip
def _input_gradient_kernel(
    x, dy, dx,  # (N, g, c, S)
    mean, mean_dy,  # (N, g)
    w, grad_sigma,  # (N, g, g)
    weight,  # (C,) or None
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    dx_sample_stride, dx_outer_stride, channel_size, parts, factor,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, MERGED: tl.constexpr,
    PRECISION: tl.constexpr,
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
            channel, is_channel = channels_of(
                groups, places, positions, NUM_GROUPS, num_places, num_positions, channel_size,
                MERGED,
            )  # fmt: skip
            dy_tile = _weighted(dy_tile, weight, channel, is_channel)
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


def _padded(num_groups: int) -> int:
    return max(16, triton.next_power_of_2(num_groups))


class _Tile(NamedTuple):
    """
    Attributes:
        columns: of a tile.
        warps, stages: of a program; how many tiles it reads ahead.
        programs: how many of them a multiprocessor holds.
    """

    columns: int
    warps: int
    stages: int
    programs: int


# By kernel and by what is multiplied; for an input in channels_last, which takes more registers,
# half the columns.
_TILES = {
    ("moments", "half"): _Tile(64, 4, 3, 2),
    ("moments", "tf32"): _Tile(64, 4, 3, 2),
    ("moments", "tf32x3"): _Tile(64, 4, 3, 2),
    ("whiten", "half"): _Tile(128, 4, 3, 3),
    ("whiten", "tf32"): _Tile(128, 4, 3, 2),
    ("whiten", "tf32x3"): _Tile(64, 4, 3, 2),
    ("reduce", "half"): _Tile(64, 4, 3, 2),
    ("reduce", "tf32"): _Tile(64, 4, 3, 2),
    ("reduce", "tf32x3"): _Tile(64, 4, 3, 2),
    ("input_gradient", "half"): _Tile(64, 4, 3, 2),
    ("input_gradient", "tf32"): _Tile(64, 4, 3, 2),
    ("input_gradient", "tf32x3"): _Tile(64, 4, 2, 2),
}


def _kind(x: Tensor) -> str:
    """
    Of products with x: "half", which are multiplied as they are; "tf32" where PyTorch was told that
    it may; else "tf32x3", three products of TF32's that are as good as one of float32's.
    """
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if tf32_is_allowed() else "tf32x3"


def _tile(kernel: str, kind: str, layout: Layout) -> _Tile:
    tile = _TILES[kernel, kind]
    return tile._replace(columns=tile.columns // 2) if layout.channels_inner else tile


# A program sums no fewer tiles than this, or the g x g share that it writes would cost too much.
_LEAST_TILES = 4


def _parts(n: int, programs: int, device: torch.device) -> int:
    """
    Among how many programs each of n samples is divided, if a multiprocessor holds `programs` of
    them: so many that all run at once.
    """
    parts = programs * multiprocessors(device) // n
    return parts if parts > 2 else 1  # two shares cost more to add up than they gain


def _vector(dtype: torch.dtype, *layouts: Layout) -> int:
    return min(layout.vector(dtype.itemsize) for layout in layouts)


def _stages(tile: _Tile, dtype: torch.dtype, vector: int) -> int:
    """One where reading ahead would copy 4 bytes at a time, which takes longer than waiting."""
    return tile.stages if vector * dtype.itemsize > 4 else 1


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _laid_out_like(dy: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """dy, or a copy of it if its elements do not follow each other in x's order."""
    layout, layout_x = layout_of(dy, num_groups), layout_of(x, num_groups)
    if layout is not None and layout.channels_inner == layout_x.channels_inner:
        return dy
    return result_like(x).copy_(dy)
