"""
What the norms of a model do to its features, measured on the features themselves.

All of it is read off the covariance between g groups of a sample's channels, the matrix that Group
Whitening makes the identity. It is taken before and after every norm with the same groups,
whatever the norm and its own groups, so that norms can be compared.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import GroupWhitening
from ..layers.whitening_matrix import newton, zca
from .probe import kind_of
from .theory import largest_divisor

# What spectrum_statistics tells
STATISTICS = ("condition", "effective_rank", "first_share", "variance", "distance")

# Of each sample
_COLUMNS = (
    "values a group",
    *(f"{statistic} {place}" for place in ("before", "after") for statistic in STATISTICS),
    "root error",
)
_SAMPLES_A_CALL = 32  # at most, evenly spread: a region head sees up to a thousand at once


def common_groups(models: Iterable[nn.Module]) -> int:
    """
    The number of groups by which to compare the norms of models: their GW layers' own, 16 where
    there is none. Of several numbers the least: what is white between many groups is white between
    unions of them, but not between parts.
    """
    layers = (module for model in models for module in model.modules())
    groups = (layer.num_groups for layer in layers if isinstance(layer, GroupWhitening))
    return min(groups, default=16)


def covariances(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """
    Args:
        x: (N, C, *spatial), on any device.

    Returns:
        (sigma, has_sense): the covariances between each sample's groups, (N, g, g) in float64 on
        the CPU; and which of them, (N,), are finite and more than rounding of a constant.
    """
    sigma = torch.empty(len(x), num_groups, num_groups, dtype=torch.float64)
    has_sense = torch.empty(len(x), dtype=torch.bool)
    for i, sample in enumerate(x):  # in float64 one alone fits where the features themselves fit
        groups = sample.reshape(num_groups, -1).double()
        mean = groups.mean(1, keepdim=True)
        groups = groups - mean
        sigma[i] = groups @ groups.T / groups.shape[1]
        variance = sigma[i].trace()
        has_sense[i] = variance.isfinite() and variance > _resolution(x) * mean.square().sum().cpu()
    return sigma, has_sense


def _resolution(x: Tensor) -> float:
    """What part of the largest variance x can tell from none."""
    return max(torch.finfo(x.dtype).eps ** 2, torch.finfo(torch.float64).eps)


def spectrum_statistics(sigma: Tensor, rank: int, resolution: float) -> Tensor:
    """
    What the eigenvalues l_1 >= ... >= l_g of covariances tell.

    Args:
        sigma: (N, g, g), float64, finite, not zero; without eps on the diagonal.
        rank: how many directions m values span, min(g, m - 1).
        resolution: eigenvalues below this part of l_1 are raised to it.

    Returns:
        (N, 5), in the order of STATISTICS:
        condition: l_1 / l_rank, the condition number in the directions that the values can span; at
            most 1 / resolution.
        effective_rank: exp of the entropy of the l_i / tr (Roy and Vetterli, 2007): over how many
            directions the variance is spread, 1 to g.
        first_share: l_1 / tr, the part of the variance in the first direction, 1/g to 1.
        variance: tr / g, the mean variance of the groups.
        distance: |Sigma - I| / sqrt(g), of Frobenius norms.
    """
    num_groups = sigma.shape[-1]
    eigenvalues = torch.linalg.eigvalsh(sigma).clamp(min=0).flip(-1)
    first, trace = eigenvalues[:, 0], eigenvalues.sum(-1)
    found = [
        first / torch.maximum(eigenvalues[:, rank - 1], resolution * first),
        torch.special.entr(eigenvalues / trace[:, None]).sum(-1).exp(),
        first / trace,
        trace / num_groups,
        (eigenvalues - 1).norm(dim=-1) / math.sqrt(num_groups),
    ]
    return torch.stack(found, -1)


def _root_errors(sigma: Tensor, iterations: int, eps: float) -> Tensor:
    """
    How far T = `iterations` steps of Newton's iteration are from the inverse square root:
    |W_T - S^(-1/2)| / |S^(-1/2)| with S = Sigma + eps I, of Frobenius norms, (N,).
    """
    sigma = sigma + eps * torch.eye(sigma.shape[-1], dtype=sigma.dtype)
    exact = zca(sigma, eps)[0]
    return (newton(sigma, iterations) - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))


class NormMeter:
    """
    Measures the norms of a model in the forward passes in which look() watches them, see
    :func:`watching`. LayerNorms are left out.

    The model computes what it would compute anyway: a norm's output without the affine comes from a
    copy of the norm, and there is no gradient and no random number. Only numbers are kept. A norm
    that is called several times in a pass, as those of RetinaNet's levels are, has more samples.

    Args:
        num_groups: to compare the norms by; at a norm whose channels it doesn't divide, the next
            lower number that does.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._norms: dict[str, dict[str, Any]] = {}  # layer -> what is the same for all samples
        self._tables: dict[str, list[Tensor]] = defaultdict(list)  # rows of nan are left out

    @torch.no_grad()
    def look(self, name: str, norm: nn.Module, x: Tensor, y: Tensor) -> None:
        if not len(x) or isinstance(norm, nn.LayerNorm):  # which has no (N, C, *spatial) input
            return
        step = math.ceil(len(x) / _SAMPLES_A_CALL)
        # forward alone calls no hooks, which the copy has too
        x, y = x[::step], _without_affine(norm).forward(x)[::step]
        groups = largest_divisor(x.shape[1], self._num_groups)
        (before, kept), (after, kept_after) = covariances(x, groups), covariances(y, groups)
        kept &= kept_after
        values = x[0].numel() // groups
        rank = min(groups, values - 1)
        table = torch.full((len(x), len(_COLUMNS)), math.nan, dtype=torch.float64)
        table[kept, 0] = values
        table[kept, 1:6] = spectrum_statistics(before[kept], rank, _resolution(x))
        table[kept, 6:11] = spectrum_statistics(after[kept], rank, _resolution(x))
        if getattr(norm, "method", None) == "itn":
            own = before if norm.num_groups == groups else covariances(x, norm.num_groups)[0]
            table[kept, 11] = _root_errors(own[kept], norm.iterations, norm.eps)
        self._tables[name].append(table)
        about = {"norm": kind_of(norm), "channels": x.shape[1], "groups": groups}
        self._norms[name] = {"layer": name, **about}

    def rows(self) -> list[dict[str, Any]]:
        """
        Of the norms that saw samples, in the order in which they first did:

        layer, norm, channels: name, kind and C.
        groups: g, those that the covariance is between.
        samples, left out: how many were measured, and how many not for being constant or not
            finite. A sample is an image, or in a region head a region.
        values a group: m; a mean where the samples differ in size.
        STATISTIC before, STATISTIC after: of its input and of its output without the affine, the
            means over the samples of :data:`STATISTICS`, of the condition number the geometric one;
            nan without samples.
        root error: the mean of what `_root_errors` tells, of a GW layer by Newton's iteration;
            else nan.
        """
        rows = []
        for name, norm in self._norms.items():
            table = torch.cat(self._tables[name])
            samples = int(table[:, 0].isfinite().sum())
            row = norm | {"samples": samples, "left out": len(table) - samples}
            for column, values in zip(_COLUMNS, table.T, strict=True):
                is_geometric = column.startswith("condition")
                mean = values.log().nanmean().exp() if is_geometric else values.nanmean()
                row[column] = mean.item()
            rows.append(row)
        return rows


def _without_affine(norm: nn.Module) -> nn.Module:
    norm = copy.deepcopy(norm)
    for tensor, value in ((norm.weight, 1), (norm.bias, 0)):
        if tensor is not None:
            tensor.fill_(value)
    return norm
