"""A config's model without its weights, and what its norms are given of an image."""

import builtins
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ..config import load_config
from ..errors import UsageError, building, one_line
from .advice import Shapes, describe
from .probe import watching

__all__ = ["analyze", "build_from_config"]

# The image size of Detectron2's model zoo, and the shape of the image where only a height is known
_HEIGHT, _WIDTH = 800, 1333


def build_from_config(
    config_file: str, opts: Sequence[str], trust: bool = False
) -> tuple[nn.Module, tuple[int, int]]:
    """
    Args:
        config_file: a YAML file, or a LazyConfig's .py file, whose `model` is built.
        opts: overrides: KEY VALUE ..., or of a LazyConfig key=value ...

    Returns:
        (model, (height, width)): on the CPU, with random weights; the size of a test image: of
        INPUT.MIN_SIZE_TEST, five to three unless INPUT.MAX_SIZE_TEST forbids.

    Raises:
        UsageError: the file cannot be read, has no such keys, or makes no model.
    """
    if config_file.endswith(".py"):
        return _build_lazy(config_file, opts), (_HEIGHT, _WIDTH)
    cfg = load_config(config_file, opts, trust)
    cfg.MODEL.DEVICE = "cpu"
    with building("the model"):
        model = build_model(cfg)
    height = cfg.INPUT.MIN_SIZE_TEST or _HEIGHT
    return model, (height, min(height * _WIDTH // _HEIGHT, cfg.INPUT.MAX_SIZE_TEST))


def _build_lazy(config_file: str, opts: Sequence[str]) -> nn.Module:
    import_function = builtins.__import__
    try:
        cfg = LazyConfig.load(config_file)
        cfg = LazyConfig.apply_overrides(cfg, list(opts))
    except Exception as error:  # of any kind: it is a Python program
        given = " ".join([config_file, *opts])
        raise UsageError(f"config {given} can't be loaded: {one_line(error)}") from error
    finally:
        builtins.__import__ = import_function  # which LazyConfig replaces, for good where it fails
    if "model" not in cfg:
        raise UsageError(f"config {config_file} has no model")
    with building("the model"):
        return instantiate(cfg.model)


def analyze(model: nn.Module, height: int, width: int) -> tuple[list[dict[str, Any]], int]:
    """
    Runs a detector on a blank image for the sizes in it, whatever its weights, in some seconds.

    Convolutions and linear layers give zeros: whatever depends on sizes alone is as in earnest.
    Regions are counted as in training: BATCH_SIZE_PER_IMAGE in the region heads, and of those the
    POSITIVE_FRACTION, the most that there can be, in mask and keypoint heads.

    Args:
        model: one of Detectron2's architectures, on the CPU. It is left in eval mode, with one
            proposal an image.

    Returns:
        (rows, flops): of :func:`describe`, of the norms in the order in which they run; and the
        multiply-adds of convolutions and linear layers, forward, an image in training.
    """
    model.eval()
    if isinstance(rpn := getattr(model, "proposal_generator", None), RPN):
        rpn.post_nms_topk = {True: 1, False: 1}
    shapes, flops = Shapes(), {}

    def count(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        # As many products as there are weights of a channel, for each value of the output, or of a
        # transposed convolution's input
        values = x if isinstance(module, nn.ConvTranspose2d) else y
        products = math.prod(module.weight.shape[1:])
        if regions := _regions(model, name):
            flops[name] = regions * math.prod(values.shape[1:]) * products
        else:
            flops[name] = flops.get(name, 0) + values.numel() * products

    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        _Zeros(),
        watching(model, shapes.look),
        watching(model, count, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)),
    ):
        warnings.filterwarnings("ignore", "torch.meshgrid")
        model([{"image": torch.zeros(3, height, width), "height": height, "width": width}])
    rows = []
    for name, (norm, of_calls) in shapes.of_norms.items():
        regions = _regions(model, name)
        # C4's region head runs a second time on the detections, which is no part of training
        rows.append(describe(name, norm, of_calls[:1] if regions else of_calls, regions))
    return rows, sum(flops.values())


def _regions(model: nn.Module, name: str) -> int | None:
    """How many regions of an image a module takes; None if it takes the image."""
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, ROIHeads) or not name.startswith("roi_heads."):
        return None
    if name.startswith(("roi_heads.mask_", "roi_heads.keypoint_")):
        return int(heads.batch_size_per_image * heads.positive_fraction)
    return heads.batch_size_per_image


class _Zeros(TorchFunctionMode):
    """Convolutions and linear layers give zeros of the size that they would give, at once."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function not in (F.conv2d, F.conv_transpose2d, F.linear):
            return function(*args, **(kwargs or {}))
        on_meta = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
        return torch.zeros(function(*on_meta[0], **on_meta[1]).shape)
