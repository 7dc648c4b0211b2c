"""
The passes of Group Whitening over the data, in PyTorch: what touches anything of the input's size.

The g x g mathematics between them is in whitening_matrix.py, and what they compute is derived in
docs/derivation.md. Memory traffic and fresh memory cost more than arithmetic, so nothing of the
input's size is made but the results: the mean and the affine go into the g x g matrices. x, with
c = C/g channels a group and S positions, is seen as c matrices X_k of shape (N, g, S), one for each
place k of a channel within its group, which views of it are, whatever its strides.
"""

import torch
from torch import Tensor


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """
    Args:
        x: (N, C, *spatial), not empty.

    Returns:
        (mean, covariance): of each sample's groups, (N, g, 1) and (N, g, g), in float32 or float64.
    """
    groups = _groups(x, num_groups)
    mean = groups.mean((2, 3)).unsqueeze(-1)
    # Contiguous groups need no taking apart.
    parts = [groups.flatten(2)] if groups.is_contiguous() else groups.unbind(2)
    covariance = mean @ mean.mT
    share = 1 / groups[0, 0].numel()
    for k, part in enumerate(parts):
        covariance.baddbmm_(part, part.mT, beta=1.0 if k else -1.0, alpha=share)
    return mean, covariance


def offset_dominates(mean: Tensor, covariance: Tensor) -> bool:
    """
    Whether so much of a group's second moment is its mean that subtracting the mean's part from
    products, rather than the mean from x, would cost accuracy.
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return bool((mean.square() > 16 * variance).any())


def centred(x: Tensor, mean: Tensor) -> Tensor:
    """A copy of x with each group's mean subtracted, in the mean's type."""
    groups = _groups(x, mean.shape[1])
    return (groups - mean.unsqueeze(-1)).view(x.shape)


def whiten(
    x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """
    weight * W (X - mean) + bias.

    Args:
        mean, w: (N, g, 1) and (N, g, g).
        weight, bias: (C,), or None for 1 and 0.

    Returns:
        Tensor: of x's shape, type and memory format; never a view, since ReLU may follow in place.
    """
    g = w.shape[-1]
    y = _result(x, w.dtype)
    weights, biases = _by_place(weight, g), _by_place(bias, g)
    for k, (x_k, y_k) in enumerate(zip(_matrices(x, g), _matrices(y, g), strict=True)):
        matrix = w if weight is None else weights[k] * w
        shift = -(matrix @ mean) if bias is None else biases[k] - matrix @ mean
        torch.baddbmm(shift, matrix, x_k, out=y_k)
    return y.to(x.dtype)


def reduce(
    dy: Tensor, x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    All that the backward needs to sum over positions, of dy and of the products dy X^T.

    Returns:
        (dW, mean of dY, dweight, dbias): (N, g, g), (N, g, 1), (C,), (C,).
    """
    g = w.shape[-1]
    sums = _groups(dy, g).sum(-1, keepdim=True)  # (N, g, c, 1)
    grad_w, grad_weight = torch.zeros_like(w), w.new_empty(sums.shape[2], g)
    weights = _by_place(weight, g)
    for k, (dy_k, x_k) in enumerate(zip(_matrices(dy, g), _matrices(x, g), strict=True)):
        product = torch.baddbmm(sums[:, :, k] @ mean.mT, dy_k, x_k.mT, beta=-1)  # dy_k Xc_k^T
        grad_weight[k] = (product * w).sum((0, 2))
        grad_w += product if weight is None else weights[k] * product
    weighted = sums if weight is None else sums * weights.movedim(0, 1)
    mean_dy = weighted.sum(2) * (g / dy[0].numel())
    return grad_w, mean_dy, grad_weight.mT.reshape(-1), sums.sum(0).reshape(-1)


def input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    mean_dy: Tensor,
    w: Tensor,
    grad_sigma: Tensor,
    weight: Tensor | None,
) -> Tensor:
    """
    W (dY - mean(dY)) + 2/m dSigma (X - mean), dY = weight * dy.

    Args:
        grad_sigma: (N, g, g), symmetric.

    Returns:
        Tensor: of x's shape, type and memory format.
    """
    g = w.shape[-1]
    through_sigma = grad_sigma * (2 * g / x[0].numel())
    shift = -(w @ mean_dy) - through_sigma @ mean
    dx = _result(x, w.dtype)
    weights = _by_place(weight, g)
    places = zip(_matrices(dx, g), _matrices(dy, g), _matrices(x, g), strict=True)
    for k, (dx_k, dy_k, x_k) in enumerate(places):
        matrix = w if weight is None else w * weights[k].mT
        torch.baddbmm(shift, matrix, dy_k, out=dx_k)
        dx_k.baddbmm_(through_sigma, x_k)
    return dx.to(x.dtype)


def _result(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor of x's shape, channels_last where x is and contiguous otherwise."""
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        memory_format = torch.contiguous_format
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format)


def _groups(x: Tensor, num_groups: int) -> Tensor:
    """x as (N, g, c, S), a view where its type and strides allow."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.unflatten(1, (num_groups, -1)).unsqueeze(-1).flatten(3)


def _matrices(x: Tensor, num_groups: int) -> tuple[Tensor, ...]:
    """The c matrices X_k, each (N, g, S)."""
    return _groups(x, num_groups).unbind(2)


def _by_place(parameter: Tensor | None, num_groups: int) -> Tensor | None:
    """A weight or bias (C,) as (c, g, 1): what belongs to X_0, X_1, ..."""
    if parameter is None:
        return None
    parameter = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
    return parameter.view(num_groups, -1).mT.unsqueeze(-1)
