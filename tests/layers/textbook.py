"""The paper's definition of Group Whitening, word for word, in plain autograd."""

import torch


def group_whitening(
    x, num_groups, weight=None, bias=None, iterations=5, eps=1e-5, method="itn", rescale=False
):
    num_samples, num_channels = x.shape[:2]
    g = min(num_groups, num_channels)
    groups = x.reshape(num_samples, g, -1)
    centred = groups - groups.mean(dim=2, keepdim=True)
    m = centred.shape[2]
    sigma = centred @ centred.mT / m + eps * torch.eye(g, dtype=x.dtype, device=x.device)
    w = inverse_sqrt(sigma, iterations) if method == "itn" else exact_inverse_sqrt(sigma)
    if rescale:
        w = w * (g / trace(w @ sigma @ w)).sqrt()
    y = (w @ centred).reshape(x.shape)
    per_channel = (1, num_channels) + (1,) * (x.dim() - 2)
    y = y if weight is None else y * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def inverse_sqrt(sigma, iterations):
    p = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
    for _ in range(iterations):
        p = (3 * p - p @ p @ p @ (sigma / trace(sigma))) / 2
    return p / trace(sigma).sqrt()


def exact_inverse_sqrt(sigma):
    eigenvalues, basis = torch.linalg.eigh(sigma)
    return basis @ torch.diag_embed(eigenvalues**-0.5) @ basis.mT


def trace(matrices):
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
