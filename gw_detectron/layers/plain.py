"""
Group Whitening in PyTorch's own operators and nothing else: what is exported.

TorchScript, ONNX and torch.export keep a model's operators and leave its Python behind, so that
there the layer must not be an operator of this package. Here autograd differentiates it, which
keeps several tensors of x's size.
"""

import torch
from torch import Tensor

from .whitening_matrix import newton, rescale, zca


def group_whitening(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    iterations: int,
    eps: float,
    method: str,
    rescaled: bool,
) -> Tensor:
    """See :func:`gw_detectron.layers.group_whitening`."""
    data = x if x.dtype == torch.float64 else x.to(torch.float32)
    groups = data.unflatten(1, [num_groups, -1]).flatten(2)
    groups = groups - groups.mean(2, keepdim=True)
    eye = torch.eye(num_groups, dtype=data.dtype, device=data.device)
    # Not groups.mT, which ONNX lacks, nor groups.shape[2], which its exporter takes for a constant
    m = x.flatten(1).shape[1] / num_groups
    sigma = torch.bmm(groups, groups.transpose(1, 2)) / m + eps * eye
    w = newton(sigma, iterations) if method == "itn" else zca(sigma, eps)[0]
    if rescaled:
        w = rescale(sigma, w)[0]
    y = torch.bmm(w, groups).view_as(x)
    channels = [-1] + [1] * (x.dim() - 2)
    if weight is not None:
        y = y * weight.to(y.dtype).view(channels)
    if bias is not None:
        y = y + bias.to(y.dtype).view(channels)
    return y.to(x.dtype)
