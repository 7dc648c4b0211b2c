"""TorchScript, which PyTorch runs in Python and C++, on a CPU or a GPU."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..layers import GroupWhitening
from .detector import Detector

FILE = "model.ts"
IMPORT = "import torch, torchvision  # torchvision registers the operators nms and roi_align"
RUN = """\
detector = torch.jit.load({path!r})
{outputs} = detector(torch.from_numpy(image))"""


def require() -> None:
    """Nothing but PyTorch."""


def smallest_side(detector: Detector) -> int:
    return 1


def save(detector: Detector, image: Tensor, path: str) -> None:
    """Traces detector on image. The trace holds no size: what it does fits every image."""
    detector = copy.deepcopy(detector)
    _script_norms(detector)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # Detectron2's assertions, which a trace leaves out
        torch.jit.trace(detector, image, check_trace=False).save(path)


def load(path: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return torch.jit.load(path)


def _script_norms(module: nn.Module) -> None:
    """Compiles every GroupWhitening: a trace would keep the device of the matrices it makes."""
    for name, child in module.named_children():
        if isinstance(child, GroupWhitening):
            setattr(module, name, torch.jit.script(child))
        else:
            _script_norms(child)
