"""Group Whitening in plain autograd, as the authors' module computes it: the baseline."""

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..layers import GroupWhitening

__all__ = ["TextbookGroupWhitening", "use_textbook"]


class TextbookGroupWhitening(nn.Module):
    """
    Formula by formula, in the type of x: centre, covariance, T steps of three products each, apply,
    affine. Autograd keeps every result on the way.

    Args:
        layer: whose options, weight and bias it takes; the parameters are shared.

    Raises:
        UsageError: the layer is not the paper's Newton iteration.
    """

    def __init__(self, layer: GroupWhitening) -> None:
        super().__init__()
        if layer.method != "itn" or layer.rescale:
            raise UsageError(
                "the textbook code has Newton's iteration without rescaling, the config "
                f"GroupWhitening({layer.extra_repr()}): leave the textbook out"
            )
        self.num_groups, self.iterations, self.eps = layer.num_groups, layer.iterations, layer.eps
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], self.num_groups, -1)
        centred = groups - groups.mean(dim=2, keepdim=True)
        eye = torch.eye(self.num_groups, dtype=x.dtype, device=x.device)
        sigma = torch.baddbmm(
            eye, centred, centred.mT, beta=self.eps, alpha=1 / max(1, groups.shape[2])
        )
        trace = sigma.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        normalised = sigma / trace
        p = eye.expand_as(sigma)
        for _ in range(self.iterations):
            p = torch.baddbmm(p, p @ p @ p, normalised, beta=1.5, alpha=-0.5)
        y = ((p / trace.sqrt()) @ centred).reshape(x.shape)
        if self.weight is None:
            return y
        per_channel = (-1,) + (1,) * (x.dim() - 2)
        return y * self.weight.view(per_channel) + self.bias.view(per_channel)


def use_textbook(model: nn.Module) -> None:
    """Replaces every GroupWhitening in the model, in place; the parameters stay the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GroupWhitening):
                setattr(parent, name, TextbookGroupWhitening(child))
