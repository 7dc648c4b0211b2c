"""From a PyTorch file of a ResNet to one that Detectron2's checkpointer loads into a backbone."""

import os
import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..files import whole_file
from .resnet import check, recognise, rename
from .torch_file import read_state_dict

_AUTHOR = "gw_detectron"


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
    _check_target(source, target, overwrite)
    state = read_state_dict(source)
    try:
        layout = recognise(state)
        check(state, layout)
        tensors = rename(_to_float32(state), layout)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    if drop_classifier:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("linear.")}
    _write(tensors, target)
    dropped = " (dropped)" if drop_classifier and layout.num_classes else ""
    return (
        f"{layout.describe()}{dropped}\n"
        f"Norms: {layout.describe_norms()}; {len(tensors)} tensors in {target}"
    )


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.suffix not in (".pth", ".pkl"):
        raise UsageError(f"{target}: the file to write must end in .pth or .pkl")
    if target.is_dir():
        raise UsageError(f"{target}: the file to write is a folder")
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target}: the file to write is the one to read; name another")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; to replace it, add --overwrite")


def _to_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies without BN's counters; no tensor of them drags another's memory into the file."""
    tensors = {n: t for n, t in tensors.items() if not n.endswith(".num_batches_tracked")}
    wrong = [name for name, tensor in tensors.items() if not _is_dense_float(tensor)]
    if wrong:
        raise UsageError(f"not tensors of plain floating-point numbers: {', '.join(wrong)}")
    tensors = {
        name: tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for name, tensor in tensors.items()
    }
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UsageError(f"infinite or not a number, in float32: {', '.join(broken)}")
    negative = [n for n, tensor in tensors.items() if n.endswith("_var") and tensor.lt(0).any()]
    if negative:
        raise UsageError(f"negative variances: {', '.join(negative)}")
    return tensors


def _is_dense_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _write(tensors: dict[str, Tensor], target: Path) -> None:
    content = {"__author__": _AUTHOR, "matching_heuristics": True}
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
