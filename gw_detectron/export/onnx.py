"""ONNX with the operators of the standard alone, for ONNX Runtime and others."""

import contextlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import UsageError
from ..layers import GroupWhitening
from .detector import Detector

FILE = "model.onnx"
IMPORT = "import onnxruntime"
RUN = """\
session = onnxruntime.InferenceSession({path!r})
{outputs} = session.run(None, {{"image": image}})"""

OPSET = 17  # from 16 on RoiAlign can align half pixels as Detectron2 does


def require() -> None:
    """
    Raises:
        UsageError: onnx or onnxruntime is not installed.
    """
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(
            f"--format onnx needs {' and '.join(missing)}: pip install onnx onnxruntime"
        )


def smallest_side(detector: Detector) -> int:
    return 1


def save(detector: Detector, image: Tensor, path: str) -> None:
    """
    Raises:
        UsageError: detector has a layer that ONNX has no operator for.
    """
    if any(
        getattr(m, "method", "") == "zca"
        for m in detector.modules()
        if isinstance(m, GroupWhitening)
    ):
        raise UsageError(
            "GW(method=zca) takes an eigendecomposition, for which ONNX has no operator; "
            "torchscript and torch_export have one, or train with GW's default method"
        )
    # PyTorch's newer exporter takes minutes for a detector and gives the same.
    legacy = (
        {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    )
    with warnings.catch_warnings(), torch.no_grad(), _without_output():
        warnings.simplefilter("ignore")  # that it is the older one, and as in torchscript.py
        torch.onnx.export(
            detector,
            (image,),
            path,
            input_names=["image"],
            output_names=list(detector.output_names),
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                **{name: {0: "detections"} for name in detector.output_names},
            },
            opset_version=OPSET,
            **legacy,
        )


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Around the exporter, which prints its whole graph to the process's output when it fails."""
    sys.stdout.flush()
    output = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(output, 1)
        os.close(output)


def load(path: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What runs the file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def detect(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

    return detect
