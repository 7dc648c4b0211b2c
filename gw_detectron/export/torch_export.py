"""A torch.export program, which PyTorch runs, compiles ahead of time or hands to other runtimes."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UsageError
from .detector import Detector

FILE = "model.pt2"
IMPORT = "import torch, torchvision  # torchvision registers the operators nms and roi_align"
RUN = """\
detector = torch.export.load({path!r}).module()
{outputs} = detector(torch.from_numpy(image))"""


def require() -> None:
    """
    Raises:
        UsageError: PyTorch is too old to follow a number of detections that depends on the image.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 7):
        raise UsageError(f"--format torch_export needs PyTorch 2.7; this is {torch.__version__}")


def smallest_side(detector: Detector) -> int:
    """Of an image: a map of a single column or row would be a case of its own to torch.export."""
    return detector.coarsest_stride + 1


def save(detector: Detector, image: Tensor, path: str) -> None:
    side = smallest_side(detector)
    height, width = torch.export.Dim("height", min=side), torch.export.Dim("width", min=side)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            detector, (image,), dynamic_shapes=({1: height, 2: width},), strict=False
        )
        torch.export.save(program, path)


def load(path: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()
