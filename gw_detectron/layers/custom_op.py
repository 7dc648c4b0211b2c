"""
Group Whitening as an operator of PyTorch, torch.ops.gw_detectron.group_whitening, and its gradient.

To torch.compile an operator is one node: neither a break in the graph nor passes to be taken apart.
A backend (backend.py) makes the passes over the data; what comes between them is a matter of g x g
matrices (whitening_matrix.py). Arguments are taken to be valid: group_whitening.py checks them.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .backend import backend_for
from .passes import full_precision, result_like
from .whitening_matrix import rescale, rescale_backward, zca, zca_backward

_OPTIONS = "int num_groups, int iterations, float eps, str method, bool rescaled"


@torch.library.custom_op(
    "gw_detectron::group_whitening",
    mutates_args=(),
    schema=f"(Tensor x, Tensor? weight, Tensor? bias, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def group_whitening(x, weight, bias, num_groups, iterations, eps, method, rescaled):
    """
    Returns:
        (y, mean, sigma, w, basis, eigenvalues): y, and what the backward takes. mean is (N, g, 1),
        the matrices are (N, g, g); basis and eigenvalues, (N, g), are empty for method "itn".
    """
    if x.numel() == 0:
        return _empty(x, weight, bias, num_groups, iterations, eps, method, rescaled)
    backend = backend_for(x, num_groups)
    with _without_autocast(x):
        data = backend.data_of(x)
        mean, sigma = backend.moments(data, num_groups)
        sigma.diagonal(dim1=-2, dim2=-1).add_(eps)
        if method == "itn":
            w = backend.newton(sigma, iterations)
            basis, eigenvalues = w.new_empty(0), w.new_empty(0)
        else:
            w, basis, eigenvalues = zca(sigma, eps)
        applied = rescale(sigma, w)[0] if rescaled else w
        data, offset = backend.without_offset(data, mean, sigma)
        y = backend.whiten(data, offset, applied, weight, bias).to(x.dtype)
    return y, mean, sigma, w, basis, eigenvalues


@group_whitening.register_fake
def _empty(x, weight, bias, num_groups, iterations, eps, method, rescaled):
    n, g = x.shape[0], num_groups
    decomposition = ((n, g, g), (n, g)) if method == "zca" else (0, 0)
    shapes = (n, g, 1), (n, g, g), (n, g, g), *decomposition
    return result_like(x), *(x.new_empty(s, dtype=full_precision(x.dtype)) for s in shapes)


@torch.library.custom_op(
    "gw_detectron::group_whitening_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor sigma, Tensor w, "
    f"Tensor basis, Tensor eigenvalues, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def group_whitening_backward(
    dy, x, weight, mean, sigma, w, basis, eigenvalues, num_groups, iterations, eps, method, rescaled
):
    """
    With dY = weight * dy the gradient of the whitened groups Y = W Xc,

        dW = dY Xc^T,   dx = W (dY - mean(dY)) + 2/m dSigma Xc,

    where dSigma, symmetric, is what the gradient of Sigma^(-1/2) makes of dW.

    Returns:
        (dx, dweight, dbias): in x's type and, both of shape (C,), in that of the statistics.
    """
    if x.numel() == 0:
        zero = x.new_zeros(x.shape[1], dtype=full_precision(x.dtype))
        return result_like(x), zero, zero.clone()
    backend = backend_for(x, num_groups)
    with _without_autocast(x):
        data, offset = backend.without_offset(backend.data_of(x), mean, sigma)
        dy = backend.data_of(dy)
        applied, scale = rescale(sigma, w) if rescaled else (w, None)
        dw, mean_dy, dweight, dbias = backend.reduce(dy, data, offset, applied, weight)
        direct = 0
        if rescaled:
            direct, dw = rescale_backward(sigma, applied, scale, dw)
        if method == "itn":
            dsigma = backend.newton_backward(sigma, w, dw, iterations) + direct
        else:
            dsigma = zca_backward(basis, eigenvalues, dw) + direct
        dx = backend.input_gradient(dy, data, offset, mean_dy, applied, dsigma, weight)
    return dx.to(x.dtype), dweight, dbias


@group_whitening_backward.register_fake
def _(dy, x, *_):
    channels = x.new_empty(x.shape[1], dtype=full_precision(x.dtype))
    return result_like(x), channels, torch.empty_like(channels)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _save(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.options = inputs
    _, *matrices = output
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.set_materialize_grads(False)  # nothing is asked of the matrices
    ctx.save_for_backward(x, weight, *matrices)


def _backward(ctx, dy, *_):
    if dy is None:
        return (None,) * (3 + len(ctx.options))
    x, weight, *matrices = ctx.saved_tensors
    dx, dweight, dbias = group_whitening_backward(dy, x, weight, *matrices, *ctx.options)
    dweight = None if weight is None else dweight.to(weight.dtype)
    dbias = None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)
    return dx, dweight, dbias, *[None] * len(ctx.options)


group_whitening.register_autograd(_backward, setup_context=_save)
