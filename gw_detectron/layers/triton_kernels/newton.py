"""
Newton's iteration and its gradient as Triton kernels: those of ../whitening_matrix.py.

All steps are taken in one launch. Products with F = (3 I - R) / 2 are taken as

    A F = (3 A - A R) / 2,

which needs no F and rounds less. Forward, a matrix stays in registers; where it is too large for
that, or in full float32, every product is of two matrices in a workspace, read a part of the sum at
a time. The gradient needs P_k and R_k of all steps, more than registers hold: the backward computes
them once more, in the workspace, where they wait for their step. (To keep nothing and begin anew
for every step would take T/2 times the products.) Only matrices under way have room there, so that
it stays in the L2 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import precision
from .launch import launch, multiprocessors

# whitening_matrix._newton_steps says why there are no more, here in float32.
_MOST_STEPS = 19


def newton(sigma: Tensor, iterations: int) -> Tensor:
    """See :func:`gw_detectron.layers.whitening_matrix.newton`; sigma in float32."""
    n, g = sigma.shape[:2]
    iterations, options = min(iterations, _MOST_STEPS), _options(g)
    w = torch.empty_like(sigma, memory_format=torch.contiguous_format)
    if options["G"] <= 64 and options["PRECISION"] != "ieee":
        launch(_newton_kernel, n, sigma.contiguous(), w, iterations, on=sigma, **options)
    else:
        workspace = _workspace(sigma, iterations)
        launch(
            _newton_in_workspace_kernel, len(workspace), sigma.contiguous(), w, workspace, n,
            iterations, on=sigma, **options,
        )  # fmt: skip
    return w


@triton.jit(do_not_specialize=("iterations",))
def _newton_kernel(
    sigma, w,  # (N, g, g)
    iterations,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program takes one matrix through all its steps in registers."""
    n = tl.program_id(0)
    trace = _trace_or_one(sigma, n, NUM_GROUPS, G)
    r = _load(sigma, n, NUM_GROUPS, G) / trace
    identity = tl.where(tl.arange(0, G)[:, None] == tl.arange(0, G)[None, :], 1.0, 0.0)
    p = tl.where(iterations > 0, 1.5 * identity - 0.5 * r, identity)
    for _ in range(1, iterations):
        half = 0.5 * r
        r = 1.5 * r - tl.dot(r, half, input_precision=PRECISION)
        r = 1.5 * r - tl.dot(r, half, input_precision=PRECISION)
        p = 1.5 * p - tl.dot(p, 0.5 * r, input_precision=PRECISION)
    _store(w, n, p / tl.sqrt(trace), NUM_GROUPS, G)


@triton.jit(do_not_specialize=("num_matrices", "iterations"))
def _newton_in_workspace_kernel(
    sigma, w,  # (N, g, g)
    workspace,  # (programs, 2 T + 3, G, G)
    num_matrices, iterations,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program takes one matrix after the other through all its steps."""
    workspace = _place_of_program(workspace, iterations, G)
    for n in range(tl.program_id(0), num_matrices, tl.num_programs(0)):
        trace = _trace_or_one(sigma, n, NUM_GROUPS, G)
        _take_steps(workspace, _load(sigma, n, NUM_GROUPS, G) / trace, iterations, G, PRECISION)
        p = _load(workspace, 2 * iterations, G, G)
        _store(w, n, p / tl.sqrt(trace), NUM_GROUPS, G)
        tl.debug_barrier()


def newton_backward(sigma: Tensor, w: Tensor, grad_w: Tensor, iterations: int) -> Tensor:
    """See :func:`gw_detectron.layers.whitening_matrix.newton_backward`; all in float32."""
    n, g = sigma.shape[:2]
    iterations, options = min(iterations, _MOST_STEPS), _options(g)
    grad_sigma = torch.empty_like(sigma, memory_format=torch.contiguous_format)
    workspace = _workspace(sigma, iterations)
    launch(
        _newton_backward_kernel, len(workspace), sigma.contiguous(), w.contiguous(),
        grad_w.contiguous(), grad_sigma, workspace, n, iterations, on=sigma, **options,
    )  # fmt: skip
    return grad_sigma


@triton.jit(do_not_specialize=("num_matrices", "iterations"))
def _newton_backward_kernel(
    sigma, w, grad_w, grad_sigma,  # (N, g, g)
    workspace,  # (programs, 2 T + 3, G, G)
    num_matrices, iterations,
    NUM_GROUPS: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    workspace = _place_of_program(workspace, iterations, G)
    # Places of dR and 2 dR F; dP has by turns those of P_0 = I and P_T, which need none.
    grad_r, twice_rf = 2 * iterations + 1, 2 * iterations + 2
    for n in range(tl.program_id(0), num_matrices, tl.num_programs(0)):
        trace = _trace_or_one(sigma, n, NUM_GROUPS, G)
        _take_steps(workspace, _load(sigma, n, NUM_GROUPS, G) / trace, iterations, G, PRECISION)
        _store(workspace, 0, _symmetric(_load(grad_w, n, NUM_GROUPS, G)) / tl.sqrt(trace), G, G)
        _store(workspace, grad_r, tl.zeros((G, G), tl.float32), G, G)
        tl.debug_barrier()
        for step in range(iterations):
            k = iterations - 1 - step
            p, r = 2 * k, 2 * k + 1
            grad_p = step % 2 * (2 * iterations)
            next_grad_p = 2 * iterations - grad_p
            if step > 0:
                product = _times_factor(workspace, grad_r, r, G, PRECISION)
                _store(workspace, twice_rf, 2.0 * product, G, G)
            grad_f = tl.zeros((G, G), tl.float32)
            if k > 0:
                product = _times_factor(workspace, grad_p, r, G, PRECISION)
                _store(workspace, next_grad_p, _symmetric(product), G, G)
                grad_f = _add_product(grad_f, workspace, p, grad_p, G, PRECISION)
            else:
                grad_f = _load(workspace, grad_p, G, G)
            tl.debug_barrier()
            if step > 0:
                grad_f = _symmetric(_add_product(grad_f, workspace, twice_rf, r, G, PRECISION))
                # F R' - dF / 2 with F = (3 I - R) / 2
                start = 2.0 * grad_f - 3.0 * _load(workspace, twice_rf, G, G)
                product = _add_product(start, workspace, r, twice_rf, G, PRECISION)
                _store(workspace, grad_r, -0.25 * product, G, G)
            else:
                _store(workspace, grad_r, -0.5 * _symmetric(grad_f), G, G)
            tl.debug_barrier()
        grad_s = _symmetric(_load(workspace, grad_r, G, G))
        along_w = tl.sum(_load(grad_w, n, NUM_GROUPS, G) * _load(w, n, NUM_GROUPS, G))
        along_s = tl.sum(grad_s * _load(sigma, n, NUM_GROUPS, G)) / trace
        _store(grad_sigma, n, grad_s / trace, NUM_GROUPS, G)
        tl.debug_barrier()
        _add_to_diagonal(grad_sigma, n, -(along_w / 2 + along_s) / trace, NUM_GROUPS, G)


@triton.jit
def _take_steps(workspace, s, iterations, G: tl.constexpr, PRECISION: tl.constexpr):
    """
    Leaves R_k in place 2 k + 1 of the workspace for 0 <= k < T, and P_k in 2 k for 0 < k <= T; for
    T = 0 as well, P_0 = I in place 0.
    """
    _store(workspace, 1, s, G, G)
    if iterations == 0:
        _store(workspace, 0, tl.zeros((G, G), tl.float32), G, G)
    else:
        _store(workspace, 2, -0.5 * s, G, G)
    tl.debug_barrier()
    if iterations == 0:
        _add_to_diagonal(workspace, 0, 1.0, G, G)
    else:
        _add_to_diagonal(workspace, 2, 1.5, G, G)
    tl.debug_barrier()
    fr = 2 * iterations + 1
    for k in range(1, iterations):
        p, r, last_r = 2 * k, 2 * k + 1, 2 * k - 1
        _store(workspace, fr, _times_factor(workspace, last_r, last_r, G, PRECISION), G, G)
        tl.debug_barrier()
        _store(workspace, r, _times_factor(workspace, fr, last_r, G, PRECISION), G, G)
        tl.debug_barrier()
        _store(workspace, p + 2, _times_factor(workspace, p, r, G, PRECISION), G, G)
    tl.debug_barrier()


@triton.jit
def _times_factor(workspace, a, r, G: tl.constexpr, PRECISION: tl.constexpr):
    """A F = (3 A - A R) / 2 of the matrices in places a and r."""
    start = -3.0 * _load(workspace, a, G, G)
    return -0.5 * _add_product(start, workspace, a, r, G, PRECISION)


@triton.jit
def _add_product(result, workspace, a, b, G: tl.constexpr, PRECISION: tl.constexpr):
    """result + A B of the matrices in places a and b."""
    CHUNK: tl.constexpr = 16 if PRECISION == "ieee" else min(G, 32)
    row, column, some = tl.arange(0, G)[:, None], tl.arange(0, G)[None, :], tl.arange(0, CHUNK)
    for first in range(0, G, CHUNK):
        a_part = tl.load(workspace + a * (G * G) + (row * G + (first + some[None, :])))
        b_part = tl.load(workspace + b * (G * G) + ((first + some[:, None]) * G + column))
        result = tl.dot(a_part, b_part, result, input_precision=PRECISION)
    return result


@triton.jit
def _load(matrices, n, SIZE: tl.constexpr, G: tl.constexpr):
    """Matrix n of SIZE x SIZE as one of G x G, zero beyond."""
    row, column = tl.arange(0, G)[:, None], tl.arange(0, G)[None, :]
    matrices += tl.cast(n, tl.int64) * (SIZE * SIZE)
    mask = (row < SIZE) & (column < SIZE)
    return tl.load(matrices + (row * SIZE + column), mask=mask, other=0.0)


@triton.jit
def _store(matrices, n, value, SIZE: tl.constexpr, G: tl.constexpr):
    row, column = tl.arange(0, G)[:, None], tl.arange(0, G)[None, :]
    matrices += tl.cast(n, tl.int64) * (SIZE * SIZE)
    mask = (row < SIZE) & (column < SIZE)
    tl.store(matrices + (row * SIZE + column), value, mask=mask)


@triton.jit
def _place_of_program(workspace, iterations, G: tl.constexpr):
    return workspace + tl.program_id(0).to(tl.int64) * (2 * iterations + 3) * (G * G)


@triton.jit
def _trace_or_one(sigma, n, NUM_GROUPS: tl.constexpr, G: tl.constexpr):
    index = tl.arange(0, G)
    sigma += tl.cast(n, tl.int64) * (NUM_GROUPS * NUM_GROUPS)
    diagonal = tl.load(sigma + index * (NUM_GROUPS + 1), mask=index < NUM_GROUPS, other=0.0)
    trace = tl.sum(diagonal)
    return tl.where(trace == 0, 1.0, trace)


@triton.jit
def _add_to_diagonal(matrices, n, value, SIZE: tl.constexpr, G: tl.constexpr):
    index = tl.arange(0, G)
    diagonal = matrices + tl.cast(n, tl.int64) * (SIZE * SIZE) + index * (SIZE + 1)
    mask = index < SIZE
    tl.store(diagonal, tl.load(diagonal, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def _symmetric(a):
    return 0.5 * (a + tl.trans(a))


# By G: the warps that hold a program's matrices in registers without spilling, and how many such
# programs an H100's multiprocessor holds.
_NUM_WARPS = {16: 1, 32: 2, 64: 4, 128: 8}
_NUM_PROGRAMS = {16: 16, 32: 4, 64: 2, 128: 1}


def _padded(num_groups: int) -> int:
    return max(16, triton.next_power_of_2(num_groups))


def _options(num_groups: int) -> dict:
    G, kind = _padded(num_groups), precision.of_matrices()
    return {"NUM_GROUPS": num_groups, "G": G, "PRECISION": kind, "num_warps": _NUM_WARPS[G]}


def _workspace(sigma: Tensor, iterations: int) -> Tensor:
    G = _padded(sigma.shape[-1])
    programs = min(len(sigma), _NUM_PROGRAMS[G] * multiprocessors(sigma.device))
    return sigma.new_empty((programs, 2 * iterations + 3, G, G))
