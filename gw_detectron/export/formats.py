"""The formats in which Detectron2's TracingAdapter of a detector is saved."""

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UsageError
from ..layers import GroupWhitening

OPSET = 17  # from 16 on RoiAlign can align half pixels as Detectron2 does


class Format:
    """
    Attributes:
        file: the name of the model's file.
        imports, run: the lines of Python that run it, from a numpy `image`; run is for str.format
            with the file's `path` and its `outputs`.
    """

    file: str
    imports = "import torch, torchvision  # torchvision registers the operators nms and roi_align"
    run: str

    def require(self) -> None:
        """
        Raises:
            UsageError: what the format needs is not installed.
        """

    def smallest_side(self, model: nn.Module) -> int:
        """Of the images that the exported model takes, in pixels."""
        return 1

    def save(self, adapter: TracingAdapter, outputs: Sequence[str], path: str) -> None:
        """
        Args:
            adapter: of a single image; its model is changed.
            outputs: the names of what it returns.
        """
        raise NotImplementedError

    def load(self, path: str) -> Callable[[Tensor], Sequence[Tensor]]:
        """What runs the file, from an image to the adapter's outputs."""
        raise NotImplementedError


class TorchScript(Format):
    """PyTorch runs it in Python and C++, on a CPU or a GPU."""

    file = "model.ts"
    run = "detector = torch.jit.load({path!r})\n{outputs} = detector(torch.from_numpy(image))"

    def save(self, adapter: TracingAdapter, outputs: Sequence[str], path: str) -> None:
        for module in list(adapter.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, GroupWhitening):
                    # Compiled: a trace would keep the device of the matrices that it makes
                    setattr(module, name, torch.jit.script(child))
        with mock.patch("detectron2.structures.ImageList.from_tensors", _padded):
            torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False).save(path)

    def load(self, path: str) -> Callable[[Tensor], Sequence[Tensor]]:
        return torch.jit.load(path)


class ONNX(Format):
    """The operators of the standard alone, for ONNX Runtime and others."""

    file = "model.onnx"
    imports = "import onnxruntime"
    run = (
        "session = onnxruntime.InferenceSession({path!r})\n"
        '{outputs} = session.run(None, {{"image": image}})'
    )

    def require(self) -> None:
        missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
        if missing:
            raise UsageError(
                f"--format onnx needs {' and '.join(missing)}: pip install onnx onnxruntime"
            )

    def save(self, adapter: TracingAdapter, outputs: Sequence[str], path: str) -> None:
        if any(getattr(module, "method", "") == "zca" for module in adapter.model.modules()):
            raise UsageError(
                "GW(method=zca) takes an eigendecomposition, for which ONNX has no operator; "
                "torchscript and torch_export have one, or train with GW's default method"
            )
        for module in getattr(adapter.model, "roi_heads", nn.Module()).modules():
            if isinstance(module, nn.GroupNorm):  # GroupWhitening among them
                _never_empty(module)
        # The newer exporter (dynamo=True) takes minutes for a detector. The older one prints its
        # whole graph where it fails.
        with _without_output():
            torch.onnx.export(
                adapter,
                adapter.flattened_inputs,
                path,
                input_names=["image"],
                output_names=list(outputs),
                dynamic_axes={
                    "image": {1: "height", 2: "width"},
                    **{name: {0: "detections"} for name in outputs},
                },
                opset_version=OPSET,
                dynamo=False,
            )

    def load(self, path: str) -> Callable[[Tensor], Sequence[Tensor]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def detect(image: Tensor) -> Sequence[Tensor]:
            return [torch.from_numpy(out) for out in session.run(None, {"image": image.numpy()})]

        return detect


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Without what the process prints, from C++ too."""
    sys.stdout.flush()
    output = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(output, 1)
        os.close(output)


def _never_empty(norm: nn.Module) -> None:
    """Gives norm a region more, since ONNX Runtime can't reshape to groups where there is none."""
    norm.register_forward_pre_hook(
        lambda _, args: F.pad(args[0], [0, 0] * (args[0].dim() - 1) + [0, 1])
    )
    norm.register_forward_hook(lambda _, args, result: result[:-1])


class TorchExport(Format):
    """A torch.export program: PyTorch runs it, compiles it, or hands it to other runtimes."""

    file = "model.pt2"
    run = (
        "detector = torch.export.load({path!r}).module()\n"
        "{outputs} = detector(torch.from_numpy(image))"
    )

    def require(self) -> None:
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if version < (2, 7):  # it can't follow a number of detections that depends on the image
            raise UsageError(
                f"--format torch_export needs PyTorch 2.7; this is {torch.__version__}"
            )

    def smallest_side(self, model: nn.Module) -> int:
        # A feature map of a single row or column would be a case of its own to torch.export
        return max(shape.stride for shape in model.backbone.output_shape().values()) + 1

    def save(self, adapter: TracingAdapter, outputs: Sequence[str], path: str) -> None:
        side = self.smallest_side(adapter.model)
        height, width = (torch.export.Dim(name, min=side) for name in ("height", "width"))
        with _without_decisions():
            program = torch.export.export(
                adapter,
                adapter.flattened_inputs,
                dynamic_shapes=(({1: height, 2: width},),),
                strict=False,
            )
        torch.export.save(program, path)

    def load(self, path: str) -> Callable[[Tensor], Sequence[Tensor]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path).module()


@contextlib.contextmanager
def _without_decisions() -> Iterator[None]:
    """
    Around torch.export, which can't follow where Python decides by values or by a number of boxes,
    as PyTorch and Detectron2 do here; torch.jit.trace leaves these decisions out by itself.
    """
    proposals = "detectron2.modeling.proposal_generator.proposal_utils"
    pooler_format = "detectron2.modeling.poolers.convert_boxes_to_pooler_format"
    with (
        _NoQuestions(),
        patch_builtin_len(["detectron2.structures.instances", proposals]),
        mock.patch(f"{proposals}._is_tracing", lambda: True),
        mock.patch(pooler_format, lambda boxes: F.pad(boxes[0].tensor, [1, 0])),  # of one image
        mock.patch("detectron2.structures.ImageList.from_tensors", _padded),
        mock.patch("torchvision.ops.boxes._batched_nms_coordinate_trick", _nms_by_class),
        # Where it rounds, it asks whether there is a remainder
        mock.patch("torch._meta_registrations.div_rtn", lambda x, y: x // y),
    ):
        yield


class _NoQuestions(TorchFunctionMode):
    """Detectron2 asks whether all values are finite, and whether there is a box: say yes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.all and len(args) == 1 and not kwargs:
            return True
        return 1 if function is torch.Tensor.numel else function(*args, **(kwargs or {}))


def _padded(
    images: Sequence[Tensor], size_divisibility: int = 0, *args, padding_constraints=None
) -> ImageList:
    """A single image with zeros below and right, by arithmetic on its size alone."""
    stride = (padding_constraints or {}).get("size_divisibility", size_divisibility) or 1
    height, width = images[0].shape[-2:]
    below, right = ((side + stride - 1) // stride * stride - side for side in (height, width))
    return ImageList(F.pad(images[0], [0, right, 0, below])[None], [(height, width)])


def _nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    # torch.export takes the boxes that remain for two or more. Two of no size, last by their score,
    # neither suppress nor are suppressed.
    boxes, scores = F.pad(boxes, [0, 0, 0, 2]), F.pad(scores, [0, 2], value=-torch.inf)
    offsets = F.pad(classes, [0, 2]) * (boxes.max() + 1)  # moves the classes apart
    return torchvision.ops.nms(boxes + offsets[:, None], scores, threshold)[:-2]


FORMATS: dict[str, Format] = {
    "torchscript": TorchScript(),
    "onnx": ONNX(),
    "torch_export": TorchExport(),
}
