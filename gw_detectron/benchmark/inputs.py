"""What the GW layers of a model take, read off the running model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..layers import GroupWhitening, set_backend
from ..layers.backend import backend_for

__all__ = ["LayerInput", "find_inputs", "require_triton"]


@dataclass(frozen=True)
class LayerInput:
    """
    What one or several GW layers with equal options take.

    Attributes:
        shape: (N, C, *spatial).
        layer: the first of them.
        names: of all of them in the model.
    """

    shape: tuple[int, ...]
    layer: GroupWhitening
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        return "x".join(map(str, self.shape))


def find_inputs(model: nn.Module, images: Sequence[dict[str, Any]]) -> list[LayerInput]:
    """
    Every distinct input of the model's GW layers in a training step, in the order of their use.

    Nothing is whitened for it: a layer gives back what it takes, which has the same shape.

    Args:
        images: a batch of the model, with ground truth.
    """
    name_of = {m: name for name, m in model.named_modules() if isinstance(m, GroupWhitening)}
    found: dict[tuple, list[GroupWhitening]] = {}

    def record(layer: GroupWhitening, x: Tensor) -> Tensor:
        layers = found.setdefault((tuple(x.shape), layer.extra_repr()), [])
        if layer not in layers:
            layers.append(layer)
        return x

    for layer in name_of:
        layer.forward = partial(record, layer)
    model.train()
    with torch.no_grad(), EventStorage():
        model(images)
    for layer in name_of:
        del layer.forward
    return [
        LayerInput(shape, layers[0], tuple(name_of[layer] for layer in layers))
        for (shape, _), layers in found.items()
    ]


def require_triton(x: Tensor, num_groups: int) -> None:
    """
    Chooses Triton's kernels.

    Raises:
        RuntimeError: they do not compute x, and PyTorch would do it in their place.
        ValueError: Triton is not installed.
    """
    set_backend("triton")
    if "triton" not in backend_for(x, num_groups).__name__:
        raise RuntimeError(
            "Triton's kernels do not run here: they need a GPU or TRITON_INTERPRET=1, and an input "
            "that they cover"
        )
