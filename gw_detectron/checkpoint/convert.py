"""From a PyTorch file of a ResNet in torchvision's names to one for Detectron2's backbones."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from torch import Tensor

from ..errors import UsageError
from ..files import whole_file
from .checkpointer import read_state_dict

# (blocks in each stage, whether they are bottlenecks) -> depth
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}

# In a tensor's name: what Detectron2 writes and what torchvision does
_TORCHVISIONS = {
    r"^stem\.": "",
    r"^linear": "fc",
    r"^res(\d)": lambda match: f"layer{int(match[1]) - 1}",
    r"shortcut\.norm": "downsample.1",
    r"shortcut": "downsample.0",
    r"conv(\d)\.norm": r"bn\1",
}


def convert_file(source: str | os.PathLike, target: str | os.PathLike) -> str:
    """
    Converts the weights of a ResNet or ResNeXt 18 to 152 from torchvision's names to Detectron2's.

    Every tensor is checked, and nothing is written unless all are right. The file is complete when
    it appears under its name, and its folder is made where missing.

    Args:
        source: what :func:`read_state_dict` takes.
        target: a .pth file that is not there yet. Tensors are float32, and Detectron2 matches
            their names by suffix: they fit any detector's backbone.

    Returns:
        str: what the network is, and which norms sit where: two lines.

    Raises:
        UsageError: source isn't such a file, or target is there or can't be written.
    """
    target = Path(target)
    if target.suffix != ".pth":
        raise UsageError(f"{target}: the file to write must end in .pth")
    if target.exists():
        raise UsageError(f"{target} exists: remove it, or choose another name")
    state = read_state_dict(source)
    try:
        tensors, network, norms = convert(state)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target, "wb") as file:
            content = {"__author__": "gw_detectron", "matching_heuristics": True}
            torch.save({"model": tensors, **content}, file)
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}") from error
    return f"{network}\nNorms: {norms}; {len(tensors)} tensors in {target}"


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, str]:
    """
    Renames and checks a state dict in torchvision's names.

    Returns:
        Contiguous float32 copies by Detectron2's names, those of norms of shape (C,), without BN's
        num_batches_tracked; what the network is; which norms sit where, e.g. "17 GW at conv2
        stem, 36 BN at conv1 conv3 shortcut".

    Raises:
        UsageError: it is no ResNet of a known depth in these names; tensors are missing, left over,
            misshapen or not finite.
    """
    figures = _recognise(state)
    network = f"ResNet (MODEL.RESNETS: {', '.join(f'{key} {figures[key]}' for key in figures)}), "
    shapes = _shapes(figures)
    head = state.get("fc.bias", state.get("fc.weight"))
    if head is None:
        network += "no classifier"
    else:
        num_classes = head.shape[:1].numel()
        network += f"classifier of {num_classes} classes"
        shapes["linear.weight"] = (num_classes, 8 * figures["RES2_OUT_CHANNELS"])
        shapes["linear.bias"] = (num_classes,)
    # The norms at one place of the blocks are of one kind: where one has statistics, all have
    statistics = {name: _place(name) for name in shapes if "running_" in name}
    batch_norms = {p for name, p in statistics.items() if torchvision_name(name) in state}
    shapes = {n: s for n, s in shapes.items() if statistics.get(n, "") in {"", *batch_norms}}
    tensors = _rename(state, shapes, figures["DEPTH"])
    norms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name in tensors:
        if name.endswith(".norm.weight"):
            place, is_flat = _place(name), state[torchvision_name(name)].dim() == 1
            kind = "BN" if place in batch_norms else "GN (or GW saved flat)" if is_flat else "GW"
            norms[kind][place] += 1
    described = [f"{of.total()} {kind} at {' '.join(sorted(of))}" for kind, of in norms.items()]
    return tensors, network, ", ".join(described)


def _recognise(state: dict[str, Tensor]) -> dict[str, int]:
    """The network by the keys of MODEL.RESNETS; its first block tells the width."""
    if any(name.startswith(("stem.conv1.", "res2.")) for name in state):
        raise UsageError("its names are Detectron2's already")
    found = filter(None, (re.match(r"layer([1-4])\.(\d+)\.", name) for name in state))
    blocks = Counter(stage for stage, _ in {match.groups() for match in found})
    counts = tuple(blocks[stage] for stage in "1234")
    is_bottleneck = any(name.endswith(".conv3.weight") for name in state)
    if (counts, is_bottleneck) not in _DEPTHS:
        depths = ", ".join(map(str, _DEPTHS.values()))
        raise UsageError(
            f"it is no ResNet {depths} in torchvision's names (conv1, layer1.0.conv1, ..., "
            f"layer4.*): {counts} blocks in its four stages; it begins with "
            + ", ".join(list(state)[:3])
        )
    figures = {"DEPTH": _DEPTHS[counts, is_bottleneck], "RES2_OUT_CHANNELS": 64}
    if is_bottleneck:
        conv2 = state.get("layer1.0.conv2.weight", torch.empty(()))
        width, per_group = conv2.shape[:2] if conv2.dim() == 4 else (64, 64)
        figures |= {"RES2_OUT_CHANNELS": 256, "STRIDE_IN_1X1": False}
        figures |= {"NUM_GROUPS": max(1, width // per_group), "WIDTH_PER_GROUP": per_group}
    return figures


def _shapes(figures: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of Detectron2's ResNet, with running statistics in every norm."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.update(figures, NORM="FrozenBN", OUT_FEATURES=["res5"])
    with torch.device("meta"):
        resnet = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    return {name: tuple(tensor.shape) for name, tensor in resnet.state_dict().items()}


def torchvision_name(name: str) -> str:
    """What torchvision calls a tensor or a module of Detectron2's ResNet."""
    for ours, theirs in _TORCHVISIONS.items():
        name = re.sub(ours, theirs, name)
    return name


def _place(name: str) -> str:
    """The stem, the shortcut or a convolution of the block."""
    return re.search(r"stem|shortcut|conv\d", name)[0]


def _rename(
    state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], depth: int
) -> dict[str, Tensor]:
    """The tensors of these names and shapes; UsageError where these are not all there is."""
    sources = {name: torchvision_name(name) for name in shapes}
    state = {name: t for name, t in state.items() if not name.endswith(".num_batches_tracked")}
    tensors = {
        name: state[source].squeeze() if ".norm." in name else state[source]
        for name, source in sources.items()
        if source in state
    }
    problems = {
        "missing": {sources[name] for name in sources.keys() - tensors.keys()},
        "left over": state.keys() - sources.values(),
        "misshapen": [
            f"{sources[name]} {tuple(tensor.shape)} instead of {shapes[name]}"
            for name, tensor in tensors.items()
            if tensor.shape != shapes[name]
        ],
        "not finite in float32": [n for n, t in state.items() if not t.float().isfinite().all()],
    }
    found = [
        f"{len(names)} {what}, first {min(names)}" for what, names in problems.items() if names
    ]
    if found:
        raise UsageError(f"not the tensors of a ResNet-{depth}: {'; '.join(found)}")
    # Copies, as a view would drag what lies around it into the file
    return {
        name: t.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for name, t in tensors.items()
    }
