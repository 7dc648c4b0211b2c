"""
The forward pass as Triton kernels: moments and whiten, which are functions of ../passes.py, and
forward, which takes Newton's iteration along and so needs fewer launches.

Every kernel reads its inputs once, a tile of all groups at a time. Sums over positions are split
over programs, which leave their shares to be added up: no atomics, the same result every time.

Half types are multiplied as they are, on the tensor cores, with sums in float32: products of two
such numbers are exact. A matrix in float32 that multiplies them is taken as the sum of two in the
half type, which keeps 16 of its bits or more. What a mean contributes is subtracted from the sums.
float32 is centred while it is read.
"""

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..passes import result_like
from .launch import Launch, dense
from .layout import along_groups, as_matrix, as_tile, axes, locate, sample
from .newton import newton_of
from .products import (
    ROWS,
    comes_last,
    entries,
    halves,
    identity,
    load_matrix,
    load_vector,
    store_matrix,
    times_tile,
    times_vector,
)
from .tiling import (
    LEAST_TILES,
    Kind,
    at_once,
    kind_of,
    matrix_options,
    num_parts,
    num_tiles,
    tiling_of,
)


def without_offset(x: Tensor, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What the passes take for x - mean: they subtract themselves."""
    return x, mean


def forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    (y, mean, Sigma, W), W by Newton's iteration: made by what makes Sigma, or in one launch with
    all else where samples are many and small.
    """
    y, weight, bias = result_like(x), dense(weight), dense(bias)
    kind = kind_of((x, y), num_groups, (weight, bias))
    mean, sigma = _empty_moments(x, num_groups)
    w = torch.empty_like(sigma)
    if at_once(x):
        _forward(kind, iterations, eps)(x, y, mean, sigma, w, weight, bias)
    else:
        _moments(kind, eps, iterations)(x, mean, sigma, w)
        _whiten(kind)(x, y, mean, w, weight, bias)
    return y, mean, sigma, w


def _empty_moments(x: Tensor, g: int) -> tuple[Tensor, Tensor]:
    sigma = x.new_empty((x.shape[0], g, g), dtype=torch.float32)
    return sigma.new_empty((x.shape[0], g, 1)), sigma


def moments(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Summed relative to a pivot, the mean of a few columns of each group, so that a mean that is
    large against the deviation costs no accuracy.

    Returns:
        (mean, Sigma, x, mean): of each sample's groups, (N, g, 1) and (N, g, g) in float32; and
        what :func:`without_offset` returns.
    """
    mean, sigma = _empty_moments(x, num_groups)
    _moments(kind_of((x,), num_groups), eps)(x, mean, sigma, None)
    return mean, sigma, x, mean


@functools.lru_cache(maxsize=1024)
def _moments(kind: Kind, eps: float, iterations: int | None = None) -> Callable[..., None]:
    """What writes the moments of x to mean and sigma; with `iterations` W to w, otherwise None."""
    n, g, layout = kind.shape[0], kind.num_groups, kind.layouts[0].with_places_merged()
    tiling, options = tiling_of("moments", kind, [layout])
    parts = triton.cdiv(num_tiles(layout, options), LEAST_TILES)
    parts = min(num_parts(n, tiling, kind.device), parts)
    iterations = iterations or 0
    sum_up = Launch(
        _moments_kernel, n * parts,
        layout.places, layout.positions, *layout.strides, parts, 1 / layout.columns, iterations,
        eps, SPLIT=parts > 1, **options,
    )  # fmt: skip
    if parts == 1:
        return lambda x, mean, sigma, w: sum_up(x, mean, sigma, w, None)
    add_shares = Launch(_add_shares_kernel, n * g, parts, iterations, eps, **matrix_options(g))
    size = n * parts * (g + 2) * g + n

    def sum_up_and_add(x: Tensor, mean: Tensor, sigma: Tensor, w: Tensor | None) -> None:
        shares = sigma.new_empty(size)
        sum_up(x, None, None, None, shares)
        add_shares(shares, mean, sigma, w)

    return sum_up_and_add


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "sample_stride", "outer_stride", "parts", "share",
        "iterations", "eps",
    )
)  # fmt: skip
def _moments_kernel(
    x,  # (N, g, c, S)
    mean,  # (N, g)
    sigma, w,  # (N, g, g); w may be None
    shares,  # if SPLIT, in place of these; see _add_shares_kernel
    num_places, num_positions, sample_stride, outer_stride, parts, share, iterations, eps,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program sums every parts-th tile of a sample."""
    program = tl.program_id(0)
    n = (program // parts).to(tl.int64)
    shift, pivot, products = _sums(
        sample(x, n, sample_stride, VECTOR), program % parts, parts,
        num_places, num_positions, outer_stride, share,
        NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip
    if SPLIT:
        size: tl.constexpr = (NUM_GROUPS + 2) * NUM_GROUPS
        tl.store(shares + tl.num_programs(0) * size + n, 0.0, mask=program % parts == 0)
        shares += program * size
        store_matrix(shares, products, NUM_GROUPS, G)
        group = tl.arange(0, G)
        last = shares + NUM_GROUPS * NUM_GROUPS + group
        tl.store(last, shift, mask=group < NUM_GROUPS)
        tl.store(last + NUM_GROUPS, pivot, mask=group < NUM_GROUPS)
    else:
        covariance = _store_moments(shift, pivot, products, mean, sigma, n, eps, NUM_GROUPS, G)
        if w is not None:
            matrix = newton_of(covariance, iterations, NUM_GROUPS, G)
            store_matrix(w + n * (NUM_GROUPS * NUM_GROUPS), matrix, NUM_GROUPS, G)


_PIVOT_COLUMNS = tl.constexpr(16)


@triton.jit
def _sums(
    x, first, step, num_places, num_positions, outer_stride, share,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    (share times the sum of x - pivot, the pivot, share times that of the products of x - pivot),
    over every step-th tile of a sample.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    # The same columns in every program, spread evenly; some repeatedly where there are too few.
    num_columns = num_places * num_positions
    column = tl.arange(0, _PIVOT_COLUMNS) * tl.maximum(num_columns // _PIVOT_COLUMNS, 1)
    column = tl.minimum(column, num_columns - 1)[None, :]
    some, is_some = locate(
        tl.arange(0, G)[:, None], column // num_positions, column % num_positions, NUM_GROUPS,
        num_places, num_positions, outer_stride, VECTOR, CHANNELS_INNER,
    )  # fmt: skip
    some = tl.load(x + some, mask=is_some, other=0.0).to(tl.float32)
    pivot = tl.sum(some / _PIVOT_COLUMNS, axis=1)
    if dtype != tl.float32:
        # x - pivot is rounded to x's type: exact without a pivot, or where x is close to it
        spread = some - pivot[:, None]
        spread = tl.sum(spread * spread / _PIVOT_COLUMNS, axis=1)
        pivot = tl.where(pivot * pivot > 16 * spread, pivot, 0.0).to(dtype).to(tl.float32)
    pivot_of_group = along_groups(pivot, CHANNELS_INNER)

    total = tl.zeros((G, K * B), tl.float32)
    products = tl.zeros((G, G), tl.float32)
    position_tiles = tl.cdiv(num_positions, B)
    for tile in range(first, tl.cdiv(num_places, K) * position_tiles, step):
        groups, places, positions = axes(
            tile // position_tiles * K, tile % position_tiles * B, G, K, B, CHANNELS_INNER
        )
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        values = as_matrix(tl.where(mask, values - pivot_of_group, 0.0), CHANNELS_INNER)
        factor = values.to(dtype)
        total += values
        products = tl.dot(factor, tl.trans(factor), products, input_precision=PRECISION)
    return tl.sum(total, axis=1) * share, pivot, products * share


@triton.jit
def _store_moments(
    shift, pivot, products, mean, sigma, n, eps,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Sample n's Sigma, stored as well as its mean."""
    covariance = products - shift[:, None] * shift[None, :] + eps * identity(G)
    # What is beyond the groups is 0, but for eps, which the trace must not take in
    _, exists = entries(NUM_GROUPS, G)
    covariance = tl.where(exists, covariance, 0.0)
    store_matrix(sigma + n * (NUM_GROUPS * NUM_GROUPS), covariance, NUM_GROUPS, G)
    group = tl.arange(0, G)
    tl.store(mean + n * NUM_GROUPS + group, shift + pivot, mask=group < NUM_GROUPS)
    return covariance


@triton.jit(do_not_specialize=("parts", "iterations", "eps"))
def _add_shares_kernel(
    shares,  # (N, parts, g + 2, g), of products, sums and pivot; then (N,), a sample's programs
    mean,  # (N, g)
    sigma, w,  # (N, g, g); w may be None
    parts, iterations, eps,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A program makes one row of a sample's Sigma; the last of them makes W."""
    n, row = (tl.program_id(0) // NUM_GROUPS).to(tl.int64), tl.program_id(0) % NUM_GROUPS
    size: tl.constexpr = (NUM_GROUPS + 2) * NUM_GROUPS
    counter = shares + tl.num_programs(0) // NUM_GROUPS * parts * size + n
    shares += n * parts * size
    group = tl.arange(0, G)
    products = tl.zeros((ROWS, G), tl.float32)
    sums = tl.zeros((ROWS, G), tl.float32)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS)[:, None]
        mask = (part < parts) & (group[None, :] < NUM_GROUPS)
        of_part = shares + part * size + group[None, :]
        products += tl.load(of_part + row * NUM_GROUPS, mask=mask, other=0.0)
        sums += tl.load(of_part + NUM_GROUPS * NUM_GROUPS, mask=mask, other=0.0)
    shift = tl.sum(sums, axis=0)
    shift_of_row = tl.sum(tl.where(group == row, shift, 0.0))
    result = tl.sum(products, axis=0) - shift_of_row * shift + tl.where(group == row, eps, 0.0)
    exists = group < NUM_GROUPS
    tl.store(sigma + (n * NUM_GROUPS + row) * NUM_GROUPS + group, result, mask=exists)
    if row == 0:
        pivot = tl.load(shares + (NUM_GROUPS + 1) * NUM_GROUPS + group, mask=exists, other=0.0)
        tl.store(mean + n * NUM_GROUPS + group, shift + pivot, mask=exists)
    if w is not None:
        if comes_last(counter, NUM_GROUPS):
            first_entry = n * (NUM_GROUPS * NUM_GROUPS)
            matrix = load_matrix(sigma + first_entry, NUM_GROUPS, G)
            matrix = newton_of(matrix, iterations, NUM_GROUPS, G)
            store_matrix(w + first_entry, matrix, NUM_GROUPS, G)


def whiten(
    x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See :func:`gw_detectron.layers.passes.whiten`; mean and w in float32, y in x's type."""
    y = result_like(x)
    launch = _whiten(kind_of((x, y), w.shape[-1], (weight, bias)))
    launch(x, y, *map(dense, (mean, w, weight, bias)))
    return y


@functools.lru_cache(maxsize=1024)
def _whiten(kind: Kind) -> Launch:
    x, y = kind.layouts
    tiling, options = tiling_of("whiten", kind)
    parts = min(num_parts(kind.shape[0], tiling, kind.device), num_tiles(x, options))
    return Launch(
        _whiten_kernel, kind.shape[0] * parts, x.places, x.positions, *x.strides, *y.strides, parts,
        **options,
    )  # fmt: skip


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
    """A program makes every parts-th tile of a sample."""
    program = tl.program_id(0)
    n = (program // parts).to(tl.int64)
    _apply(
        sample(x, n, x_sample_stride, VECTOR), sample(y, n, y_sample_stride, VECTOR),
        load_vector(mean + n * NUM_GROUPS, NUM_GROUPS, G),
        load_matrix(w + n * (NUM_GROUPS * NUM_GROUPS), NUM_GROUPS, G), weight, bias,
        program % parts, parts, num_places, num_positions, x_outer_stride, y_outer_stride,
        NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip


@triton.jit
def _apply(
    x, y, mean, matrix, weight, bias, first, step, num_places, num_positions, x_outer_stride,
    y_outer_stride,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Makes every step-th tile of y, from the last on: the moments left that in the cache."""
    dtype: tl.constexpr = x.dtype.element_ty
    high, low, scale = halves(matrix, dtype)
    shift = times_vector(matrix, mean)
    mean_of_group = along_groups(mean, CHANNELS_INNER)
    position_tiles = tl.cdiv(num_positions, B)
    num_tiles = tl.cdiv(num_places, K) * position_tiles
    for done in range(first, num_tiles, step):
        tile = num_tiles - 1 - done
        groups, places, positions = axes(
            tile // position_tiles * K, tile % position_tiles * B, G, K, B, CHANNELS_INNER
        )
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, x_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        values = tl.load(x + offsets, mask=mask, other=0.0)
        if dtype == tl.float32:
            values -= mean_of_group
        values = as_matrix(values, CHANNELS_INNER)
        result = times_tile(high, low, values, tl.zeros((G, K * B), tl.float32), PRECISION)
        if dtype != tl.float32:
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
        tl.store(y + offsets, result.to(dtype), mask=mask)


@functools.lru_cache(maxsize=1024)
def _forward(kind: Kind, iterations: int, eps: float) -> Launch:
    x, y = kind.layouts
    merged = x.with_places_merged()
    _, sums = tiling_of("moments", kind, [merged])
    _, options = tiling_of("whiten", kind)
    return Launch(
        _forward_kernel, kind.shape[0],
        merged.places, merged.positions, merged.outer_stride,
        x.places, x.positions, *x.strides, *y.strides, iterations, 1 / x.columns, eps,
        SUM_K=sums["K"], SUM_B=sums["B"], SUM_VECTOR=sums["VECTOR"], **options,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=(
        "sum_places", "sum_positions", "sum_outer_stride", "num_places", "num_positions",
        "x_sample_stride", "x_outer_stride", "y_sample_stride", "y_outer_stride", "iterations",
        "share", "eps",
    )
)  # fmt: skip
def _forward_kernel(
    x, y,  # (N, g, c, S)
    mean,  # (N, g)
    sigma, w,  # (N, g, g)
    weight, bias,  # (C,) or None
    sum_places, sum_positions, sum_outer_stride,
    num_places, num_positions, x_sample_stride, x_outer_stride, y_sample_stride, y_outer_stride,
    iterations, share, eps,
    SUM_K: tl.constexpr, SUM_B: tl.constexpr, SUM_VECTOR: tl.constexpr,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program whitens a sample: all of the forward pass."""
    n = tl.program_id(0).to(tl.int64)
    shift, pivot, products = _sums(
        sample(x, n, x_sample_stride, SUM_VECTOR), 0, 1,
        sum_places, sum_positions, sum_outer_stride, share,
        NUM_GROUPS, G, SUM_K, SUM_B, SUM_VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip
    covariance = _store_moments(shift, pivot, products, mean, sigma, n, eps, NUM_GROUPS, G)
    matrix = newton_of(covariance, iterations, NUM_GROUPS, G)
    store_matrix(w + n * (NUM_GROUPS * NUM_GROUPS), matrix, NUM_GROUPS, G)
    _apply(
        sample(x, n, x_sample_stride, VECTOR), sample(y, n, y_sample_stride, VECTOR),
        shift + pivot, matrix, weight, bias,
        0, 1, num_places, num_positions, x_outer_stride, y_outer_stride,
        NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip
