"""
The whitening matrix W = Sigma^(-1/2) of a batch of covariances, and its gradient.

Two ways to compute it (Group Whitening, CVPR 2021, section 3): T steps of Newton's iteration (ItN)
and the eigendecomposition (ZCA). All matrices are symmetric, of shape (N, g, g), one a sample.
The derivations of the gradients are in docs/derivation.md.
"""

import math

import torch
from torch import Tensor


def newton(sigma: Tensor, iterations: int) -> Tensor:
    """
    W ~ Sigma^(-1/2) by T = `iterations` steps of Newton's iteration on S = Sigma / tr(Sigma):

        P_0 = I,   P_{k+1} = (3 P_k - P_k^3 S) / 2,   W = P_T / sqrt(tr(Sigma)).

    Written with the residual R_k = P_k^2 S, which goes to I as P_k goes to S^(-1/2), a step is

        F_k = (3 I - R_k) / 2,   P_{k+1} = P_k F_k,   R_{k+1} = R_k F_k^2.

    The two are the same mathematics at the same price (P_k, R_k and S commute), but rounding
    errors, forward and backward, grow in the first with the condition number of Sigma.

    A zero Sigma (a constant sample with eps = 0) has no inverse; its trace is taken to be 1.
    """
    trace = _trace_or_one(sigma)
    r, eye = sigma / trace, _eye_like(sigma)
    p = f = eye.expand_as(sigma)
    for k in range(_useful_steps(iterations, sigma)):
        if k > 0:
            r = torch.bmm(torch.bmm(r, f), f)
        f = torch.add(1.5 * eye, r, alpha=-0.5)
        p = torch.bmm(p, f) if k > 0 else f
    return p / trace.sqrt()


def newton_backward(sigma: Tensor, w: Tensor, grad_w: Tensor, iterations: int) -> Tensor:
    """
    The gradient of :func:`newton` with respect to sigma.

    P_T is a polynomial in S. The derivative of a polynomial at a symmetric S is its own adjoint, so
    the gradient with respect to S is the derivative of P_T in the direction dP of the gradient that
    comes in: newton's steps again, each product differentiated with respect to both its factors,

        dR_0 = dP,   dF_k = -dR_k / 2,   d(A B) = dA B + A dB,   dS = dP_T.

    Args:
        sigma: what newton was given.
        w: what it returned.
        grad_w: the gradient with respect to w; only its symmetric part matters.

    Returns:
        Tensor: of sigma's shape, symmetric.
    """
    trace = _trace_or_one(sigma)
    s, eye = sigma / trace, _eye_like(sigma)
    grad_w = _symmetric(grad_w)
    r, dr = s, grad_w / trace.sqrt()
    p, dp = f, df = eye.expand_as(s), torch.zeros_like(s)
    for k in range(_useful_steps(iterations, sigma)):
        if k > 0:
            rf, drf = torch.bmm(r, f), torch.bmm(dr, f).baddbmm_(r, df)
            r, dr = torch.bmm(rf, f), torch.bmm(drf, f).baddbmm_(rf, df)
        f, df = torch.add(1.5 * eye, r, alpha=-0.5), -0.5 * dr
        p, dp = (torch.bmm(p, f), torch.bmm(dp, f).baddbmm_(p, df)) if k > 0 else (f, df)
    grad_s = _symmetric(dp)

    # W(c Sigma) = c^(-1/2) W(Sigma) for every number c, so that <dSigma, Sigma> = -<dW, W> / 2:
    # that fixes the part of the gradient that comes through the trace.
    through_trace = (_inner(grad_w, w) / 2 + _inner(grad_s, s)) / trace
    return grad_s / trace - through_trace * eye


def _useful_steps(iterations: int, sigma: Tensor) -> int:
    """
    A direction with a share l of the trace has converged once 1.5^k sqrt(l) > 1. Steps that could
    only concern shares below the type's resolution (T > 19 in float32) would amplify rounding.
    """
    return min(iterations, int(-math.log(_resolution(sigma)) / (2 * math.log(1.5))))


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
    basis = basis.contiguous()  # LAPACK's are transposed
    floor = (eigenvalues[:, -1:] * (_resolution(sigma) * sigma.shape[-1])).clamp(min=eps)
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
    total_variance = _inner(w, torch.bmm(sigma, w))
    s = torch.where(total_variance == 0, 1, (sigma.shape[-1] / total_variance).sqrt())
    return s * w, s


def rescale_backward(sigma: Tensor, sw: Tensor, s: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """
    The gradient of :func:`rescale` with respect to (sigma, w), from its results sw and s.
    """
    along = _inner(grad, sw) / sigma.shape[-1]
    grad_w = s * (grad - along * (sigma @ sw))
    return -along / 2 * (sw @ sw), grad_w


def _resolution(a: Tensor) -> float:
    """torch.finfo(a.dtype).eps, which TorchScript does not know."""
    return 2.0**-23 if a.dtype == torch.float32 else 2.0**-52


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<A, B> = tr(A^T B), of shape (N, 1, 1)."""
    return (a * b).sum((-2, -1), keepdim=True)


def _symmetric(a: Tensor) -> Tensor:
    return (a + a.mT).mul_(0.5)


def _eye_like(a: Tensor) -> Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _trace_or_one(sigma: Tensor) -> Tensor:
    # Not sigma.diagonal(): in ONNX that fixes the number of samples
    return _nonzero(_inner(sigma, _eye_like(sigma)))


def _nonzero(a: Tensor) -> Tensor:
    return torch.where(a == 0, 1, a)
