"""From a PyTorch file of a ResNet in torchvision's names to one for Detectron2's backbones."""

import os
import pickle
import re
from collections import Counter
from collections.abc import Collection, Iterable
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
_LISTED = 8  # of tensors that are wrong in one way


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    drop_classifier: bool = False,
    overwrite: bool = False,
) -> str:
    """
    Converts the weights of a ResNet or ResNeXt 18 to 152 from torchvision's names to Detectron2's.

    Every tensor is checked, and nothing is written unless all are right. The file is complete when
    it appears under its name, and its folder is made where missing.

    Args:
        source: what :func:`read_state_dict` takes.
        target: a .pth file, or a .pkl file like those of Detectron2's model zoo. Tensors are
            float32, and Detectron2 matches their names by suffix: they fit any detector's backbone.
        drop_classifier: leave out `linear`, the classifier.
        overwrite: replace target where it exists.

    Returns:
        str: what the network is, and which norms sit where: two lines.

    Raises:
        UsageError: source isn't such a file, or target can't be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in (".pth", ".pkl"):
        raise UsageError(f"{target}: the file to write must end in .pth or .pkl")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; to replace it, add --overwrite")
    state = read_state_dict(source)
    try:
        tensors, network, norms = convert(state)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    if drop_classifier and "linear.weight" in tensors:
        del tensors["linear.weight"], tensors["linear.bias"]
        network += " (dropped)"
    _write(tensors, target)
    return f"{network}\nNorms: {norms}; {len(tensors)} tensors in {target}"


def _write(tensors: dict[str, Tensor], target: Path) -> None:
    content = {"__author__": "gw_detectron", "matching_heuristics": True}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target, "wb") as file:
            if target.suffix == ".pkl":
                arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
                pickle.dump({"model": arrays, **content}, file)
            else:
                torch.save({"model": tensors, **content}, file)
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}") from error


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, str]:
    """
    Renames and checks a state dict in torchvision's names.

    Returns:
        Contiguous float32 copies by Detectron2's names, those of norms of shape (C,), without BN's
        num_batches_tracked; what the network is; which norms sit where, e.g. "S1-B2 GW over BN (17
        GW, 36 BN)".

    Raises:
        UsageError: it is no ResNet of a known depth in these names; tensors are missing, left over,
            misshapen, or have values that no weights have.
    """
    figures = _recognise(state)
    name = f"ResNet-{figures['DEPTH']}"
    if figures["NUM_GROUPS"] > 1:
        name = "ResNeXt-{DEPTH} {NUM_GROUPS}x{WIDTH_PER_GROUP}d".format(**figures)
    network = f"{name} (MODEL.RESNETS: {', '.join(f'{key} {figures[key]}' for key in figures)}), "
    shapes = _shapes(figures)
    head = state.get("fc.bias", state.get("fc.weight"))
    if head is None:
        network += "no classifier"
    else:
        num_classes = head.shape[:1].numel()
        network += f"classifier of {num_classes} classes"
        shapes["linear.weight"] = (num_classes, 8 * figures["RES2_OUT_CHANNELS"])
        shapes["linear.bias"] = (num_classes,)
    norms = _recognise_norms(state, shapes)
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if "running_" not in name or norms[name.rpartition(".")[0]] == "BN"
    }
    return _rename(state, shapes, name), network, _describe(norms)


def _recognise(state: dict[str, Tensor]) -> dict[str, int]:
    """The network by the keys of MODEL.RESNETS; the first convolutions tell its widths."""
    if any(name.startswith(("stem.conv1.", "res2.")) for name in state):
        raise UsageError("its names are Detectron2's already")
    found = filter(None, (re.match(r"layer([1-4])\.(\d+)\.", name) for name in state))
    blocks = Counter(stage for stage, _ in {match.groups() for match in found})
    if len(blocks) < 4:
        raise UsageError(
            "it is no ResNet in torchvision's names (conv1, layer1.0.conv1, ..., layer4.*); it "
            f"begins with {', '.join(list(state)[:3])}"
        )
    counts = tuple(blocks[stage] for stage in "1234")
    is_bottleneck = any(name.endswith(".conv3.weight") for name in state)
    if (counts, is_bottleneck) not in _DEPTHS:
        kind = "bottleneck" if is_bottleneck else "basic"
        raise UsageError(
            f"{counts} {kind} blocks in its four stages are no ResNet of depth "
            + ", ".join(map(str, _DEPTHS.values()))
        )

    def size(convolution: str, dim: int, otherwise: int) -> int:
        shape = state[convolution].shape if convolution in state else ()
        return shape[dim] if len(shape) == 4 and shape[dim] else otherwise

    figures = {"DEPTH": _DEPTHS[counts, is_bottleneck], "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64}
    figures["STEM_OUT_CHANNELS"] = size("conv1.weight", 0, 64)
    figures["RES2_OUT_CHANNELS"] = 64  # the only ones of Detectron2's basic blocks
    if is_bottleneck:
        per_group = size("layer1.0.conv2.weight", 1, 64)
        figures["NUM_GROUPS"] = max(1, size("layer1.0.conv2.weight", 0, 64) // per_group)
        figures["WIDTH_PER_GROUP"] = per_group
        figures["RES2_OUT_CHANNELS"] = size("layer1.0.conv3.weight", 0, 256)
        figures["STRIDE_IN_1X1"] = False
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


def _recognise_norms(state: dict[str, Tensor], shapes: Iterable[str]) -> dict[str, str]:
    """
    Detectron2's name of every norm -> "BN" (with running statistics), "GW" (of shape (1, C, 1, 1),
    as the authors save it) or "GN" (of shape (C,), which a GW may have, too). At one place of the
    blocks all are taken for what most are: the tensors of another kind are missing or left over.
    """
    norms = [name.removesuffix(".weight") for name in shapes if name.endswith(".norm.weight")]
    votes: dict[str, Counter[str]] = {}
    for norm in norms:
        source = torchvision_name(norm)
        weight = state.get(f"{source}.weight")
        kind = "GW" if weight is not None and weight.dim() == 4 else "GN"
        if state.keys() & {f"{source}.running_mean", f"{source}.running_var"}:
            kind = "BN"
        votes.setdefault(_place(norm), Counter())[kind] += 1
    return {norm: votes[_place(norm)].most_common(1)[0][0] for norm in norms}


def _place(norm: str) -> str:
    """The stem, the shortcut or a convolution of the block."""
    return re.search(r"stem|shortcut|conv\d", norm)[0]


def _describe(norms: dict[str, str]) -> str:
    """In the words of MODEL.GW.POSITIONS, B2 also for the first norm of a basic block."""
    kinds = Counter(norms.values())
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds, reverse=True))
    if "GN" in kinds:
        counts += "; a GW that was saved flat reads as GN, and becomes the same tensors"
    by_place = {_place(norm): kind for norm, kind in norms.items()}
    base = by_place["shortcut"]
    others = {place: kind for place, kind in by_place.items() if kind != base}
    if not others:
        return f"{base} everywhere ({counts})"
    digits = "".join(sorted(place[-1] for place in others if place != "stem"))
    if "conv3" not in by_place:
        digits = {"1": "2", "2": None}.get(digits, digits)
    if digits is None or len(kinds) > 2:
        places = ", ".join(f"{kind} at {place}" for place, kind in others.items())
        return f"at no MODEL.GW.POSITIONS: {places}, {base} elsewhere ({counts})"
    positions = "-".join(["S1"] * ("stem" in others) + [f"B{digits}"] * bool(digits))
    return f"{positions} {others.popitem()[1]} over {base} ({counts})"


def _rename(
    state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], network: str
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
        "missing": [sources[name] for name in sources.keys() - tensors.keys()],
        "left over": state.keys() - sources.values(),
        "misshapen": [
            f"{sources[name]} {tuple(tensor.shape)} instead of {shapes[name]}"
            for name, tensor in tensors.items()
            if tensor.shape != shapes[name]
        ],
        "no floating-point numbers": [n for n, t in state.items() if not t.is_floating_point()],
        "infinite or not a number, in float32": [
            n for n, t in state.items() if not t.float().isfinite().all()
        ],
        "negative variances": [n for n, t in state.items() if n.endswith("_var") and t.lt(0).any()],
    }
    found = [f"{what}: {_list(names)}" for what, names in problems.items() if names]
    if found:
        raise UsageError(f"not the tensors of a {network}; {'; '.join(found)}")
    # Copies, as a view would drag what lies around it into the file
    return {
        name: t.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for name, t in tensors.items()
    }


def _list(names: Collection[str]) -> str:
    """In order, and not all where they are many."""
    more = len(names) - _LISTED
    return ", ".join(sorted(names)[:_LISTED] + [f"{more} more"] * (more > 0))
