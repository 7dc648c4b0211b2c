"""The norms of a model and the sizes of what they are given."""

import math
from dataclasses import dataclass

from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from torch import Tensor, nn

from ..layers import GroupWhitening
from .constraints import constraints, largest_groups, limit
from .cost import extra_bytes, extra_flops

__all__ = ["NormLayer", "SizeRecorder"]

# Class -> its name in a config; the first that fits counts
KINDS = {
    GroupWhitening: "GW",
    nn.GroupNorm: "GN",
    FrozenBatchNorm2d: "FrozenBN",
    nn.SyncBatchNorm: "SyncBN",
    NaiveSyncBatchNorm: "SyncBN",
    nn.modules.batchnorm._BatchNorm: "BN",
    LayerNorm: "LN",
    nn.LayerNorm: "LN",
}


@dataclass(frozen=True)
class NormLayer:
    """
    A norm and what it is given of one image.

    Attributes:
        name: in the model, without the ".norm" that Detectron2's convolutions add.
        norm: the module.
        sizes: the spatial size of every call, e.g. of five levels; () in it for an (N, C) input.
        regions: how many samples an image makes of it in training; None for 1, the image itself.
    """

    name: str
    norm: nn.Module
    sizes: tuple[tuple[int, ...], ...]
    regions: int | None = None

    @property
    def kind(self) -> str:
        """A value of KINDS."""
        return next(name for kind, name in KINDS.items() if isinstance(self.norm, kind))

    @property
    def channels(self) -> int:
        for name in ("num_channels", "num_features"):
            if hasattr(self.norm, name):
                return getattr(self.norm, name)
        return math.prod(self.norm.normalized_shape)

    @property
    def num_groups(self) -> int | None:
        """g, of GN and GW; else None."""
        return self.norm.num_groups if self.has_groups else None

    @property
    def iterations(self) -> int | None:
        """T, of GW by Newton's iteration; else None."""
        is_newton = self.kind == "GW" and self.norm.method == "itn"
        return self.norm.iterations if is_newton else None

    @property
    def has_groups(self) -> bool:
        return self.kind in ("GN", "GW")

    @property
    def smallest(self) -> tuple[int, ...]:
        """The size of the call where the norm is tightest."""
        return min(self.sizes, key=math.prod)

    @property
    def values(self) -> int:
        """d, of the smallest sample: an image's or a region's values."""
        return self.channels * self._positions

    @property
    def group_values(self) -> int | None:
        """m, the values that a mean is taken over; of BN those of one image. None for FrozenBN."""
        if self.has_groups:
            return self.values // self.num_groups
        if self.kind == "LN":
            return self.channels
        return None if self.kind == "FrozenBN" else self._positions * self.samples

    @property
    def constraints(self) -> int:
        """On the smallest sample; BN's are those on all samples of one image. FrozenBN has none."""
        if self.has_groups:
            return constraints(self.kind, self.values, g=self.num_groups)
        if self.kind == "LN":  # at every position a GN of one group
            return constraints("GN", self.channels, self._positions, g=1)
        return 0 if self.kind == "FrozenBN" else constraints("BN", self.channels)

    @property
    def share(self) -> float:
        """The share of the values' freedom that the constraints take."""
        is_of_batch = self.kind in ("BN", "SyncBN")
        return self.constraints / (self.values * (self.samples if is_of_batch else 1))

    @property
    def limit(self) -> float | None:
        """On the number of groups, a real number; None where there are no groups."""
        return limit(self.kind, self.values) if self.has_groups else None

    @property
    def largest_groups(self) -> int | None:
        """The largest g within the limit that divides C; None where there are no groups."""
        return largest_groups(self.kind, self.values, self.channels) if self.has_groups else None

    @property
    def is_over_limit(self) -> bool:
        return self.has_groups and self.constraints > self.values

    @property
    def samples(self) -> int:
        """Of an image."""
        return 1 if self.regions is None else self.regions

    @property
    def extra_flops(self) -> int:
        """Of GW over GN, a sample's forward pass; 0 for other norms."""
        if self.kind != "GW":
            return 0
        return sum(
            extra_flops(
                self.channels,
                math.prod(size),
                self.num_groups,
                self.iterations,
                self.norm.rescale,
            )
            for size in self.sizes
        )

    @property
    def extra_bytes(self) -> int:
        """Of GW over GN, kept for a sample's backward pass; 0 for other norms."""
        if self.kind != "GW":
            return 0
        return len(self.sizes) * extra_bytes(self.num_groups, self.norm.method)

    @property
    def _positions(self) -> int:
        return math.prod(self.smallest)


class SizeRecorder:
    """
    Notes the spatial sizes of what a model's norms are given, until :meth:`remove`.

    Attributes:
        sizes: name of a norm in the model -> a size for each call; in the order of the first calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = {n: m for n, m in model.named_modules() if isinstance(m, tuple(KINDS))}
        self.sizes: dict[str, list[tuple[int, ...]]] = {}
        self._handles = [
            norm.register_forward_pre_hook(self._note(name)) for name, norm in self.norms.items()
        ]

    def layers(self) -> list[NormLayer]:
        """The norms that were called, in the order of their first calls."""
        return [
            NormLayer(name.removesuffix(".norm"), self.norms[name], tuple(sizes))
            for name, sizes in self.sizes.items()
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str):
        def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            is_last = isinstance(norm, nn.LayerNorm)  # the channels are
            size = x.shape[1:-1] if is_last else x.shape[2:]
            self.sizes.setdefault(name, []).append(tuple(size))

        return note
