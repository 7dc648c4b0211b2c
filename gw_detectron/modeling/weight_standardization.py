"""
Weight standardisation: "+WS" after a norm's name, e.g. "GN+WS".

Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization,
arXiv:1903.10520, equations 5 to 8. Each filter of the convolution before the norm has mean 0 and
variance 1 in every forward pass; what is trained, saved and loaded is the filter as it was before.
"""

from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import UsageError

SUFFIX = "+WS"
_EPS = 1e-10  # beside the variance of a filter, which is 1e-4 and more after initialisation


class StandardizedConv2d(Conv2d):
    """Detectron2's Conv2d, convolving with standardised filters."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H', W')."""
        x = self._conv_forward(x, standardize(self.weight), self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def standardize(weight: Tensor) -> Tensor:
    """Filters, (out_channels, ...), each minus its mean and divided by its standard deviation."""
    return F.layer_norm(weight, weight.shape[1:], eps=_EPS)


def with_weight_standardization(norm: nn.Module) -> nn.Module:
    """Marks a norm, in place, so that the Conv2d that gets it becomes a StandardizedConv2d."""
    norm.standardizes_weight = True
    return norm


def replace_norm(conv: nn.Module, norm: nn.Module) -> None:
    """Makes norm the norm of a convolution, which standardises its filters if it is marked."""
    if isinstance(conv, StandardizedConv2d):
        conv.__class__ = Conv2d
    conv.norm = norm


def _standardize_owner(module: nn.Module, name: str, norm: nn.Module | None) -> None:
    """
    PyTorch calls this for each module that becomes a part of another. Most of Detectron2 passes a
    norm to the Conv2d before it. Elsewhere nobody knows which convolution comes before the norm.
    """
    if not getattr(norm, "standardizes_weight", False):
        return
    if not isinstance(module, Conv2d):
        raise UsageError(
            f'a norm with "{SUFFIX}" in {type(module).__name__}: there Detectron2 builds the norm '
            f"apart from the convolution before it; use one without {SUFFIX}"
        )
    if type(module) is Conv2d:
        module.__class__ = StandardizedConv2d


register_module_module_registration_hook(_standardize_owner)
