"""
The whitening matrix W = Sigma^(-1/2) of a batch of covariances, and its gradient.

Two ways to compute it (Group Whitening, CVPR 2021, section 3): T steps of Newton's iteration (ItN)
and the eigendecomposition (ZCA). All matrices are symmetric, of shape (N, g, g), one a sample.
The derivations of the gradients are in docs/derivation.md.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def whitening_matrix(
    sigma: Tensor, iterations: int, eps: float, method: str, rescaled: bool
) -> tuple[Tensor | None, ...]:
    """
    W of each sample, by `method` ("itn" or "zca"), of unit mean variance if `rescaled`.

    Args:
        sigma: covariances with eps already added to the diagonal.

    Returns:
        (W, basis, eigenvalues, scale): W and what :func:`whitening_matrix_backward` takes with it;
        None where the method has no such thing.
    """
    basis = eigenvalues = scale = None
    if method == "itn":
        w = torch.cat([newton(part, iterations) for part in _split(sigma)])
    else:
        w, basis, eigenvalues = zca(sigma, eps)
    if rescaled:
        w, scale = rescale(sigma, w)
    return w, basis, eigenvalues, scale


def whitening_matrix_backward(
    sigma: Tensor,
    w: Tensor,
    grad_w: Tensor,
    basis: Tensor | None,
    eigenvalues: Tensor | None,
    scale: Tensor | None,
    iterations: int,
    method: str,
    rescaled: bool,
) -> Tensor:
    """The gradient of :func:`whitening_matrix` with respect to sigma, symmetric."""
    direct = 0
    if rescaled:
        direct, grad_w = rescale_backward(sigma, w, scale, grad_w)
        w = w / scale
    if method == "itn":
        parts = zip(_split(sigma), _split(w), _split(grad_w), strict=True)
        through_w = torch.cat([newton_backward(*part, iterations) for part in parts])
    else:
        through_w = zca_backward(basis, eigenvalues, grad_w)
    return through_w + direct


def _split(matrices: Tensor) -> tuple[Tensor, ...]:
    """
    On a CPU, so few matrices at a time that the iteration's dozen of temporaries stays in the cache
    and on the heap: fresh pages for many of them cost more than the arithmetic.
    """
    size = len(matrices)
    if matrices.device.type == "cpu":
        size = max(1, 2**17 // matrices[0].numel())
    return matrices.split(size)


def newton(sigma: Tensor, iterations: int) -> Tensor:
    """
    W ~ Sigma^(-1/2) by T = `iterations` steps of Newton's iteration on S = Sigma / tr(Sigma):

        P_0 = I,   P_{k+1} = (3 P_k - P_k^3 S) / 2,   W = P_T / sqrt(tr(Sigma)).

    Written with the residual R_k = P_k^2 S, which goes to I as P_k goes to S^(-1/2), a step is

        F_k = (3 I - R_k) / 2,   P_{k+1} = P_k F_k,   R_{k+1} = F_k R_k F_k.

    The two are the same mathematics at the same price (P_k, R_k and S commute), but rounding
    errors, forward and backward, grow in the first with the condition number of Sigma.

    A zero Sigma (a constant sample with eps = 0) has no inverse; its trace is taken to be 1.
    """
    trace = _trace_or_one(sigma)
    *_, p = _newton_steps(sigma / trace, iterations)
    return p / trace.sqrt()


def newton_backward(sigma: Tensor, w: Tensor, grad_w: Tensor, iterations: int) -> Tensor:
    """
    The gradient of :func:`newton` with respect to sigma.

    Args:
        sigma: what newton was given.
        w: what it returned.
        grad_w: the gradient with respect to w; only its symmetric part matters.

    Returns:
        Tensor: of sigma's shape, symmetric.
    """
    trace = _trace_or_one(sigma)
    s = sigma / trace
    grad_w = _symmetric(grad_w)
    *steps, _ = _newton_steps(s, iterations, keep=True)

    grad_p, grad_r = grad_w / trace.sqrt(), None
    for k, (p, r, f) in reversed(list(enumerate(steps))):
        grad_f = p @ grad_p if k > 0 else grad_p  # P_{k+1} = P_k F_k, and P_0 = I
        if k > 0:
            grad_p = _symmetric(grad_p @ f)
        if grad_r is None:  # R_T is never used
            grad_f = _symmetric(grad_f)
            grad_r = grad_f / -2
        else:  # R_{k+1} = F_k R_k F_k and F_k = (3 I - R_k) / 2
            rf = grad_r @ f
            grad_f = _symmetric(torch.baddbmm(grad_f, rf, r, alpha=2))
            grad_r = torch.baddbmm(grad_f, f, rf, beta=-0.5)
    grad_s = torch.zeros_like(sigma) if grad_r is None else _symmetric(grad_r)

    # W(c Sigma) = c^(-1/2) W(Sigma) for every number c, so that <dSigma, Sigma> = -<dW, W> / 2:
    # that fixes the part of the gradient that comes through the trace.
    through_trace = (_inner(grad_w, w) / 2 + _inner(grad_s, s)) / trace
    return grad_s / trace - through_trace * _eye_like(sigma)


def _newton_steps(s: Tensor, iterations: int, keep: bool = False) -> Iterator:
    """Yields (P_k, R_k, F_k) for k = 0 ... T-1 if `keep`, and then P_T."""
    eye = _eye_like(s)
    # A direction with a share l of the trace has converged once 1.5^k sqrt(l) > 1. Steps that could
    # only concern shares below the type's resolution (T > 19 in float32) would amplify rounding.
    iterations = min(iterations, int(-math.log(torch.finfo(s.dtype).eps) / (2 * math.log(1.5))))
    p, r = eye.expand_as(s), s
    for k in range(iterations):
        f = 1.5 * eye - 0.5 * r
        if keep:
            yield p, r, f
        p = p @ f if k > 0 else f
        if k + 1 < iterations:
            r = f @ r @ f
    yield p


def zca(sigma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """
    W = Sigma^(-1/2) = U Lambda^(-1/2) U^T from the symmetric eigendecomposition.

    Args:
        sigma: covariances with eps already added, so that no true eigenvalue is below eps. What
            rounding leaves below it, or below the resolution of the largest eigenvalue, is raised.
        eps: see sigma.

    Returns:
        (W, U, Lambda), Lambda of shape (N, g). W of a sample whose sigma isn't finite is nan.
    """
    finite = sigma.isfinite().all(-1).all(-1)[:, None, None]
    eigenvalues, basis = torch.linalg.eigh(torch.where(finite, sigma, _eye_like(sigma)))
    resolution = torch.finfo(sigma.dtype).eps * sigma.shape[-1]
    floor = (eigenvalues[:, -1:] * resolution).clamp(min=eps)
    eigenvalues = _nonzero(torch.maximum(eigenvalues, floor))
    w = (basis * eigenvalues.rsqrt().unsqueeze(-2)) @ basis.mT
    return torch.where(finite, w, torch.nan), basis, eigenvalues


def zca_backward(basis: Tensor, eigenvalues: Tensor, grad_w: Tensor) -> Tensor:
    """
    The gradient of :func:`zca` with respect to sigma: U (K * (U^T dW U)) U^T, where K_ij is the
    divided difference of l^(-1/2), for which equal eigenvalues are no special case:

        (l_i^(-1/2) - l_j^(-1/2)) / (l_i - l_j) = -1 / (sqrt(l_i l_j) (sqrt(l_i) + sqrt(l_j))).
    """
    root = eigenvalues.sqrt()
    left, right = root.unsqueeze(-1), root.unsqueeze(-2)
    divided_difference = -1 / (left * right * (left + right))
    inner = basis.mT @ _symmetric(grad_w) @ basis
    return basis @ (divided_difference * inner) @ basis.mT


def rescale(sigma: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """
    s W with s = sqrt(g / tr(W Sigma W)): what it whitens comes out with unit mean variance.

    Not in the paper. T steps of Newton's iteration leave directions with a small share of the trace
    at less than unit variance, more of them with more groups; s gives back the lost scale.

    Returns:
        (s W, s), s of shape (N, 1, 1); 1 where W Sigma W is zero.
    """
    total_variance = _inner(w, sigma @ w)
    s = torch.where(total_variance == 0, 1, (sigma.shape[-1] / total_variance).sqrt())
    return s * w, s


def rescale_backward(sigma: Tensor, sw: Tensor, s: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """
    The gradient of :func:`rescale` with respect to (sigma, w), from its results sw and s.
    """
    along = _inner(grad, sw) / sigma.shape[-1]
    grad_w = s * (grad - along * (sigma @ sw))
    return -along / 2 * (sw @ sw), grad_w


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<A, B> = tr(A^T B), of shape (N, 1, 1)."""
    return (a * b).sum((-2, -1), keepdim=True)


def _symmetric(a: Tensor) -> Tensor:
    return (a + a.mT).mul_(0.5)


def _eye_like(a: Tensor) -> Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _trace_or_one(sigma: Tensor) -> Tensor:
    return _nonzero(sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None])


def _nonzero(a: Tensor) -> Tensor:
    return torch.where(a == 0, 1, a)
