"""
Group Whitening: each sample's groups of channels are centred and decorrelated from each other.

Lei Huang, Yi Zhou, Li Liu, Fan Zhu, Ling Shao: Group Whitening: Balancing Learning Efficiency and
Representational Capacity. CVPR 2021, arXiv:2009.13333.
"""

import math

import torch
from torch import Tensor, nn

from . import custom_op, plain

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
        return _whiten(
            x,
            self.num_channels,
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
        # The authors' are of shape (1, C, 1, 1), or of (1, C) where the input is (N, C)
        for name in ("weight", "bias"):
            value = state_dict.get(prefix + name)
            shape = value.shape if isinstance(value, Tensor) else ()
            if math.prod(shape) == max(shape, default=0) == self.num_channels:
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
    return _whiten(x, num_channels, weight, bias, num_groups, iterations, eps, method, rescale)


@torch.fx.wrap
def _whiten(
    x: Tensor,
    num_channels: int,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    iterations: int,
    eps: float,
    method: str,
    rescale: bool,
) -> Tensor:
    """The layer with its options checked: one node to FX, plain operators where it is exported."""
    if torch.jit.is_scripting():
        return plain.group_whitening(x, weight, bias, num_groups, iterations, eps, method, rescale)
    else:  # which TorchScript does not compile
        options = num_groups, iterations, eps, method, rescale
        if torch.jit.is_tracing() or _is_exporting():
            return plain.group_whitening(x, weight, bias, *options)
        if x.dim() < 2 or x.shape[1] != num_channels:
            raise ValueError(
                f"GroupWhitening(num_channels={num_channels}) takes an input of shape "
                f"(N, {num_channels}, *), not {tuple(x.shape)}"
            )
        return custom_op.group_whitening(x, weight, bias, *options)


def _is_exporting() -> bool:
    """
    torch.compiler.is_exporting(), which torch.compile takes to be true before PyTorch 2.12. It came
    with 2.7: before, torch.export keeps the operator.
    """
    return getattr(torch.compiler, "_is_exporting_flag", False)


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
