"""A detector run on one image for the sizes in it, without the arithmetic."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROIHeads
from fvcore.nn.jit_handles import conv_flop_count
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layers import NormLayer, SizeRecorder

__all__ = ["Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    """
    Attributes:
        layers: the norms, in the order in which they run.
        flops: multiply-adds of the convolutions and linear layers, forward, an image in training.
    """

    layers: list[NormLayer]
    flops: int


def trace(model: nn.Module, height: int, width: int) -> Trace:
    """
    Runs a detector on a blank image, whatever its weights, in a second or two.

    Convolutions, linear layers and poolers give zeros, norms their input: whatever depends on sizes
    alone is as in earnest. What depends on values (proposals, detections) is computed from zeros.

    Regions are counted as in training: BATCH_SIZE_PER_IMAGE in the region heads, and of those the
    POSITIVE_FRACTION, the most that there can be, in mask and keypoint heads.

    Args:
        model: one of Detectron2's architectures, on the CPU.
    """
    was_training = model.training
    model.eval()
    recorder = SizeRecorder(model)
    try:
        with torch.no_grad(), _without_arithmetic(model, recorder) as arithmetic:
            image = torch.zeros(3, height, width)
            model([{"image": image, "height": height, "width": width}])
    finally:
        recorder.remove()
        model.train(was_training)
    layers = []
    for layer in recorder.layers():
        regions = _regions(model, layer.name)
        # C4's region head runs a second time on the detections, which is no part of training
        sizes = layer.sizes if regions is None else layer.sizes[:1]
        layers.append(replace(layer, sizes=sizes, regions=regions))
    return Trace(layers, sum(arithmetic.flops.values()))


def _regions(model: nn.Module, name: str) -> int | None:
    """How many regions of an image a module takes; None if it takes the image."""
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, ROIHeads) or not name.startswith("roi_heads."):
        return None
    if name.startswith(("roi_heads.mask_", "roi_heads.keypoint_")):
        return int(heads.batch_size_per_image * heads.positive_fraction)
    return heads.batch_size_per_image


@contextmanager
def _without_arithmetic(model: nn.Module, recorder: SizeRecorder) -> Iterator["_ZerosInstead"]:
    mode = _ZerosInstead()
    replaced = dict.fromkeys(recorder.norms.values(), lambda x: x)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            hook = mode.entering(name, _regions(model, name))
            handles.append(module.register_forward_pre_hook(hook))
        elif isinstance(module, ROIPooler):
            replaced[module] = _pooled_zeros(module.output_size)
    for module, forward in replaced.items():
        module.forward = forward
    try:
        with mode, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")
            yield mode
    finally:
        for module in replaced:
            del module.forward  # the class's own is left
        for handle in handles:
            handle.remove()


def _pooled_zeros(output_size: tuple[int, int]) -> Callable[..., Tensor]:
    """A ROIPooler's forward that doesn't look."""

    def forward(features: Sequence[Tensor], boxes: Sequence) -> Tensor:
        return features[0].new_zeros(sum(map(len, boxes)), features[0].shape[1], *output_size)

    return forward


class _ZerosInstead(TorchFunctionMode):
    """
    Convolutions and linear layers give zeros of the right size, and are counted.

    Attributes:
        flops: by the layer's name, of an image; see :class:`Trace`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[str, int] = {}
        self._name, self._regions = "", None

    def entering(self, name: str, regions: int | None) -> Callable[..., None]:
        """A pre-hook of a layer, which takes that many regions of an image (None: the image)."""

        def enter(*_) -> None:
            self._name, self._regions = name, regions

        return enter

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in (F.conv2d, F.conv_transpose2d, F.linear):
            return function(*args, **kwargs)
        on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        shape = function(*on_meta, **kwargs).shape
        x, weight = args[:2]
        self._count(function, x.shape, weight.shape, shape)
        return x.new_zeros(shape)

    def _count(self, function, x_shape, weight_shape, shape) -> None:
        if self._regions is not None:
            x_shape, shape = (self._regions, *x_shape[1:]), (self._regions, *shape[1:])
        if function is F.linear:
            flops = math.prod(x_shape) * weight_shape[0]
        else:
            is_transposed = function is F.conv_transpose2d
            flops = conv_flop_count(x_shape, weight_shape, shape, is_transposed)
        before = self.flops.get(self._name, 0) if self._regions is None else 0  # see trace
        self.flops[self._name] = before + flops
