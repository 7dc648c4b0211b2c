"""
What touches anything of the input's size, as Triton kernels; the functions of ../passes.py.

Every kernel reads its inputs once. W and the other g x g matrices are read by every program, from
the cache. Sums over positions are split over programs, which leave their shares to be summed in
PyTorch: no atomics, the same result every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..passes import result_like
from . import precision
from .launch import launch, multiprocessors
from .layout import Layout, as_matrix, as_tile, axes, layout_of, locate, sample


def data_of(x: Tensor) -> Tensor:
    """What the passes take for x: x as it is."""
    return x


def without_offset(x: Tensor, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What the passes take for x - mean: they subtract while they read."""
    return x, mean


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """
    Summed relative to a pivot, the mean of a few columns of each group, so that a mean that is
    large against the deviation costs no accuracy.

    Returns:
        (mean, covariance): of each sample's groups, (N, g, 1) and (N, g, g) in float32.
    """
    n, g = len(x), num_groups
    layout = layout_of(x, g).with_places_merged()
    columns, options = _summing(g, x.dtype)
    K, B = layout.tile(columns)
    place_tiles, position_tiles = layout.tiles(K, B)
    parts = min(_parts(n, 3, x.device), triton.cdiv(place_tiles * position_tiles, _LEAST_TILES))
    mean, pivot = x.new_empty((2, n, parts, g), dtype=torch.float32)
    covariance = x.new_empty((n, parts, g, g), dtype=torch.float32)
    launch(
        _moments_kernel, n * parts, x, mean, covariance, pivot,
        layout.places, layout.positions, layout.sample_stride, layout.outer_stride,
        parts, 1 / layout.columns,
        on=x, NUM_GROUPS=g, K=K, B=B, VECTOR=layout.vector(x.itemsize),
        CHANNELS_INNER=layout.channels_inner, SPLIT=parts > 1, **options,
    )  # fmt: skip
    if parts == 1:
        return mean.view(n, g, 1), covariance.view(n, g, g)
    shift = mean.sum(1).unsqueeze(-1)
    covariance = covariance.sum(1).addcmul_(shift, shift.mT, value=-1)
    return shift.add_(pivot[:, 0].unsqueeze(-1)), covariance


_PIVOT_COLUMNS = tl.constexpr(16)


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "sample_stride", "outer_stride", "parts",
    )
)  # fmt: skip
def _moments_kernel(
    x,  # (N, g, c, S)
    mean,  # (N, parts, g)
    covariance,  # (N, parts, g, g)
    pivot,  # (N, parts, g)
    num_places, num_positions, sample_stride, outer_stride, parts, share,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program sums every parts-th tile of a sample."""
    program = tl.program_id(0)
    x = sample(x, program // parts, sample_stride, VECTOR)
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
    tl.store(pivot + program * NUM_GROUPS + group, centre, mask=exists)
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
        total += values
        products = tl.dot(values, tl.trans(values), products, input_precision=PRECISION)

    shift = tl.sum(total, axis=1) * share
    products *= share
    if not SPLIT:
        products -= shift[:, None] * shift[None, :]
        shift += centre
    tl.store(mean + program * NUM_GROUPS + group, shift, mask=exists)
    covariance += program.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    entry = group[:, None] * NUM_GROUPS + group[None, :]
    tl.store(covariance + entry, products, mask=exists[:, None] & exists[None, :])


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
    mean, w, weight, bias = map(_dense, (mean, w, weight, bias))
    y = result_like(x)
    layout, result = layout_of(x, g), layout_of(y, g)
    columns, options = _applying(g, x.dtype)
    K, B = layout.tile(columns)
    place_tiles, position_tiles = layout.tiles(K, B)
    launch(
        _whiten_kernel, n * place_tiles * position_tiles,
        x, y, mean, w, weight, bias,
        layout.places, layout.positions, layout.sample_stride, layout.outer_stride,
        result.sample_stride, result.outer_stride, n, position_tiles,
        on=x, NUM_GROUPS=g, K=K, B=B, VECTOR=_vector(x.itemsize, layout, result),
        CHANNELS_INNER=layout.channels_inner, **options,
    )  # fmt: skip
    return y


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "x_sample_stride", "x_outer_stride", "y_sample_stride",
        "y_outer_stride", "num_samples", "position_tiles",
    )
)  # fmt: skip
def _whiten_kernel(
    x, y,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    weight, bias,  # (C,) or None
    num_places, num_positions, x_sample_stride, x_outer_stride, y_sample_stride, y_outer_stride,
    num_samples, position_tiles,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program makes one tile. They begin where the moments ended: that may still be cached."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = program % num_samples
    first_position = program // num_samples % position_tiles * B
    first_place = program // num_samples // position_tiles * K
    result = tl.zeros((G, K * B), tl.float32)
    result = _add_product(
        result, w, 1.0, x, mean, None, n, first_place, first_position, num_places, num_positions,
        x_sample_stride, x_outer_stride, NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER,
        PRECISION,
    )  # fmt: skip
    result = as_tile(result, K, B, CHANNELS_INNER)
    groups, places, positions = axes(0, first_place, first_position, G, K, B, CHANNELS_INNER)
    channel = groups * num_places + places
    is_channel = (groups < NUM_GROUPS) & (places < num_places)
    if weight is not None:
        result *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    if bias is not None:
        result += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    offsets, mask = locate(
        groups, places, positions, NUM_GROUPS, num_places, num_positions, y_outer_stride, VECTOR,
        CHANNELS_INNER,
    )  # fmt: skip
    y = sample(y, n, y_sample_stride, VECTOR)
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _add_product(
    result, matrix, factor, x, offset, weight, n, first_place, first_position, num_places,
    num_positions, sample_stride, outer_stride, NUM_GROUPS: tl.constexpr, G: tl.constexpr,
    K: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """result + factor * matrix (weight * x - offset) for sample n's tile, (G, K B)."""
    x = sample(x, n, sample_stride, VECTOR)
    matrix += n.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    offset += n * NUM_GROUPS
    row = tl.arange(0, G)[:, None]
    CHUNK: tl.constexpr = 16 if PRECISION == "ieee" else (G if G <= 64 else 32)
    for first_group in range(0, G, CHUNK):
        column = (first_group + tl.arange(0, CHUNK))[None, :]
        mask = (row < NUM_GROUPS) & (column < NUM_GROUPS)
        part = tl.load(matrix + row * NUM_GROUPS + column, mask=mask, other=0.0) * factor
        groups, places, positions = axes(
            first_group, first_place, first_position, CHUNK, K, B, CHANNELS_INNER
        )
        offsets, mask = locate(
            groups, places, positions, NUM_GROUPS, num_places, num_positions, outer_stride,
            VECTOR, CHANNELS_INNER,
        )  # fmt: skip
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        if weight is not None:
            channel = groups * num_places + places
            mask = (groups < NUM_GROUPS) & (places < num_places)
            values *= tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
        values -= tl.load(offset + groups, mask=groups < NUM_GROUPS, other=0.0)
        values = as_matrix(values, CHANNELS_INNER)
        result = tl.dot(part, values, result, input_precision=PRECISION)
    return result


def reduce(
    dy: Tensor, x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    All that the backward needs to sum over positions, of dy and of the products dy X^T.

    Returns:
        (dW, mean of dY, dweight, dbias): (N, g, g), (N, g, 1), (C,), (C,), in float32.
    """
    n, g = len(x), w.shape[-1]
    mean, w, weight = map(_dense, (mean, w, weight))
    dy = _laid_out_like(dy, x, g)
    layout, layout_dy = layout_of(x, g), layout_of(dy, g)
    columns, options = _summing(g, x.dtype)
    if layout.channels_inner:  # half as many, since more is kept of each
        K, B = layout.tile(max(columns // 2, 16))
    else:
        K, B = 1, columns
    place_tiles, position_tiles = layout.tiles(K, B)
    parts = _parts(n, 2, x.device)
    place_parts = min(parts, place_tiles)
    position_parts = min(triton.cdiv(parts, place_parts), triton.cdiv(position_tiles, _LEAST_TILES))
    parts = place_parts * position_parts
    grad_w = x.new_empty((n, parts, g, g), dtype=torch.float32)
    mean_dy = x.new_empty((n, parts, g), dtype=torch.float32)
    grad_weight, grad_bias = x.new_empty((2, n, position_parts, x.shape[1]), dtype=torch.float32)
    launch(
        _reduce_kernel, n * parts,
        dy, x, mean, w, weight, grad_w, mean_dy, grad_weight, grad_bias,
        layout.places, layout.positions, layout_dy.sample_stride, layout_dy.outer_stride,
        layout.sample_stride, layout.outer_stride, place_parts, position_parts,
        1 / layout.columns,
        on=x, NUM_GROUPS=g, K=K, B=B, VECTOR=_vector(x.itemsize, layout, layout_dy),
        CHANNELS_INNER=layout.channels_inner, **options,
    )  # fmt: skip
    if parts == 1:
        grad_w, mean_dy = grad_w[:, 0], mean_dy[:, 0]
    else:
        grad_w, mean_dy = grad_w.sum(1), mean_dy.sum(1)
    return grad_w, mean_dy.unsqueeze(-1), grad_weight.sum((0, 1)), grad_bias.sum((0, 1))


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "dy_sample_stride", "dy_outer_stride", "x_sample_stride",
        "x_outer_stride", "place_parts", "position_parts",
    )
)  # fmt: skip
def _reduce_kernel(
    dy, x,  # (N, g, c, S)
    mean,  # (N, g)
    w,  # (N, g, g)
    weight,  # (C,) or None
    grad_w,  # (N, parts, g, g)
    mean_dy,  # (N, parts, g)
    grad_weight, grad_bias,  # (N, position_parts, C)
    num_places, num_positions, dy_sample_stride, dy_outer_stride, x_sample_stride, x_outer_stride,
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
    dy_sample = sample(dy, n, dy_sample_stride, VECTOR)
    x_sample = sample(x, n, x_sample_stride, VECTOR)
    group = tl.arange(0, G)
    exists = group < NUM_GROUPS
    row, column = group[:, None], group[None, :]
    is_entry = (row < NUM_GROUPS) & (column < NUM_GROUPS)
    grad_channels = (n * position_parts + position_part).to(tl.int64) * NUM_GROUPS * num_places

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
            dy_tile = tl.load(dy_sample + offsets, mask=mask, other=0.0).to(tl.float32)
            offsets, mask = locate(
                groups, places, positions, NUM_GROUPS, num_places, num_positions,
                x_outer_stride, VECTOR, CHANNELS_INNER,
            )  # fmt: skip
            x_tile = tl.load(x_sample + offsets, mask=mask, other=0.0).to(tl.float32)
            x_tile -= tl.load(mean + n * NUM_GROUPS + groups, mask=groups < NUM_GROUPS, other=0.0)
            total_dy += dy_tile
            if CHANNELS_INNER:
                y_tile = _add_product(
                    tl.zeros((G, K * B), tl.float32), w, 1.0, x, mean, None, n, first_place,
                    tile * B, num_places, num_positions, x_sample_stride, x_outer_stride,
                    NUM_GROUPS, G, K, B, VECTOR, CHANNELS_INNER, PRECISION,
                )  # fmt: skip
                along_y += dy_tile * as_tile(y_tile, K, B, CHANNELS_INNER)
                if weight is not None:
                    channel = groups * num_places + places
                    mask = (groups < NUM_GROUPS) & (places < num_places)
                    dy_tile *= tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
            product = tl.dot(
                as_matrix(dy_tile, CHANNELS_INNER),
                tl.trans(as_matrix(x_tile, CHANNELS_INNER)),
                product,
                input_precision=PRECISION,
            )

        place = first_place + tl.arange(0, K)[None, :]
        channel = row * num_places + place
        is_channel = (row < NUM_GROUPS) & (place < num_places)
        if CHANNELS_INNER:
            sum_dy = tl.sum(total_dy, axis=0)
            sum_weight = tl.sum(along_y, axis=0)
        else:
            sum_dy = tl.sum(total_dy, axis=2)
            w_rows = tl.load(
                w + n.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS) + row * NUM_GROUPS + column,
                mask=is_entry,
                other=0.0,
            )
            sum_weight = tl.sum(product * w_rows, axis=1)[:, None]
        tl.store(grad_bias + grad_channels + channel, sum_dy, mask=is_channel)
        tl.store(grad_weight + grad_channels + channel, sum_weight, mask=is_channel)
        if weight is not None:
            scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
            sum_dy *= scale
            if not CHANNELS_INNER:
                product *= scale
        total_w += product
        total_mean += tl.sum(sum_dy, axis=1)

    tl.store(mean_dy + program * NUM_GROUPS + group, total_mean * share, mask=exists)
    grad_w += program.to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    tl.store(grad_w + row * NUM_GROUPS + column, total_w, mask=is_entry)


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
    matrices = map(_dense, (mean, mean_dy, w, grad_sigma, weight))
    dy, dx = _laid_out_like(dy, x, g), result_like(x)
    layout, layout_dy, result = (layout_of(t, g) for t in (x, dy, dx))
    columns, options = _applying(g, x.dtype)
    K, B = layout.tile(columns)
    place_tiles, position_tiles = layout.tiles(K, B)
    launch(
        _input_gradient_kernel, n * place_tiles * position_tiles,
        dy, x, dx, *matrices,
        layout.places, layout.positions, layout_dy.sample_stride, layout_dy.outer_stride,
        layout.sample_stride, layout.outer_stride, result.sample_stride, result.outer_stride,
        n, place_tiles, 2 / layout.columns,
        on=x, NUM_GROUPS=g, K=K, B=B, VECTOR=_vector(x.itemsize, layout, layout_dy, result),
        CHANNELS_INNER=layout.channels_inner, **options,
    )  # fmt: skip
    return dx


@triton.jit(
    do_not_specialize=(
        "num_places", "num_positions", "dy_sample_stride", "dy_outer_stride", "x_sample_stride",
        "x_outer_stride", "dx_sample_stride", "dx_outer_stride", "num_samples", "place_tiles",
    )
)  # fmt: skip
def _input_gradient_kernel(
    dy, x, dx,  # (N, g, c, S)
    mean, mean_dy,  # (N, g)
    w, grad_sigma,  # (N, g, g)
    weight,  # (C,) or None
    num_places, num_positions, dy_sample_stride, dy_outer_stride, x_sample_stride, x_outer_stride,
    dx_sample_stride, dx_outer_stride, num_samples, place_tiles, factor,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program makes one tile. They begin where the sums ended: that may still be cached."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = program % num_samples
    first_place = program // num_samples % place_tiles * K
    first_position = program // num_samples // place_tiles * B
    result = tl.zeros((G, K * B), tl.float32)
    result = _add_product(
        result, w, 1.0, dy, mean_dy, weight, n, first_place, first_position, num_places,
        num_positions, dy_sample_stride, dy_outer_stride, NUM_GROUPS, G, K, B, VECTOR,
        CHANNELS_INNER, PRECISION,
    )  # fmt: skip
    result = _add_product(
        result, grad_sigma, factor, x, mean, None, n, first_place, first_position, num_places,
        num_positions, x_sample_stride, x_outer_stride, NUM_GROUPS, G, K, B, VECTOR,
        CHANNELS_INNER, PRECISION,
    )  # fmt: skip
    groups, places, positions = axes(0, first_place, first_position, G, K, B, CHANNELS_INNER)
    offsets, mask = locate(
        groups, places, positions, NUM_GROUPS, num_places, num_positions, dx_outer_stride, VECTOR,
        CHANNELS_INNER,
    )  # fmt: skip
    dx = sample(dx, n, dx_sample_stride, VECTOR)
    result = as_tile(result, K, B, CHANNELS_INNER).to(dx.dtype.element_ty)
    tl.store(dx + offsets, result, mask=mask)


# How much a tile holds, and by how many warps: about as much as fits the registers of an H100. A
# product in full float32 runs on no tensor cores; its operands are kept short along the sum.


def _summing(num_groups: int, dtype: torch.dtype) -> tuple[int, dict]:
    """(columns of a tile, a kernel's options), where products are summed over columns."""
    options = _options(num_groups, dtype)
    entries = 1024 if options["PRECISION"] == "ieee" else 4096
    return max(entries // options["G"], 16), options


def _applying(num_groups: int, dtype: torch.dtype) -> tuple[int, dict]:
    """(columns of a tile, a kernel's options), where a g x g matrix is applied to columns."""
    options = _options(num_groups, dtype)
    return 64 if options["G"] > 64 or options["PRECISION"] == "ieee" else 128, options


def _options(num_groups: int, dtype: torch.dtype) -> dict:
    G = max(16, triton.next_power_of_2(num_groups))
    return {"G": G, "PRECISION": precision.of_passes(dtype), "num_warps": 8 if G > 64 else 4}


# A program sums no fewer tiles than this, or the g x g share that it writes would cost too much.
_LEAST_TILES = 4


def _parts(n: int, programs: int, device: torch.device) -> int:
    """
    Among how many programs each of n samples is divided, if a multiprocessor holds `programs` of
    them: so many that all run at once.
    """
    return max(1, programs * multiprocessors(device) // n)


def _vector(itemsize: int, *layouts: Layout) -> int:
    return min(layout.vector(itemsize) for layout in layouts)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _laid_out_like(dy: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """dy, or a copy of it if its elements do not follow each other in x's order."""
    layout, layout_x = layout_of(dy, num_groups), layout_of(x, num_groups)
    if layout is not None and layout.channels_inner == layout_x.channels_inner:
        return dy
    return result_like(x).copy_(dy)
