"""
Group Whitening: each sample's groups of channels are centred and decorrelated from each other.

Lei Huang, Yi Zhou, Li Liu, Fan Zhu, Ling Shao: Group Whitening: Balancing Learning Efficiency and
Representational Capacity. CVPR 2021, arXiv:2009.13333.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import passes
from .whitening_matrix import whitening_matrix, whitening_matrix_backward

METHODS = ("itn", "zca")


class GroupWhitening(nn.GroupNorm):
    """
    Group Whitening (GW) over inputs of shape (N, C, *spatial), with a per-channel affine.

    Every sample is whitened on its own: no batch statistics, no running averages, the same in
    training and inference. Computes :func:`group_whitening`. It is a GroupNorm to whoever looks for
    norms by their class, as optimizers do to spare them weight decay.

    Args:
        num_channels: C.
        num_groups: g, the number of groups that are decorrelated from each other. It must divide
            num_channels; where num_channels < num_groups, every channel is a group.
        iterations: T, the steps of Newton's iteration. Used by method "itn" only.
        eps: added to the covariance's diagonal.
        method: "itn" (Newton's iteration, the paper's default) or "zca" (eigendecomposition).
        affine: if True, has learnable weight (initially 1) and bias (initially 0) of shape (C,).
        rescale: if True, the output is brought to unit mean variance by one number a sample. Not
            in the paper.

    Raises:
        ValueError: on a value that isn't allowed; here, or at the call for a wrong channel count.
    """

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 64,
        iterations: int = 5,
        eps: float = 1e-5,
        method: str = "itn",
        affine: bool = True,
        rescale: bool = False,
    ) -> None:
        _check_options(num_channels, num_groups, iterations, eps, method)
        super().__init__(min(num_groups, num_channels), num_channels, eps, affine)
        self.iterations = iterations
        self.method = method
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"GroupWhitening(num_channels={self.num_channels}) takes an input of shape "
                f"(N, {self.num_channels}, *), not {tuple(x.shape)}"
            )
        return _GroupWhitening.apply(
            x,
            self.weight,
            self.bias,
            self.num_groups,
            self.iterations,
            self.eps,
            self.method,
            self.rescale,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, num_groups={self.num_groups}, iterations={self.iterations}, "
            f"eps={self.eps}, method={self.method}, affine={self.affine}, "
            f"rescale={self.rescale}"
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # The authors' checkpoints hold weight and bias of shape (1, C, 1, 1).
        for name in ("weight", "bias"):
            value = state_dict.get(prefix + name)
            if value is not None and value.shape == (1, self.num_channels, 1, 1):
                state_dict[prefix + name] = value.flatten()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def group_whitening(
    x: Tensor,
    num_groups: int = 64,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    iterations: int = 5,
    eps: float = 1e-5,
    method: str = "itn",
    rescale: bool = False,
) -> Tensor:
    """
    Whitens each sample's g = min(num_groups, C) groups of contiguous channels (section 3.1):

        X = x as (N, g, m), m = C/g * prod(spatial);   Xc = X - mean(X);
        Sigma = Xc Xc^T / m + eps I;   y = weight * (Sigma^(-1/2) Xc as x's shape) + bias.

    Statistics and the inverse square root are computed in float32 (float64 for a float64 x),
    whatever the type of x and under autocast.

    Args:
        x: (N, C, *spatial), any number of spatial dimensions, (N, C) included; N may be 0.
        weight, bias: (C,), or None for 1 and 0.
        num_groups, iterations, eps, method, rescale: see :class:`GroupWhitening`.

    Returns:
        Tensor: of x's shape, type and memory format. Differentiable once with respect to x, weight
        and bias.

    Raises:
        ValueError: on a shape or an option that isn't allowed.
    """
    if x.dim() < 2:
        raise ValueError(
            f"group_whitening takes an input of shape (N, C, *spatial), not {tuple(x.shape)}"
        )
    num_channels = x.shape[1]
    _check_options(num_channels, num_groups, iterations, eps, method)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != (num_channels,):
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)}; an input of shape {tuple(x.shape)} "
                f"takes ({num_channels},)"
            )
    num_groups = min(num_groups, num_channels)
    return _GroupWhitening.apply(x, weight, bias, num_groups, iterations, eps, method, rescale)


def _check_options(
    num_channels: int, num_groups: int, iterations: int, eps: float, method: str
) -> None:
    for name, value, least in (
        ("num_channels", num_channels, 1),
        ("num_groups", num_groups, 1),
        ("iterations", iterations, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if not (isinstance(eps, (int, float)) and 0 <= eps < math.inf):
        raise ValueError(f"eps must be a finite number of at least 0, not {eps!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if num_channels > num_groups and num_channels % num_groups:
        divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
        below = max(d for d in divisors if d < num_groups)
        above = min(d for d in divisors if d > num_groups)
        raise ValueError(
            f"num_groups={num_groups} does not divide num_channels={num_channels}; "
            f"the nearest that do are {below} and {above}"
        )


class _GroupWhitening(torch.autograd.Function):
    """
    Keeps for the backward x, its means and g x g matrices; nothing else of x's size.

    With dY = weight * dy the gradient of the whitened groups Y = W Xc,

        dW = dY Xc^T,   dx = W (dY - mean(dY)) + 2/m dSigma Xc,

    where dSigma, symmetric, is what the gradient of Sigma^(-1/2) makes of dW.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, num_groups, iterations, eps, method, rescaled):
        ctx.options = iterations, method, rescaled
        if x.numel() == 0:
            ctx.save_for_backward(x, weight, bias)
            return torch.empty_like(x)
        with _without_autocast(x):
            data = _in_full_precision(x)
            mean, sigma = passes.moments(data, num_groups)
            ctx.centre = passes.offset_dominates(mean, sigma)
            data, offset = _without_offset(data, mean, ctx.centre)
            if ctx.centre:
                _, sigma = passes.moments(data, num_groups)
            sigma.diagonal(dim1=-2, dim2=-1).add_(eps)
            w, *saved = whitening_matrix(sigma, iterations, eps, method, rescaled)
            ctx.save_for_backward(x, weight, bias, mean, sigma, w, *saved)
            return passes.whiten(data, offset, w, weight, bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, *matrices = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        if x.numel() == 0:
            dx, dweight, dbias = (
                None if t is None else torch.zeros_like(t) for t in (x, weight, bias)
            )
        else:
            with _without_autocast(x):
                mean, sigma, w, *saved = matrices
                data, offset = _without_offset(_in_full_precision(x), mean, ctx.centre)
                dy = _in_full_precision(dy)
                dw, mean_dy, dweight, dbias = passes.reduce(dy, data, offset, w, weight)
                dx = None
                if need_x:
                    dsigma = whitening_matrix_backward(sigma, w, dw, *saved, *ctx.options)
                    dx = passes.input_gradient(dy, data, offset, mean_dy, w, dsigma, weight)
                    dx = dx.to(x.dtype)
                dweight = dweight.to(weight.dtype) if need_weight else None
                dbias = dbias.to(bias.dtype) if need_bias else None
        return dx, dweight, dbias, *[None] * 5


def _in_full_precision(x: Tensor) -> Tensor:
    """x in the type of the statistics: float64 as it is, everything else as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_offset(data: Tensor, mean: Tensor, centre: bool) -> tuple[Tensor, Tensor]:
    """(data, what is still to be subtracted from it): a centred copy and 0 if `centre`."""
    if centre:
        return passes.centred(data, mean), torch.zeros_like(mean)
    return data, mean


def _without_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(device_type=x.device.type, enabled=False)
