"""
The passes of Group Whitening over the data, in PyTorch: what touches anything of the input's size.

The g x g mathematics between them is in whitening_matrix.py; newton here is how that is cut to a
CPU's cache. What the passes compute is derived in docs/derivation.md. Memory traffic and fresh
memory cost more than arithmetic, so nothing of the input's size is made but the results: the mean
is taken from products, not from x. With c = C/g channels a group and S positions, x is seen as one
matrix of shape (N, g, c S) where it is contiguous, and where it isn't or channels must be kept
apart as c matrices X_k of shape (N, g, S), one for each place k of a channel within its group; both
are views.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import whitening_matrix


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """The type of the statistics: float64 for float64, float32 for everything else."""
    return torch.promote_types(dtype, torch.float32)


def moments(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Args:
        x: (N, C, *spatial), not empty.

    Returns:
        (mean, Sigma, data, offset): the mean of each sample's groups, (N, g, 1), and their
        covariance with eps added to its diagonal, (N, g, g), in float32 or float64; and what
        :func:`without_offset` returns.
    """
    if _centres_always(x):
        mean = _mean(x, num_groups)
        data, offset = without_offset(x, mean, None)
        sigma = _covariance(data, offset)
    else:
        x = x.to(full_precision(x.dtype))
        mean = _mean(x, num_groups)
        sigma = _covariance(x, mean)
        data, offset = without_offset(x, mean, sigma)
        if data is not x:
            sigma = _covariance(data, _mean(data, num_groups))
    sigma.diagonal(dim1=-2, dim2=-1).add_(eps)
    return mean, sigma, data, offset


def _mean(x: Tensor, num_groups: int) -> Tensor:
    groups, dtype = _groups(x, num_groups), full_precision(x.dtype)
    if groups.is_contiguous():
        return groups.flatten(2).mean(2, keepdim=True, dtype=dtype)
    return groups.mean((2, 3), dtype=dtype).unsqueeze(2)


def _covariance(x: Tensor, mean: Tensor) -> Tensor:
    g = mean.shape[1]
    groups = _groups(x, g)
    # contiguous groups need no taking apart
    parts = (groups.flatten(2),) if groups.is_contiguous() else groups.unbind(2)
    covariance = torch.bmm(mean, mean.mT)
    share = g / x[0].numel()
    for k, part in enumerate(parts):
        covariance.baddbmm_(part, part.mT, beta=1.0 if k else -1.0, alpha=share)
    return covariance


def without_offset(x: Tensor, mean: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    """
    (x, mean) in the mean's type, which the passes that follow take for x - mean. Where the means of
    some samples are so large against their deviations that this would cost accuracy, (a copy of x
    with those samples centred, the mean with 0 for them): what becomes of a sample does not depend
    on the others.

    On a GPU every sample is centred, as it is converted, and sigma may be None.
    """
    if _centres_always(x):
        taken = mean
    else:
        x = x.to(mean.dtype)
        variance = sigma.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        dominates = mean.square() > 16 * variance
        if not dominates.any():
            return x, mean
        taken = torch.where(dominates.any(1, keepdim=True), mean, 0)
    return (_groups(x, mean.shape[1]) - taken.unsqueeze(-1)).view(x.shape), mean - taken


def _centres_always(x: Tensor) -> bool:
    """On a GPU: to ask whether it is needed would be to wait for the GPU."""
    return x.is_cuda


def whiten(
    x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """
    weight * W (X - mean) + bias.

    Args:
        x, mean: see :func:`without_offset`; (N, C, *spatial) and (N, g, 1).
        w: (N, g, g).
        weight, bias: (C,), or None for 1 and 0.

    Returns:
        Tensor: of x's shape and memory format; never a view, since ReLU may follow in place.
    """
    g = w.shape[-1]
    y = result_like(x)
    groups, whitened = _groups(x, g), _groups(y, g)
    shift = -_times_vector(w, mean).unsqueeze(-1)
    if weight is not None:
        weight = _by_group(weight, w)
        shift = shift * weight
    if bias is not None:
        shift = shift + _by_group(bias, w)
    if _is_small(groups):
        torch.bmm(w, groups.flatten(2), out=whitened.flatten(2))
        if weight is None:
            whitened += shift
        else:
            torch.addcmul(shift, weight, whitened, out=whitened)
    else:
        shift = shift.expand(*groups.shape[:3], 1)
        for k, (x_k, y_k) in enumerate(zip(groups.unbind(2), whitened.unbind(2), strict=True)):
            matrix = w if weight is None else weight[:, k] * w
            torch.baddbmm(shift[:, :, k], matrix, x_k, out=y_k)
    return y


def reduce(
    dy: Tensor, x: Tensor, mean: Tensor, w: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    All that the backward needs to sum over positions, of dy and of the products dy X^T.

    Returns:
        (dW, mean of dY, dweight, dbias): (N, g, g), (N, g, 1), (C,), (C,).
    """
    g = w.shape[-1]
    groups = _groups(dy, g)
    sums = groups.sum(-1, keepdim=True)  # (N, g, c, 1)
    grad_w, grad_weight = torch.zeros_like(w), w.new_empty(g, sums.shape[2])
    weight = None if weight is None else _by_group(weight, w)  # (g, c, 1)
    product = torch.empty_like(w)  # dy_k Xc_k^T
    for k, (dy_k, x_k) in enumerate(zip(groups.unbind(2), _matrices(x, g), strict=True)):
        torch.bmm(dy_k, x_k.mT, out=product)
        product.baddbmm_(sums[:, :, k], mean.mT, alpha=-1)
        if weight is None:
            grad_w += product
        else:
            grad_w.addcmul_(weight[:, k], product)
        grad_weight[:, k] = product.mul_(w).sum((0, 2))
    weighted = sums if weight is None else sums * weight
    mean_dy = weighted.sum(2) * (g / dy[0].numel())
    return grad_w, mean_dy, grad_weight.flatten(), sums.sum(0).flatten()


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
        Tensor: of x's shape and memory format.
    """
    g = w.shape[-1]
    through_sigma = grad_sigma * (2 * g / x[0].numel())
    shift = -_times_vector(w, mean_dy) - _times_vector(through_sigma, mean)
    dx = result_like(x)
    weight = None if weight is None else _by_group(weight, w)
    tensors = _groups(dx, g), _groups(dy, g), _groups(x, g)
    if all(map(_is_small, tensors)):
        for dx_n, dy_n, x_n, w_n, through_n, shift_n in _split(*tensors, w, through_sigma, shift):
            weighted = dy_n if weight is None else dy_n * weight
            dx_n = dx_n.flatten(2)
            torch.baddbmm(shift_n, w_n, weighted.flatten(2), out=dx_n)
            dx_n.baddbmm_(through_n, x_n.flatten(2))
    else:
        for k, (dx_k, dy_k, x_k) in enumerate(zip(*(t.unbind(2) for t in tensors), strict=True)):
            matrix = w if weight is None else w * weight[:, k].mT
            torch.baddbmm(shift, matrix, dy_k, out=dx_k)
            dx_k.baddbmm_(through_sigma, x_k)
    return dx


def newton(sigma: Tensor, iterations: int) -> Tensor:
    """See :func:`whitening_matrix.newton`."""
    return _join([whitening_matrix.newton(*part, iterations) for part in _split(sigma)])


def newton_backward(sigma: Tensor, w: Tensor, grad_w: Tensor, iterations: int) -> Tensor:
    """See :func:`whitening_matrix.newton_backward`."""
    parts = _split(sigma, w, grad_w)
    return _join([whitening_matrix.newton_backward(*part, iterations) for part in parts])


def _split(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """
    On a CPU, so few samples at a time that what is computed from them stays in the cache and on the
    heap: fresh pages for many of them cost more than the arithmetic.
    """
    size = len(tensors[0])
    if tensors[0].device.type == "cpu":
        size = max(1, 2**17 // max(tensor[0].numel() for tensor in tensors))
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def result_like(x: Tensor) -> Tensor:
    """An empty tensor of x's shape and type, channels_last where x is and contiguous otherwise."""
    if x.is_contiguous():
        return torch.empty_like(x)
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        memory_format = torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _groups(x: Tensor, num_groups: int) -> Tensor:
    """x as (N, g, c, S), a view where its strides allow."""
    return x.unflatten(1, (num_groups, -1)).unsqueeze(-1).flatten(3)


def _is_small(groups: Tensor) -> bool:
    """
    Whether the c matrices X_k are too small to be worth a product each: then one product of the
    groups as a whole and a pass for the weights are quicker.
    """
    return groups.is_contiguous() and groups.shape[-1] < 256


def _matrices(x: Tensor, num_groups: int) -> tuple[Tensor, ...]:
    """The c matrices X_k, each (N, g, S)."""
    return _groups(x, num_groups).unbind(2)


def _times_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """
    matrix @ vector, (N, g, 1). Summed here, because BLAS has another routine for N = 1, and a
    sample is to come out alone as in a batch, to the bit.
    """
    return (matrix * vector.mT).sum(-1, keepdim=True)


def _by_group(parameter: Tensor, w: Tensor) -> Tensor:
    """A weight or bias (C,) as (g, c, 1), in w's type."""
    return parameter.to(w.dtype).view(w.shape[-1], -1, 1)
