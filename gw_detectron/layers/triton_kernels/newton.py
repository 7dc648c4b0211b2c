"""
Newton's iteration and its gradient as Triton kernels: those of ../whitening_matrix.py.

A program takes one matrix through all its steps in one launch, in registers. Products with
F = (3 I - R) / 2 are taken as A F = (3 A - A R) / 2, which needs no F and rounds less.

A product of float32 matrices is made of three products on the tensor cores. Each matrix is the sum
of two in float16, which keep 22 of its 24 bits; the result is as exact as a product in float32
(docs/derivation.md has figures).
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import whitening_matrix
from .launch import Launch
from .layout import MAX_GROUPS
from .products import entries, identity, load_matrix, store_matrix
from .tiling import matrix_options

# With more steps entries would leave the range of float16: the derivative of P_T grows by up to 3.4
# times a step. With more groups the matrices would not fit the registers.
MOST_STEPS = 7


def newton(sigma: Tensor, iterations: int) -> Tensor:
    """See :func:`gw_detectron.layers.whitening_matrix.newton`; sigma in float32."""
    n, g = sigma.shape[:2]
    if g > MAX_GROUPS or iterations > MOST_STEPS:
        return whitening_matrix.newton(sigma, iterations)
    w = torch.empty_like(sigma, memory_format=torch.contiguous_format)
    _launch(_newton_kernel, n, g, iterations)(sigma.contiguous(), w)
    return w


@functools.lru_cache(maxsize=1024)
def _launch(kernel, n: int, g: int, iterations: int) -> Launch:
    return Launch(kernel, n, iterations, **matrix_options(g))


@triton.jit(do_not_specialize=("iterations",))
def _newton_kernel(
    sigma, w,  # (N, g, g)
    iterations,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    matrix = newton_of(load_matrix(sigma + first, NUM_GROUPS, G), iterations, NUM_GROUPS, G)
    store_matrix(w + first, matrix, NUM_GROUPS, G)


@triton.jit
def newton_of(sigma, iterations, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    """W of Sigma, both (G, G) with 0 beyond the groups."""
    r, trace = _over_trace(sigma, G)
    p = tl.where(iterations > 0, 1.5 * identity(G) - 0.5 * r, identity(G))
    for _ in range(1, iterations):
        rf = 1.5 * r - 0.5 * _product(r, r)
        r = 1.5 * rf - 0.5 * _product(rf, r)
        p = 1.5 * p - 0.5 * _product(p, r)
    _, exists = entries(NUM_GROUPS, G)
    return tl.where(exists, p / tl.sqrt(trace), 0.0)


def newton_backward(sigma: Tensor, w: Tensor, grad_w: Tensor, iterations: int) -> Tensor:
    """See :func:`gw_detectron.layers.whitening_matrix.newton_backward`; all in float32."""
    n, g = sigma.shape[:2]
    if g > MAX_GROUPS or iterations > MOST_STEPS:
        return whitening_matrix.newton_backward(sigma, w, grad_w, iterations)
    grad_sigma = torch.empty_like(sigma, memory_format=torch.contiguous_format)
    matrices = (t.contiguous() for t in (sigma, w, grad_w))
    _launch(_newton_backward_kernel, n, g, iterations)(*matrices, grad_sigma)
    return grad_sigma


@triton.jit(do_not_specialize=("iterations",))
def _newton_backward_kernel(
    sigma, w, grad_w, grad_sigma,  # (N, g, g)
    iterations,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    gradient = newton_gradient(
        sigma + first, w + first, load_matrix(grad_w + first, NUM_GROUPS, G), iterations,
        NUM_GROUPS, G,
    )  # fmt: skip
    store_matrix(grad_sigma + first, gradient, NUM_GROUPS, G)


@triton.jit
def newton_gradient(sigma, w, grad_w, iterations, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    """
    dSigma of dW, both (G, G); sigma and w point to a sample's, which are read again rather than
    kept in registers.
    """
    r, trace = _over_trace(load_matrix(sigma, NUM_GROUPS, G), G)
    dr = _symmetric(grad_w)
    along_w = tl.sum(dr * load_matrix(w, NUM_GROUPS, G))
    # Everything is linear in dP. Brought to norm 1, no entry leaves float16's range.
    size = tl.sqrt(tl.sum(dr * dr))
    size = tl.where(size > 0, size, 1.0)
    dr /= size

    p = 1.5 * identity(G) - 0.5 * r
    dp = tl.where(iterations > 0, -0.5 * dr, 0.0)
    for _ in range(1, iterations):
        # d(R F F) = dR F F + R d(F F), and d(F F) = -(F dR + dR F) / 2 since dF = -dR / 2
        drf = 1.5 * dr - 0.5 * _product(dr, r)
        dr = 1.5 * drf - 0.5 * _product(drf, r) - _product(r, _symmetric(drf))
        rf = 1.5 * r - 0.5 * _product(r, r)
        r = 1.5 * rf - 0.5 * _product(rf, r)
        dp = 1.5 * dp - 0.5 * (_product(dp, r) + _product(p, dr))
        p = 1.5 * p - 0.5 * _product(p, r)

    grad_s = _symmetric(dp) * (size / tl.sqrt(trace))
    along_s = tl.sum(grad_s * load_matrix(sigma, NUM_GROUPS, G)) / trace
    return (grad_s - (along_w / 2 + along_s) * identity(G)) / trace


@triton.jit
def _product(a, b):
    """A B of float32 matrices, by their halves in float16."""
    # Entries are at most 17 times 16, and small ones keep their bits.
    a *= 16.0
    b *= 16.0
    a_high = a.to(tl.float16)
    b_high = b.to(tl.float16)
    a_low = (a - a_high.to(tl.float32)).to(tl.float16)
    b_low = (b - b_high.to(tl.float32)).to(tl.float16)
    result = tl.dot(a_low, b_high)
    result = tl.dot(a_high, b_low, result)
    return tl.dot(a_high, b_high, result) * (1 / 256)


@triton.jit
def _over_trace(sigma, G: tl.constexpr):
    """(Sigma / tr(Sigma), tr(Sigma)); a trace of 0 is taken to be 1."""
    trace = tl.sum(sigma * identity(G))
    trace = tl.where(trace == 0, 1.0, trace)
    return sigma / trace, trace


@triton.jit
def _symmetric(a):
    return 0.5 * (a + tl.trans(a))
