"""Matrices, vectors and their products, inside of kernels."""

import triton
import triton.language as tl

# How many shares are read at a time to be added up
ROWS = tl.constexpr(64)


@triton.jit
def entries(NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    """(offsets within a matrix, padded to G x G, mask of what exists)."""
    row, column = tl.arange(0, G)[:, None], tl.arange(0, G)[None, :]
    return row * NUM_GROUPS + column, (row < NUM_GROUPS) & (column < NUM_GROUPS)


@triton.jit
def load_matrix(matrix, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    entry, exists = entries(NUM_GROUPS, G)
    return tl.load(matrix + entry, mask=exists, other=0.0)


@triton.jit
def store_matrix(matrix, value, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    entry, exists = entries(NUM_GROUPS, G)
    tl.store(matrix + entry, value, mask=exists)


@triton.jit
def load_vector(vector, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    group = tl.arange(0, G)
    return tl.load(vector + group, mask=group < NUM_GROUPS, other=0.0)


@triton.jit
def identity(G: tl.constexpr):
    return tl.where(tl.arange(0, G)[:, None] == tl.arange(0, G)[None, :], 1.0, 0.0)


@triton.jit
def times_vector(matrix, vector):
    return tl.sum(matrix * vector[None, :], axis=1)


@triton.jit
def halves(matrix, dtype: tl.constexpr):
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
def times_tile(high, low, tile, result, PRECISION: tl.constexpr):
    """result + (high + low) tile."""
    if tile.dtype != tl.float32:
        result = tl.dot(low, tile, result)
    return tl.dot(high, tile, result, input_precision=PRECISION)


@triton.jit
def comes_last(counter, programs):
    """
    Whether this is the last of the programs that count themselves in `counter`, 0 at first and in
    float32 as all that is around it. The last one reads what all of them have stored.
    """
    tl.debug_barrier()
    return tl.atomic_add(counter, 1.0, sem="acq_rel") == programs - 1
