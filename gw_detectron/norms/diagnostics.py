"""
What the norms of a model do to its features, measured on the features themselves.

All of it is read off the covariance between g groups of a sample's channels, the matrix that Group
Whitening makes the identity. It is taken before and after every norm with the same groups,
whatever the norm and its own groups, so that norms can be compared.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..layers import GroupWhitening
from ..layers.whitening_matrix import newton, zca
from .layers import KINDS

__all__ = [
    "STATISTICS",
    "NormStatistics",
    "NormWatcher",
    "common_groups",
    "covariances",
    "find_norms",
    "root_errors",
    "spectrum_statistics",
]

# What spectrum_statistics tells
STATISTICS = ("condition", "effective_rank", "first_share", "variance", "distance")

_GROUPS_WITHOUT_GW = 16
_SAMPLES_A_CALL = 32  # at most, evenly spread: a region head sees up to a thousand at once


@dataclass(frozen=True)
class NormStatistics:
    """
    One norm, over the samples that it was measured on: images, or regions in a region head.

    Attributes:
        name: in the model, without the ".norm" of Detectron2's convolutions.
        kind: a value of :data:`KINDS`, e.g. "GW".
        channels, groups: C, and the g groups that the covariance is between.
        values: m, the values in a group; a mean where the samples differ in size.
        samples, left_out: how many were measured, and how many not for being constant or not
            finite.
        before, after: of its input and of its output without the affine, the means over the
            samples of what :func:`spectrum_statistics` tells (of "condition" the geometric mean);
            nan without samples.
        root_error: the mean of what :func:`root_errors` tells, of a GW layer by Newton's
            iteration; else nan.
    """

    name: str
    kind: str
    channels: int
    groups: int
    values: float
    samples: int
    left_out: int
    before: dict[str, float]
    after: dict[str, float]
    root_error: float


def find_norms(model: nn.Module) -> dict[str, nn.Module]:
    """
    The norms of a model, of :data:`KINDS`, by their names in it; but nn.LayerNorm, which has no
    (N, C, *spatial) input.

    Raises:
        UsageError: there are none.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, tuple(KINDS)) and not isinstance(module, nn.LayerNorm)
    }
    if not norms:
        raise UsageError("the model has no norm to diagnose")
    return norms


def common_groups(models: Iterable[nn.Module]) -> int:
    """
    The number of groups by which to compare the norms of models: their GW layers' own, 16 where
    there is none.

    Of several numbers the least: what is white between many groups is white between unions of
    them, but not between parts. Layers with one channel a group for want of more have no say.
    """
    layers = [m for model in models for m in model.modules() if isinstance(m, GroupWhitening)]
    chosen = [layer.num_groups for layer in layers if layer.num_groups < layer.num_channels]
    return (
        min(chosen) if chosen else max((m.num_groups for m in layers), default=_GROUPS_WITHOUT_GW)
    )


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


def spectrum_statistics(sigma: Tensor, rank: int, resolution: float) -> dict[str, Tensor]:
    """
    What the eigenvalues l_1 >= ... >= l_g of covariances tell.

    Args:
        sigma: (N, g, g), float64, finite, not zero; without eps on the diagonal.
        rank: how many directions m values span, min(g, m - 1).
        resolution: eigenvalues below this part of l_1 are raised to it.

    Returns:
        name -> (N,):
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
    shares = eigenvalues / trace[:, None]
    return {
        "condition": first / torch.maximum(eigenvalues[:, rank - 1], resolution * first),
        "effective_rank": torch.special.entr(shares).sum(-1).exp(),
        "first_share": first / trace,
        "variance": trace / num_groups,
        "distance": (eigenvalues - 1).norm(dim=-1) / math.sqrt(num_groups),
    }


def root_errors(sigma: Tensor, iterations: int, eps: float) -> Tensor:
    """
    How far T = `iterations` steps of Newton's iteration are from the inverse square root:
    |W_T - S^(-1/2)| / |S^(-1/2)| with S = Sigma + eps I, of Frobenius norms, (N,).
    """
    sigma = sigma + eps * torch.eye(sigma.shape[-1], dtype=sigma.dtype)
    exact = zca(sigma, eps)[0]
    return (newton(sigma, iterations) - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))


# ---- A model's norms, image by image ---------------------------------------------------------


class NormWatcher:
    """
    Measures a model's norms in every forward pass between attach() and detach(), or in a `with`.

    The model computes what it would compute anyway: a norm's output without the affine comes from a
    copy of the norm, and there is no gradient and no random number. Only sums are kept. A norm that
    is called several times in a pass, as those of RetinaNet's levels are, has more samples.

    Args:
        num_groups: to compare the norms by; at a norm whose channels it doesn't divide, the next
            lower number that does.

    Raises:
        UsageError: the model has no norms.
    """

    def __init__(self, model: nn.Module, num_groups: int) -> None:
        self._norms = find_norms(model)
        self._num_groups = num_groups
        self._sums: dict[str, _Sums] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        for name, norm in self._norms.items():
            measure = self._measurement(name, _without_affine(norm))
            self._handles.append(norm.register_forward_hook(measure))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "NormWatcher":
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def statistics(self) -> list[NormStatistics]:
        """Of the norms that saw samples, in the order in which they first did."""
        return [sums.statistics(name.removesuffix(".norm")) for name, sums in self._sums.items()]

    def _measurement(self, name: str, plain: nn.Module) -> Callable[..., None]:
        def measure(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = inputs
            with torch.no_grad():
                y = plain.forward(x)  # not plain(x), which would call hooks of the original's
                if len(x):
                    sums = self._sums.setdefault(name, _Sums(norm, x.shape[1], self._num_groups))
                    sums.add(x, y)

        return measure


def _without_affine(norm: nn.Module) -> nn.Module:
    """A copy with the weight 1 and the bias 0."""
    plain = copy.deepcopy(norm).requires_grad_(False)
    for name, value in (("weight", 1), ("bias", 0)):
        if getattr(plain, name, None) is not None:
            getattr(plain, name).fill_(value)
    return plain


class _Sums:
    """Over the samples of one norm."""

    def __init__(self, norm: nn.Module, channels: int, num_groups: int) -> None:
        self.norm = norm
        self.channels = channels
        divisors = (g for g in range(min(channels, num_groups), 0, -1) if channels % g == 0)
        self.groups = next(divisors)
        self.values = self.samples = self.left_out = 0
        self.before = dict.fromkeys(STATISTICS, 0.0)
        self.after = dict.fromkeys(STATISTICS, 0.0)
        self.root_error = 0.0 if getattr(norm, "method", None) == "itn" else math.nan

    def add(self, x: Tensor, y: Tensor) -> None:
        """
        Args:
            x, y: input and output, (N, C, *spatial), N at least 1.
        """
        step = math.ceil(len(x) / _SAMPLES_A_CALL)
        x, y = x[::step], y[::step]
        (sigma, kept), (sigma_after, kept_after) = (covariances(a, self.groups) for a in (x, y))
        kept &= kept_after
        num_kept = int(kept.sum())
        self.left_out += len(x) - num_kept
        if not num_kept:
            return
        values = x[0].numel() // self.groups
        self.samples += num_kept
        self.values += num_kept * values
        rank = min(self.groups, values - 1)
        for sums, matrices in ((self.before, sigma), (self.after, sigma_after)):
            found = spectrum_statistics(matrices[kept], rank, _resolution(x))
            found["condition"].log_()
            for name, value in found.items():
                sums[name] += value.sum().item()
        if not math.isnan(self.root_error):
            if self.norm.num_groups != self.groups:
                sigma, _ = covariances(x, self.norm.num_groups)
            errors = root_errors(sigma[kept], self.norm.iterations, self.norm.eps)
            self.root_error += errors.sum().item()

    def statistics(self, name: str) -> NormStatistics:
        return NormStatistics(
            name,
            next(kind for norm, kind in KINDS.items() if isinstance(self.norm, norm)),
            self.channels,
            self.groups,
            self._mean(self.values),
            self.samples,
            self.left_out,
            self._means(self.before),
            self._means(self.after),
            self._mean(self.root_error),
        )

    def _mean(self, total: float) -> float:
        return total / self.samples if self.samples else math.nan

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        means = {name: self._mean(total) for name, total in sums.items()}
        return means | {"condition": math.exp(means["condition"])}
