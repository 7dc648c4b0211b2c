"""
The backward pass as Triton kernels: reduce and input_gradient, which are functions of
../passes.py, and backward, which takes the gradient of Newton's iteration along and so needs fewer
launches. Tiles, sums and products are as in forward_passes.py.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..passes import result_like
from .launch import Launch, dense
from .layout import along_groups, as_matrix, as_tile, axes, layout_of, locate, sample
from .newton import newton_gradient
from .products import (
    ROWS,
    comes_last,
    halves,
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


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    sigma: Tensor,
    w: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    (dx, dweight, dbias), from what forward returned. What adds up dW makes dSigma of it. In half
    types one launch makes all but dweight and dbias where samples are many and small; in float32
    the registers that the products of x take leave too few for Newton's iteration.
    """
    g = w.shape[-1]
    dy, dx, weight = _laid_out_like(dy, x, g), result_like(x), dense(weight)
    kind = kind_of((x, dy, dx), g, (weight,))
    grad_weight, grad_bias = mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])
    if kind.products == "half" and at_once(x):
        launch, add_shares, num_sums = _backward(kind, iterations)
        sums = mean.new_empty(num_sums)
        launch(x, dy, dx, mean, sigma, w, weight, sums)
        add_shares(sums, grad_weight, grad_bias, None, None)
    else:
        sum_up, add_shares, num_sums = _reduce(kind, iterations)
        sums = mean.new_empty(num_sums)
        sum_up(x, dy, mean, w, weight, sums)
        add_shares(sums, grad_weight, grad_bias, sigma, w)
        _input_gradient(kind)(x, dy, dx, mean, w, sums, weight)
    return dx, grad_weight, grad_bias


def reduce(
    dy: Tensor, x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`gw_detectron.layers.passes.reduce`; all results in float32."""
    n, num_channels, g = *x.shape[:2], w.shape[-1]
    dy, weight = _laid_out_like(dy, x, g), dense(weight)
    sum_up, add_shares, num_sums = _reduce(kind_of((x, dy), g, (weight,)))
    sums = w.new_empty(num_sums)
    grad_weight, grad_bias = w.new_empty(num_channels), w.new_empty(num_channels)
    sum_up(x, dy, dense(mean), dense(w), weight, sums)
    add_shares(sums, grad_weight, grad_bias, None, None)
    grad_w, mean_dy = sums[: n * (g + 1) * g].view(n, g + 1, g).split((g, 1), dim=1)
    return grad_w, mean_dy.mT, grad_weight, grad_bias


@functools.lru_cache(maxsize=1024)
def _reduce(kind: Kind, iterations: int | None = None) -> tuple[Launch, Launch, int]:
    """
    (what sums up in parts, what adds those up, how many numbers both work on, see
    :func:`_add_gradients_kernel`). With `iterations` the latter makes dSigma.
    """
    x, dy = layouts = kind.layouts[:2]
    n, g = kind.shape[0], kind.num_groups
    tiling, options = tiling_of("reduce", kind, layouts)
    place_tiles, position_tiles = x.tiles(options["K"], options["B"])
    parts = num_parts(n, tiling, kind.device)
    place_parts = min(parts, place_tiles)
    position_parts = min(triton.cdiv(parts, place_parts), triton.cdiv(position_tiles, LEAST_TILES))
    parts = place_parts * position_parts
    sum_up = Launch(
        _reduce_kernel, n * parts,
        x.places, x.positions, *x.strides, *dy.strides, place_parts, position_parts,
        1 / x.columns, SPLIT=parts > 1, **options,
    )  # fmt: skip
    add_shares = _adding_shares(n, parts, n * position_parts, x.places, g, iterations)
    return sum_up, add_shares, _num_sums(kind, parts, position_parts)


def _num_sums(kind: Kind, parts: int = 1, position_parts: int = 1) -> int:
    """How many numbers :func:`_add_gradients_kernel` calls sums."""
    (n, num_channels, *_), g = kind.shape, kind.num_groups
    of_groups = n * (1 + parts if parts > 1 else 1) * (g + 1) * g
    return of_groups + 2 * n * position_parts * num_channels + n


def _adding_shares(
    n: int, parts: int, channel_parts: int, places: int, g: int, iterations: int | None = None
) -> Launch:
    """Of dweight and dbias; of dW and of the mean of dY, if in parts; dSigma with `iterations`."""
    if parts > 1:
        programs = n * (g + 1)
    else:
        programs = 0 if iterations is None else n
    return Launch(
        _add_gradients_kernel, programs + 2 * places, n, parts, channel_parts, places,
        iterations or 0, **matrix_options(g),
    )  # fmt: skip


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
    sums,  # see _add_gradients_kernel
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    place_parts, position_parts, share,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program sums one of position_parts of the positions of one of place_parts of the places."""
    program = tl.program_id(0)
    parts = place_parts * position_parts
    n = (program // parts).to(tl.int64)
    position_part = program % position_parts
    num_channels = NUM_GROUPS * num_places
    num_samples = (tl.num_programs(0) // parts).to(tl.int64)
    size: tl.constexpr = (NUM_GROUPS + 1) * NUM_GROUPS
    of_parameters = sums + num_samples * size
    if SPLIT:
        of_groups = of_parameters + program * size
        of_parameters += tl.num_programs(0) * size
    else:
        of_groups = sums + n * size
    counters = of_parameters + 2 * num_samples * position_parts * num_channels
    tl.store(counters + n, 0.0, mask=program % parts == 0)
    grad_weight = of_parameters + (n * position_parts + position_part) * num_channels
    total_w, total_mean = _sums(
        sample(x, n, x_sample_stride, VECTOR), sample(dy, n, dy_sample_stride, VECTOR),
        load_vector(mean + n * NUM_GROUPS, NUM_GROUPS, G),
        w + n * (NUM_GROUPS * NUM_GROUPS), weight,
        grad_weight, grad_weight + num_samples * position_parts * num_channels,
        program // position_parts % place_parts, place_parts, position_part, position_parts,
        num_places, num_positions, x_outer_stride, dy_outer_stride,
        NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip
    store_matrix(of_groups, total_w, NUM_GROUPS, G)
    group = tl.arange(0, G)
    mean_dy = of_groups + NUM_GROUPS * NUM_GROUPS + group
    tl.store(mean_dy, total_mean * share, mask=group < NUM_GROUPS)


@triton.jit
def _sums(
    x, dy, mean, w, weight, grad_weight, grad_bias, first_place_tile, place_step, first_tile, step,
    num_places, num_positions, x_outer_stride, dy_outer_stride,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    (dW, the sum of dY) over every step-th tile of positions of every place_step-th of places of a
    sample; dweight and dbias of these places are stored.

    One place at a time, E = dy Xc^T serves both: dW = weight * E summed over places, and
    dweight = diag(E W^T). Where places lie side by side in memory they are read together, and
    dweight is summed from dy * (W Xc).
    """
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.arange(0, G)[:, None]
    mean_of_group = along_groups(mean, CHANNELS_INNER)
    if CHANNELS_INNER:
        matrix = load_matrix(w, NUM_GROUPS, G)
        high, low, scale = halves(matrix, dtype)
        shift = times_vector(matrix, mean)

    total_w = tl.zeros((G, G), tl.float32)
    total_mean = tl.zeros((G,), tl.float32)
    for place_tile in range(first_place_tile, tl.cdiv(num_places, K), place_step):
        first_place = place_tile * K
        total_dy = as_tile(tl.zeros((G, K * B), tl.float32), K, B, CHANNELS_INNER)
        along_y = as_tile(tl.zeros((G, K * B), tl.float32), K, B, CHANNELS_INNER)
        product = tl.zeros((G, G), tl.float32)
        for tile in range(first_tile, tl.cdiv(num_positions, B), step):
            groups, places, positions = axes(first_place, tile * B, G, K, B, CHANNELS_INNER)
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
                x_tile -= mean_of_group
            x_tile = as_matrix(x_tile, CHANNELS_INNER)
            total_dy += dy_tile.to(tl.float32)
            if CHANNELS_INNER:
                y_tile = times_tile(high, low, x_tile, tl.zeros((G, K * B), tl.float32), PRECISION)
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
                product -= sum_dy * mean[None, :]
            sum_weight = tl.sum(product * load_matrix(w, NUM_GROUPS, G), axis=1)[:, None]
        tl.store(grad_bias + channel, sum_dy, mask=is_channel)
        tl.store(grad_weight + channel, sum_weight, mask=is_channel)
        if weight is not None:
            factor = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
            sum_dy *= factor
            if not CHANNELS_INNER:
                product *= factor
        sum_over_places = tl.sum(sum_dy, axis=1)
        if CHANNELS_INNER and dtype != tl.float32:
            product -= sum_over_places[:, None] * mean[None, :]
        total_w += product
        total_mean += sum_over_places
    return total_w, total_mean


@triton.jit(do_not_specialize=("num_samples", "parts", "channel_parts", "num_places", "iterations"))
def _add_gradients_kernel(
    # (N, g + 1, g), dW, or dSigma if sigma is not None, and below it the mean of dY; behind it, if
    # parts > 1, their shares, (N, parts, g + 1, g); those of dweight and dbias,
    # 2 (channel_parts, C); (N,), to count a sample's programs
    sums,
    grad_weight, grad_bias,  # (C,)
    sigma, w,  # (N, g, g) or None
    num_samples, parts, channel_parts, num_places, iterations,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """
    A program adds up g numbers: of dweight, of dbias, or a row of a sample's sums. The last of a
    sample's makes dSigma.
    """
    program = tl.program_id(0)
    g: tl.constexpr = NUM_GROUPS
    size: tl.constexpr = (g + 1) * g
    num_channels = num_places * g
    num_samples = num_samples.to(tl.int64)
    shares = sums + num_samples * size
    of_parameters = shares
    if parts > 1:
        of_parameters += num_samples * parts * size
    if program < num_places:
        first = of_parameters + program * g
        _sum(first, grad_weight + program * g, channel_parts, num_channels, g, G)
    elif program < 2 * num_places:
        place = program - num_places
        first = of_parameters + channel_parts * num_channels + place * g
        _sum(first, grad_bias + place * g, channel_parts, num_channels, g, G)
    else:
        programs = tl.where(parts > 1, g + 1, 1)
        n = ((program - 2 * num_places) // programs).to(tl.int64)
        grad_w = sums + n * size
        if parts > 1:
            row = (program - 2 * num_places) % programs * g
            _sum(shares + n * parts * size + row, grad_w + row, parts, size, g, G)
        if sigma is not None:
            if comes_last(of_parameters + 2 * channel_parts * num_channels + n, programs):
                grad_sigma = newton_gradient(
                    sigma + n * (g * g), w + n * (g * g), load_matrix(grad_w, g, G), iterations,
                    g, G,
                )  # fmt: skip
                store_matrix(grad_w, grad_sigma, g, G)


@triton.jit
def _sum(shares, result, parts, stride, SIZE: tl.constexpr, G: tl.constexpr):
    column = tl.arange(0, G)
    exists = column < SIZE
    total = tl.zeros((ROWS, G), tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
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
    """See :func:`gw_detectron.layers.passes.input_gradient`; dx in x's type."""
    g = w.shape[-1]
    dy, dx, weight = _laid_out_like(dy, x, g), result_like(x), dense(weight)
    sums = torch.cat((grad_sigma, mean_dy.mT), dim=1)
    launch = _input_gradient(kind_of((x, dy, dx), g, (weight,)))
    launch(x, dy, dx, dense(mean), dense(w), sums, weight)
    return dx


@functools.lru_cache(maxsize=1024)
def _input_gradient(kind: Kind) -> Launch:
    x, dy, dx = kind.layouts
    tiling, options = tiling_of("input_gradient", kind)
    parts = min(num_parts(kind.shape[0], tiling, kind.device), num_tiles(x, options))
    return Launch(
        _input_gradient_kernel, kind.shape[0] * parts,
        x.places, x.positions, *x.strides, *dy.strides, *dx.strides, parts, 2 / x.columns,
        **options,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "dy_sample_stride",
        "dy_outer_stride", "dx_sample_stride", "dx_outer_stride", "parts", "factor",
    )
)  # fmt: skip
def _input_gradient_kernel(
    x, dy, dx,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    sums,  # (N, g + 1, g), dSigma and below it the mean of dY
    weight,  # (C,) or None
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    dx_sample_stride, dx_outer_stride, parts, factor,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program makes every parts-th tile of a sample."""
    program = tl.program_id(0)
    n = (program // parts).to(tl.int64)
    size: tl.constexpr = NUM_GROUPS * NUM_GROUPS
    grad_sigma = sums + n * (size + NUM_GROUPS)
    _apply(
        sample(x, n, x_sample_stride, VECTOR), sample(dy, n, dy_sample_stride, VECTOR),
        sample(dx, n, dx_sample_stride, VECTOR),
        load_vector(mean + n * NUM_GROUPS, NUM_GROUPS, G),
        load_vector(grad_sigma + size, NUM_GROUPS, G),
        load_matrix(w + n * size, NUM_GROUPS, G), load_matrix(grad_sigma, NUM_GROUPS, G) * factor,
        weight, program % parts, parts,
        num_places, num_positions, x_outer_stride, dy_outer_stride, dx_outer_stride,
        NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip


@triton.jit
def _apply(
    x, dy, dx, mean, mean_dy, of_dy, of_x, weight, first, step,
    num_places, num_positions, x_outer_stride, dy_outer_stride, dx_outer_stride,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    of_dy (dY - mean(dY)) + of_x (X - mean), every step-th tile of it, from the last on, which may
    still be in the cache.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    shift = times_vector(of_dy, mean_dy) + times_vector(of_x, mean)
    mean_of_group = along_groups(mean, CHANNELS_INNER)
    mean_dy_of_group = along_groups(mean_dy, CHANNELS_INNER)
    dy_high, dy_low, dy_scale = halves(of_dy, dtype)
    x_high, x_low, x_scale = halves(of_x, dtype)
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
        x_tile = tl.load(x + offsets, mask=mask, other=0.0)
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, dy_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        dy_tile = tl.load(dy + offsets, mask=mask, other=0.0)
        if weight is not None:
            dy_tile = _weighted(dy_tile, weight, groups, places, num_places, NUM_GROUPS)
        if dtype == tl.float32:
            x_tile -= mean_of_group
            dy_tile -= mean_dy_of_group
        result = tl.zeros((G, K * B), tl.float32)
        result = times_tile(x_high, x_low, as_matrix(x_tile, CHANNELS_INNER), result, PRECISION)
        if dtype != tl.float32:
            result *= x_scale / dy_scale
        result = times_tile(dy_high, dy_low, as_matrix(dy_tile, CHANNELS_INNER), result, PRECISION)
        if dtype != tl.float32:
            result = result * dy_scale - shift[:, None]
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, dx_outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        result = as_tile(result, K, B, CHANNELS_INNER).to(dtype)
        tl.store(dx + offsets, result, mask=mask)


@functools.lru_cache(maxsize=1024)
def _backward(kind: Kind, iterations: int) -> tuple[Launch, Launch, int]:
    """As :func:`_reduce`; a program makes all of a sample but dweight and dbias."""
    n, g, (x, dy, dx) = kind.shape[0], kind.num_groups, kind.layouts
    _, sums = tiling_of("reduce", kind, [x, dy])
    _, options = tiling_of("input_gradient", kind)
    launch = Launch(
        _backward_kernel, n,
        x.places, x.positions, *x.strides, *dy.strides, *dx.strides, iterations, 1 / x.columns,
        SUM_K=sums["K"], SUM_B=sums["B"], SUM_VECTOR=sums["VECTOR"], **options,
    )  # fmt: skip
    return launch, _adding_shares(n, 1, n, x.places, g), _num_sums(kind)


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "dy_sample_stride",
        "dy_outer_stride", "dx_sample_stride", "dx_outer_stride", "iterations", "share",
    )
)  # fmt: skip
def _backward_kernel(
    x, dy, dx,  # (N, g, c, S)
    mean,  # (N, g)
    sigma, w,  # (N, g, g)
    weight,  # (C,) or None
    sums,  # see _add_gradients_kernel
    num_places, num_positions, x_sample_stride, x_outer_stride, dy_sample_stride, dy_outer_stride,
    dx_sample_stride, dx_outer_stride, iterations, share,
    SUM_K: tl.constexpr, SUM_B: tl.constexpr, SUM_VECTOR: tl.constexpr,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program makes a sample's dx, and its shares of dweight and dbias."""
    n = tl.program_id(0).to(tl.int64)
    num_channels = NUM_GROUPS * num_places
    size: tl.constexpr = NUM_GROUPS * NUM_GROUPS
    w += n * size
    mean += n * NUM_GROUPS
    num_samples = tl.num_programs(0).to(tl.int64)
    grad_weight = sums + num_samples * (size + NUM_GROUPS) + n * num_channels
    grad_w, sum_dy = _sums(
        sample(x, n, x_sample_stride, SUM_VECTOR), sample(dy, n, dy_sample_stride, SUM_VECTOR),
        load_vector(mean, NUM_GROUPS, G), w, weight, grad_weight,
        grad_weight + num_samples * num_channels,
        0, 1, 0, 1, num_places, num_positions, x_outer_stride, dy_outer_stride,
        NUM_GROUPS, G, SUM_K, SUM_B, SUM_VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip
    group = tl.arange(0, G)
    mean_dy = sums + n * (size + NUM_GROUPS) + size
    # Kept in memory rather than in registers, which the iteration needs
    tl.store(mean_dy + group, sum_dy * share, mask=group < NUM_GROUPS)
    grad_sigma = newton_gradient(sigma + n * size, w, grad_w, iterations, NUM_GROUPS, G)
    tl.debug_barrier()
    _apply(
        sample(x, n, x_sample_stride, VECTOR), sample(dy, n, dy_sample_stride, VECTOR),
        sample(dx, n, dx_sample_stride, VECTOR), load_vector(mean, NUM_GROUPS, G),
        load_vector(mean_dy, NUM_GROUPS, G),
        load_matrix(w, NUM_GROUPS, G), grad_sigma * (2 * share), weight, 0, 1,
        num_places, num_positions, x_outer_stride, dy_outer_stride, dx_outer_stride,
        NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
    )  # fmt: skip


def _laid_out_like(dy: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """dy in x's type; a copy of it if its elements do not follow each other in x's order."""
    if dy.stride() == x.stride() and dy.dtype == x.dtype:
        return dy
    layout, layout_x = (layout_of(t.shape, t.stride(), num_groups) for t in (dy, x))
    if layout is not None and layout.channels_inner == layout_x.channels_inner:
        return dy.to(x.dtype)
    return result_like(x).copy_(dy)
