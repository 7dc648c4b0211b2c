"""The paper's definition of Group Whitening, word for word, in plain autograd."""

import torch


def group_whitening(
    x, num_groups, weight=None, bias=None, iterations=5, eps=1e-5, method="itn", rescale=False
):
    num_samples, num_channels = x.shape[:2]
    g = min(num_groups, num_channels)
    whitened = []
    for sample in x:
        groups = sample.reshape(g, -1)
        centred = groups - groups.mean(dim=1, keepdim=True)
        m = centred.shape[1]
        sigma = centred @ centred.T / m + eps * torch.eye(g, dtype=x.dtype)
        w = inverse_sqrt(sigma, iterations) if method == "itn" else exact_inverse_sqrt(sigma)
        if rescale:
            w = w * (g / (w @ sigma @ w).trace()).sqrt()
        whitened.append((w @ centred).reshape(sample.shape))
    y = torch.stack(whitened)
    per_channel = (1, num_channels) + (1,) * (x.dim() - 2)
    y = y if weight is None else y * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def inverse_sqrt(sigma, iterations):
    trace = sigma.trace()
    p = torch.eye(len(sigma), dtype=sigma.dtype)
    for _ in range(iterations):
        p = (3 * p - p @ p @ p @ (sigma / trace)) / 2
    return p / trace.sqrt()


def exact_inverse_sqrt(sigma):
    eigenvalues, basis = torch.linalg.eigh(sigma)
    return basis @ torch.diag(eigenvalues**-0.5) @ basis.T
