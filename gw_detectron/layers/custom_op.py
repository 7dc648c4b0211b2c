"""
Group Whitening forward and backward, and how PyTorch is told of them.

Eager code gets an autograd function, whose calls cost least. torch.compile gets an operator,
torch.ops.gw_detectron.group_whitening, which is one node to it: neither a break in the graph nor
passes to be taken apart. Both run the same two functions. A backend (backend.py) makes the passes
over the data; what comes between them is a matter of g x g matrices (whitening_matrix.py).
Arguments are taken to be valid: group_whitening.py checks them.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import passes, plain
from .backend import by_backend
from .passes import full_precision, result_like
from .precision import full_float32, tf32_is_allowed
from .whitening_matrix import rescale, rescale_backward, zca, zca_backward


def group_whitening(x, weight, bias, num_groups, iterations, eps, method, rescaled) -> Tensor:
    """See :func:`gw_detectron.layers.group_whitening`."""
    options = num_groups, iterations, eps, method, rescaled
    if torch._C._are_functorch_transforms_active():  # torch.func differentiates what it sees
        return plain.group_whitening(x, weight, bias, *options)
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return torch.ops.gw_detectron.group_whitening(x, weight, bias, *options)[0]
    return _GroupWhitening.apply(x, weight, bias, options)


class _GroupWhitening(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, options):
        y, *matrices = forward(x, weight, bias, *options)
        _save(ctx, x, weight, bias, options, matrices)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return *_gradients(ctx, dy, backward), None


def _save(ctx, x, weight, bias, options, matrices) -> None:
    ctx.options = options
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, *matrices)


def _gradients(ctx, dy, backward):
    """Of x, weight and bias."""
    x, weight, *matrices = ctx.saved_tensors
    dx, dweight, dbias = backward(dy, x, weight, matrices, *ctx.options)
    dweight = None if weight is None else dweight.to(weight.dtype)
    dbias = None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)
    return dx, dweight, dbias


def forward(x, weight, bias, num_groups, iterations, eps, method, rescaled):
    """
    Returns:
        (y, mean, sigma, w): y, and what the backward takes: mean is (N, g, 1), the matrices are
        (N, g, g). For method "zca" also (..., basis, eigenvalues), (N, g, g) and (N, g).
    """
    if x.numel() == 0:
        return _empty(x, weight, bias, num_groups, iterations, eps, method, rescaled)
    options = iterations, eps, method, rescaled
    return by_backend(_forward, x, num_groups, weight, bias, *options)


def _forward(backend, x, num_groups, weight, bias, iterations, eps, method, rescaled):
    if _comes_whole(backend, iterations, method, rescaled):
        return backend.forward(x, num_groups, weight, bias, iterations, eps)
    with _without_autocast(x):
        mean, sigma, data, offset = backend.moments(x, num_groups, eps)
        with _without_tf32(x):
            if method == "itn":
                matrices = (backend.newton(sigma, iterations),)
            else:
                matrices = zca(sigma, eps)
            w = rescale(sigma, matrices[0])[0] if rescaled else matrices[0]
        y = backend.whiten(data, offset, w, weight, bias).to(x.dtype)
    return y, mean, sigma, *matrices


def backward(dy, x, weight, matrices, num_groups, iterations, eps, method, rescaled):
    """
    With dY = weight * dy the gradient of the whitened groups Y = W Xc,

        dW = dY Xc^T,   dx = W (dY - mean(dY)) + 2/m dSigma Xc,

    where dSigma, symmetric, is what the gradient of Sigma^(-1/2) makes of dW.

    Args:
        matrices: what forward returned behind y.

    Returns:
        (dx, dweight, dbias): in x's type and, both of shape (C,), in that of the statistics.
    """
    if x.numel() == 0:
        zero = x.new_zeros(x.shape[1], dtype=full_precision(x.dtype))
        return result_like(x), zero, zero.clone()
    options = iterations, method, rescaled
    return by_backend(_backward, x, num_groups, dy, weight, matrices, *options)


def _backward(backend, x, num_groups, dy, weight, matrices, iterations, method, rescaled):
    mean, sigma, w, *decomposition = matrices
    if _comes_whole(backend, iterations, method, rescaled):
        return backend.backward(dy, x, weight, mean, sigma, w, iterations)
    with _without_autocast(x):
        data, offset = backend.without_offset(x, mean, sigma)
        dy = dy.to(data.dtype)
        with _without_tf32(x):
            applied, scale = rescale(sigma, w) if rescaled else (w, None)
        dw, mean_dy, dweight, dbias = backend.reduce(dy, data, offset, applied, weight)
        with _without_tf32(x):
            if rescaled:
                direct, dw = rescale_backward(sigma, applied, scale, dw)
            if method == "itn":
                dsigma = backend.newton_backward(sigma, w, dw, iterations)
            else:
                dsigma = zca_backward(*decomposition, dw)
            if rescaled:
                dsigma = dsigma + direct
        dx = backend.input_gradient(dy, data, offset, mean_dy, applied, dsigma, weight)
    return dx.to(x.dtype), dweight, dbias


def _comes_whole(backend, iterations: int, method: str, rescaled: bool) -> bool:
    """
    Whether the backend makes all passes, and what comes between them, in fewer steps: by kernels
    of its own, which autocast does not change.
    """
    return (
        backend is not passes
        and method == "itn"
        and not rescaled
        and iterations <= backend.MOST_STEPS
    )


def _without_autocast(x: Tensor) -> AbstractContextManager:
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _without_tf32(x: Tensor) -> AbstractContextManager:
    """Products of g x g matrices are not rounded to TF32, which the iteration would amplify."""
    return full_float32() if x.is_cuda and tf32_is_allowed() else nullcontext()


_OPTIONS = "int num_groups, int iterations, float eps, str method, bool rescaled"
_operator = torch.library.custom_op(
    "gw_detectron::group_whitening",
    forward,
    mutates_args=(),
    schema=f"(Tensor x, Tensor? weight, Tensor? bias, {_OPTIONS}) -> Tensor[]",
)
_operator_backward = torch.library.custom_op(
    "gw_detectron::group_whitening_backward",
    backward,
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor? weight, Tensor[] matrices, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor)",
)


@_operator.register_fake
def _empty(x, weight, bias, num_groups, iterations, eps, method, rescaled):
    n, g = x.shape[0], num_groups
    decomposition = ((n, g, g), (n, g)) if method == "zca" else ()
    shapes = (n, g, 1), (n, g, g), (n, g, g), *decomposition
    return [result_like(x), *(x.new_empty(s, dtype=full_precision(x.dtype)) for s in shapes)]


@_operator_backward.register_fake
def _(dy, x, *_):
    channels = x.new_empty(x.shape[1], dtype=full_precision(x.dtype))
    return result_like(x), channels, torch.empty_like(channels)


_operator.register_autograd(
    lambda ctx, dys: (*_gradients(ctx, dys[0], _operator_backward), *[None] * len(ctx.options)),
    setup_context=lambda ctx, inputs, output: _save(ctx, *inputs[:3], inputs[3:], output[1:]),
)
