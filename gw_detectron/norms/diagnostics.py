"""
What the norms of a model do to its features, measured on the features themselves.

All of it is read off the covariance between g groups of a sample's channels, the matrix that Group
Whitening makes the identity. It is taken before and after every norm with the same groups,
whatever the norm and its own groups, so that norms can be compared.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..layers import GroupWhitening
from ..layers.whitening_matrix import newton, zca
from .probe import find_norms, kind_of
from .theory import largest_divisor

__all__ = ["STATISTICS", "NormMeter", "common_groups", "covariances", "spectrum_statistics"]

# What spectrum_statistics tells
STATISTICS = ("condition", "effective_rank", "first_share", "variance", "distance")

_GROUPS_WITHOUT_GW = 16
_SAMPLES_A_CALL = 32  # at most, evenly spread: a region head sees up to a thousand at once


def common_groups(models: Iterable[nn.Module]) -> int:
    """
    The number of groups by which to compare the norms of models: their GW layers' own, 16 where
    there is none.

    Of several numbers the least: what is white between many groups is white between unions of
    them, but not between parts. Layers with one channel a group for want of more have no say.

    Raises:
        UsageError: one of the models has no norm that can be measured.
    """
    layers = []
    for model in models:
        norms = find_norms(model).values()
        if not any(map(_is_measured, norms)):
            raise UsageError("the model has no norm to diagnose")
        layers += [norm for norm in norms if isinstance(norm, GroupWhitening)]
    chosen = [layer.num_groups for layer in layers if layer.num_groups < layer.num_channels]
    return (
        min(chosen) if chosen else max((m.num_groups for m in layers), default=_GROUPS_WITHOUT_GW)
    )


def _is_measured(norm: nn.Module) -> bool:
    return not isinstance(norm, nn.LayerNorm)  # which has no (N, C, *spatial) input


# ---- One norm, some samples ------------------------------------------------------------------


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


# ---- A model's norms, image by image ---------------------------------------------------------


class NormMeter:
    """
    Measures the norms of a model in the forward passes in which look() watches them, see
    :func:`watching`.

    The model computes what it would compute anyway: a norm's output without the affine comes from a
    copy of the norm, and there is no gradient and no random number. Only numbers are kept. A norm
    that is called several times in a pass, as those of RetinaNet's levels are, has more samples.

    Args:
        num_groups: to compare the norms by; at a norm whose channels it doesn't divide, the next
            lower number that does.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._norms: dict[str, _MeasuredNorm] = {}

    @torch.no_grad()
    def look(self, name: str, norm: nn.Module, x: Tensor, y: Tensor) -> None:
        if len(x) and _is_measured(norm):
            if name not in self._norms:
                self._norms[name] = _MeasuredNorm(norm, x.shape[1], self._num_groups)
            self._norms[name].add(x)

    def rows(self) -> list[dict[str, Any]]:
        """
        Of the norms that saw samples, in the order in which they first did:

        layer, norm, channels: name, kind and C.
        groups: g, those that the covariance is between.
        values a group: m; a mean where the samples differ in size.
        samples, left out: how many were measured, and how many not for being constant or not
            finite. A sample is an image, or in a region head a region.
        STATISTIC before, STATISTIC after: of its input and of its output without the affine, the
            means over the samples of :data:`STATISTICS`, of the condition number the geometric one;
            nan without samples.
        root error: the mean of what `_root_errors` tells, of a GW layer by Newton's iteration;
            else nan.
        """
        return [{"layer": name, **norm.row()} for name, norm in self._norms.items()]


class _MeasuredNorm:
    columns = (
        "values a group",
        *(f"{statistic} {place}" for place in ("before", "after") for statistic in STATISTICS),
        "root error",
    )

    def __init__(self, norm: nn.Module, channels: int, num_groups: int) -> None:
        self.norm, self.channels = norm, channels
        self.groups = largest_divisor(channels, num_groups)
        self.without_affine = copy.deepcopy(norm).requires_grad_(False)
        for name, value in (("weight", 1), ("bias", 0)):
            if getattr(self.without_affine, name, None) is not None:
                getattr(self.without_affine, name).fill_(value)
        self.tables: list[Tensor] = []  # a row a sample
        self.left_out = 0

    def add(self, x: Tensor) -> None:
        """
        Args:
            x: input, (N, C, *spatial), N at least 1.
        """
        y = self.without_affine.forward(x)  # forward alone calls no hooks, which it has copied too
        step = math.ceil(len(x) / _SAMPLES_A_CALL)
        x, y = x[::step], y[::step]
        (before, kept), (after, kept_after) = (covariances(a, self.groups) for a in (x, y))
        kept &= kept_after
        self.left_out += int((~kept).sum())
        values = x[0].numel() // self.groups
        rank = min(self.groups, values - 1)
        table = torch.full((int(kept.sum()), len(self.columns)), math.nan, dtype=torch.float64)
        table[:, 0] = values
        table[:, 1:6] = spectrum_statistics(before[kept], rank, _resolution(x))
        table[:, 6:11] = spectrum_statistics(after[kept], rank, _resolution(x))
        if getattr(self.norm, "method", None) == "itn":
            if self.norm.num_groups != self.groups:
                before, _ = covariances(x, self.norm.num_groups)
            table[:, 11] = _root_errors(before[kept], self.norm.iterations, self.norm.eps)
        self.tables.append(table)

    def row(self) -> dict[str, Any]:
        table = torch.cat(self.tables)
        means = dict(zip(self.columns, table.mean(0).tolist(), strict=True))
        for column, values in zip(self.columns, table.T, strict=True):
            if column.startswith("condition"):
                means[column] = values.log().mean().exp().item()
        return {
            "norm": kind_of(self.norm),
            "channels": self.channels,
            "groups": self.groups,
            "samples": len(table),
            "left out": self.left_out,
            **means,
        }
