"""
ResNets and ResNeXts in torchvision's names and in Detectron2's: which one a state dict is, which
norms sit where, and what every tensor is called. Everything here looks at names and shapes only, so
it works on meta tensors too.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError

# (blocks in each stage, whether they are bottlenecks) -> depth
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}

Shape = tuple[int, ...]


class ConvNorm(NamedTuple):
    """A convolution and the norm after it."""

    conv: str  # torchvision's name of the convolution, e.g. "layer1.0.conv2"
    norm: str  # torchvision's name of the norm, e.g. "layer1.0.bn2"
    target: str  # Detectron2's name of the convolution, e.g. "res2.0.conv2"; its norm is in it
    shape: Shape  # of the convolution's weight

    @property
    def role(self) -> str:
        """Where in its block, or in the network: "conv1", "shortcut", "stem", ..."""
        return "stem" if self.target.startswith("stem") else self.target.rpartition(".")[2]


@dataclass(frozen=True)
class ResNetLayout:
    """
    What a state dict in torchvision's names is.

    `norms` maps Detectron2's name of a convolution to the kind of its norm: "BN" (with running
    statistics), "GW" (weight and bias of shape (1, C, 1, 1), as the authors save it) or "GN"
    (the two of shape (C,); a GW that was saved flat looks the same and becomes the same tensors).
    """

    depth: int
    num_groups: int
    width_per_group: int
    stem_channels: int
    res2_channels: int
    num_classes: int | None  # None without a classifier
    norms: dict[str, str]

    @property
    def blocks(self) -> Shape:
        return next(blocks for (blocks, _), depth in _DEPTHS.items() if depth == self.depth)

    @property
    def is_bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def name(self) -> str:
        if self.num_groups == 1:
            return f"ResNet-{self.depth}"
        return f"ResNeXt-{self.depth} {self.num_groups}x{self.width_per_group}d"

    def describe(self) -> str:
        """The network in one line, with the keys of a config that builds it."""
        keys = {
            "DEPTH": self.depth,
            "NUM_GROUPS": self.num_groups,
            "WIDTH_PER_GROUP": self.width_per_group,
            "STEM_OUT_CHANNELS": self.stem_channels,
            "RES2_OUT_CHANNELS": self.res2_channels,
        }
        keys = ", ".join(f"{key} {value}" for key, value in keys.items())
        if self.is_bottleneck:
            keys += ", STRIDE_IN_1X1 False"
        return f"{self.name} (MODEL.RESNETS: {keys}), {self._describe_classifier()}"

    def _describe_classifier(self) -> str:
        if self.num_classes is None:
            return "no classifier"
        return f"classifier of {self.num_classes} classes"

    def describe_norms(self) -> str:
        """Where which norms sit, e.g. "S1-B2 GW over BN (17 GW, 36 BN)"."""
        kinds = Counter(self.norms.values())
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds, reverse=True))
        if "GN" in kinds:
            counts += "; a GW that was saved flat reads as GN, and becomes the same tensors"
        return f"{self._describe_places()} ({counts})"

    def _describe_places(self) -> str:
        by_role: dict[str, set[str]] = {}
        for layer in self.layers():
            by_role.setdefault(layer.role, set()).add(self.norms[layer.target])
        kinds = set(self.norms.values())
        if len(kinds) == 1:
            return f"{kinds.pop()} everywhere"
        if len(kinds) == 2 and all(len(found) == 1 for found in by_role.values()):
            (base,) = by_role["shortcut"]
            (other,) = kinds - {base}
            roles = {role for role, found in by_role.items() if found == {other}}
            if self.is_bottleneck or roles - {"stem"} != {"conv2"}:
                return f"{self._positions(roles)} {other} over {base}"
        base = Counter(self.norms.values()).most_common(1)[0][0]
        places = [f"{kind} at {target}" for target, kind in self.norms.items() if kind != base]
        return f"at no MODEL.GW.POSITIONS: {', '.join(places)}, {base} elsewhere"

    def _positions(self, roles: set[str]) -> str:
        """In the words of MODEL.GW.POSITIONS; B2 also for the first norm of a basic block."""
        digits = "".join(sorted(role[-1] for role in roles - {"stem"}))
        if not self.is_bottleneck and digits == "1":
            digits = "2"
        return "-".join(["S1"] * ("stem" in roles) + [f"B{digits}"] * bool(digits))

    def layers(self) -> Iterator[ConvNorm]:
        """All convolutions with their norms, in the order of the network."""
        yield ConvNorm("conv1", "bn1", "stem.conv1", (self.stem_channels, 3, 7, 7))
        channels = self.stem_channels
        for stage, blocks in enumerate(self.blocks):
            width = self.num_groups * self.width_per_group * 2**stage
            out_channels = self.res2_channels * 2**stage
            for block in range(blocks):
                source, target = f"layer{stage + 1}.{block}", f"res{stage + 2}.{block}"
                for k, shape in enumerate(self._block_shapes(channels, width, out_channels), 1):
                    name = f"conv{k}"
                    yield ConvNorm(f"{source}.{name}", f"{source}.bn{k}", f"{target}.{name}", shape)
                # where the block changes the resolution or the number of channels
                if block == 0 and (stage > 0 or channels != out_channels):
                    shape = (out_channels, channels, 1, 1)
                    yield ConvNorm(
                        f"{source}.downsample.0",
                        f"{source}.downsample.1",
                        f"{target}.shortcut",
                        shape,
                    )
                channels = out_channels

    def _block_shapes(self, in_channels: int, width: int, out_channels: int) -> list[Shape]:
        if not self.is_bottleneck:
            return [(out_channels, in_channels, 3, 3), (out_channels, out_channels, 3, 3)]
        return [
            (width, in_channels, 1, 1),
            (width, width // self.num_groups, 3, 3),
            (out_channels, width, 1, 1),
        ]

    def tensors(self) -> Iterator[tuple[str, str, Shape]]:
        """All tensors it must have: (torchvision's name, Detectron2's name, shape in the file)."""
        for layer in self.layers():
            yield f"{layer.conv}.weight", f"{layer.target}.weight", layer.shape
            kind = self.norms[layer.target]
            channels = layer.shape[0]
            shape = (1, channels, 1, 1) if kind == "GW" else (channels,)
            names = ["weight", "bias"]
            if kind == "BN":
                names += ["running_mean", "running_var"]
            for name in names:
                yield f"{layer.norm}.{name}", f"{layer.target}.norm.{name}", shape
        if self.num_classes is not None:
            features = self.res2_channels * 8
            yield "fc.weight", "linear.weight", (self.num_classes, features)
            yield "fc.bias", "linear.bias", (self.num_classes,)


def recognise(state: dict[str, Tensor]) -> ResNetLayout:
    """
    What the state dict is. Every figure is what most of the tensors say, so that a wrong one
    among them stands out afterwards, in :func:`check`.

    Raises:
        UsageError: it is no ResNet of a known depth in torchvision's names.
    """
    depth = _recognise_depth(state)
    last = 3 if depth >= 50 else 2
    width = _vote(state, r"layer([1-4])\.\d+\.conv2\.weight", dim=0)
    width_per_group = _vote(state, r"layer([1-4])\.\d+\.conv2\.weight", dim=1)
    res2_channels = _vote(state, rf"layer([1-4])\.\d+\.conv{last}\.weight", dim=0)
    return _with_norms(
        state,
        depth=depth,
        num_groups=max(1, width // width_per_group),
        width_per_group=width_per_group,
        stem_channels=_count_stem_channels(state),
        res2_channels=res2_channels,
        num_classes=_count_classes(state),
    )


def _recognise_depth(state: dict[str, Tensor]) -> int:
    blocks: dict[int, int] = {}
    for name in state:
        match = re.match(r"layer([1-4])\.(\d+)\.", name)
        if match:
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    if any(name.startswith(("stem.conv1.", "res2.")) for name in state):
        raise UsageError("its names are Detectron2's already")
    if len(blocks) < 4:
        raise UsageError(
            "it is no ResNet in torchvision's names (conv1, layer1.0.conv1, ..., layer4.*); it "
            f"begins with {', '.join(list(state)[:3])}"
        )
    counts = tuple(blocks[stage] for stage in (1, 2, 3, 4))
    is_bottleneck = any(name.endswith(".conv3.weight") for name in state)
    if (counts, is_bottleneck) not in _DEPTHS:
        kind = "bottleneck" if is_bottleneck else "basic"
        raise UsageError(
            f"{counts} {kind} blocks in its four stages are no ResNet of depth "
            + ", ".join(map(str, _DEPTHS.values()))
        )
    return _DEPTHS[counts, is_bottleneck]


def _vote(state: dict[str, Tensor], pattern: str, dim: int) -> int:
    """
    The size along dim in the first stage, by what most convolutions of the pattern say: a stage has
    twice as many channels as the one before. The pattern's group is the stage's number.
    """
    votes: Counter[int] = Counter()
    for name, tensor in state.items():
        match = re.fullmatch(pattern, name)
        if match and tensor.dim() == 4:
            size, rest = divmod(tensor.shape[dim], 2 ** (int(match[1]) - 1))
            votes[size] += size > 0 and rest == 0
    if not +votes:
        raise UsageError("its convolutions haven't the shapes of a ResNet's")
    return votes.most_common(1)[0][0]


def _count_stem_channels(state: dict[str, Tensor]) -> int:
    shapes = {name: tensor.shape for name, tensor in state.items() if tensor.dim() > 0}
    votes = [shapes[name].numel() for name in ("bn1.weight", "bn1.bias") if name in shapes]
    votes += [shapes["conv1.weight"][0]] if "conv1.weight" in shapes else []
    return Counter(votes).most_common(1)[0][0] if votes else 64


def _count_classes(state: dict[str, Tensor]) -> int | None:
    for name in ("fc.weight", "fc.bias"):
        if name in state and state[name].dim() > 0:
            return state[name].shape[0]
    return None


def _with_norms(state: dict[str, Tensor], **figures: int | None) -> ResNetLayout:
    layers = list(ResNetLayout(**figures, norms={}).layers())
    seen = {layer.target: _norm_kind(state, layer.norm) for layer in layers}
    usual: dict[str, Counter[str | None]] = {}
    for layer in layers:
        usual.setdefault(layer.role, Counter())[seen[layer.target]] += 1
    norms = {}
    for layer in layers:
        kind = seen[layer.target]
        if kind in ("GN", None):  # what a BN or a GW looks like that has lost some of its tensors
            kind = usual[layer.role].most_common(1)[0][0] or "BN"
        norms[layer.target] = kind
    return ResNetLayout(**figures, norms=norms)


def _norm_kind(state: dict[str, Tensor], name: str) -> str | None:
    if f"{name}.running_mean" in state or f"{name}.running_var" in state:
        return "BN"
    affine = [state[key] for key in (f"{name}.weight", f"{name}.bias") if key in state]
    if any(tensor.dim() == 4 for tensor in affine):
        return "GW"
    return "GN" if affine else None


def check(state: dict[str, Tensor], layout: ResNetLayout) -> None:
    """
    Checks that the state dict has the tensors of the layout, each of its shape, and no others but
    BN's num_batches_tracked.

    Raises:
        UsageError: tensors are missing, left over or misshapen; all of them are listed.
    """
    expected = {source: shape for source, _, shape in layout.tensors()}
    counters = {
        f"{layer.norm}.num_batches_tracked"
        for layer in layout.layers()
        if layout.norms[layer.target] == "BN"
    }
    problems = {
        "missing": [name for name in expected if name not in state],
        "left over": [name for name in state if name not in expected.keys() | counters],
        "misshapen": [
            f"{name} {tuple(state[name].shape)} instead of {shape}"
            for name, shape in expected.items()
            if name in state and state[name].shape != shape
        ],
    }
    if any(problems.values()):
        found = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
        raise UsageError(f"not the tensors of a {layout.name}; {'; '.join(found)}")


def rename(state: dict[str, Tensor], layout: ResNetLayout) -> dict[str, Tensor]:
    """A checked state dict in Detectron2's names; the tensors of its norms get the shape (C,)."""
    return {
        target: state[source].flatten() if ".norm." in target else state[source]
        for source, target, _ in layout.tensors()
    }
