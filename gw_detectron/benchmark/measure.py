"""
The work of a model's GW layers by GW and by other norms, that of whole models that differ in their
norms, and on a GPU both in several types.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import nn

from ..config import flatten, load_config
from ..errors import UsageError
from ..layers import GroupWhitening
from ..model_zoo import get_config_file
from ..runs.config_norms import parse_entries
from .costs import ALONE, INFERENCE, STEP, Work, copy_bandwidth, in_turns, layer_work, model_work
from .textbook import TextbookGroupWhitening, use_textbook
from .workload import LayerInput, benchmark_config, build, find_inputs, noise_images

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # whose matrix products may use TF32
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

# Name -> a norm in the place of a GW layer
NORMS: dict[str, Callable[[GroupWhitening], nn.Module]] = {
    "GW": copy.deepcopy,
    "GW Triton": copy.deepcopy,
    "GW PyTorch": copy.deepcopy,
    "textbook": lambda layer: TextbookGroupWhitening(copy.deepcopy(layer)),
    "compiled": lambda layer: torch.compile(NORMS["textbook"](layer), dynamic=False),
    "GN": lambda layer: get_norm("GN", layer.num_channels),
    "FrozenBN": lambda layer: get_norm("FrozenBN", layer.num_channels),
}
# Those that a backend computes; GW has the one that GW_BACKEND names
_BACKENDS = {"GW Triton": "triton", "GW PyTorch": "torch"}

MASK_RCNN = get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw.yaml")
# With them GW is in every part of Mask R-CNN that takes a norm
GW_IN_BOX_HEAD = (
    "MODEL.ROI_BOX_HEAD.NUM_CONV", "4", "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
    "MODEL.ROI_BOX_HEAD.NORM", "GW",
)  # fmt: skip
_MODELS = (
    "FrozenBN: MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM '' MODEL.ROI_MASK_HEAD.NORM ''",
    "GN",
    "GW at S1-B2: MODEL.FPN.NORM '' MODEL.ROI_MASK_HEAD.NORM ''",
    "GW",
)
# Of the benchmark of a GPU: whether of layers or of models, and the type, what matters most first
_PARTS = (
    ("layers", "bfloat16"), ("models", "float16"),  # as SOLVER.AMP has it
    ("layers", "tf32"), ("models", "tf32"), ("layers", "float32"), ("models", "float32"),
)  # fmt: skip


def measure_layers(
    inputs: Sequence[LayerInput], norms: Sequence[str], device: str, dtype: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """
    Yields the rows of :func:`in_turns` for every input, with "part" and "input". On a GPU the last
    name is "floor": the time of a copy that moves as much as GW has to (docs/performance.md).

    Args:
        inputs: see :func:`find_inputs`.
        norms: of NORMS, the baseline first.
        device: of the inputs' model.
        dtype: of DTYPES.

    Raises:
        UsageError: TF32 is asked of a CPU.
    """
    on_gpu = _set_precision(device, dtype)
    bandwidth = copy_bandwidth() if on_gpu else math.nan
    for at in inputs:
        torch.compiler.reset()  # or it would give up after some shapes
        x = torch.randn(at.shape, device=device, dtype=DTYPES[dtype])
        place = {"part": f"Layers, {dtype}", "input": str(at)}
        makers = {norm: partial(_norm_work, norm, at.layer, x) for norm in norms}
        yield from in_turns(makers, rounds, on_gpu, **place)
        for quantity, tensors in {INFERENCE: 3, STEP: 8, ALONE: 8}.items() if on_gpu else ():
            row = {"name": "floor", "quantity": quantity, "round": 0}
            yield {**place, **row, "value": tensors * x.nbytes / bandwidth}


def _norm_work(norm: str, layer: GroupWhitening, x: torch.Tensor) -> Work:
    return layer_work(NORMS[norm](layer).to(x.device, x.dtype), x, _BACKENDS.get(norm))


def measure_models(
    cfg: CfgNode,
    norms: Sequence[str],
    dtype: str,
    num_images: int,
    rounds: int,
    ways: Sequence[str] = ("GW",),
) -> Iterator[dict[str, Any]]:
    """
    Yields the rows of :func:`in_turns`, with "part" and "input", of Detectron2's own training step
    and inference.

    Args:
        cfg: see :func:`benchmark_config`.
        norms: entries, see :func:`parse_entries`; none to take the config as it is.
        dtype: of DTYPES; a half type is that of mixed precision.
        ways: of computing GW, by NORMS: a model with GW is measured with each.

    Raises:
        UsageError: on a mistake in any of these.
    """
    on_gpu = _set_precision(cfg.MODEL.DEVICE, dtype)
    if DTYPES[dtype] is not torch.float32 and not on_gpu:
        raise UsageError(
            f"--dtype {dtype}: Detectron2's mixed precision needs a GPU; the layers can be "
            "measured without one"
        )
    images, makers = noise_images(cfg, num_images), {}
    entries = {entry.name: entry.overrides for entry in parse_entries(norms, flatten(cfg))}
    for name, overrides in (entries or {"the config": ()}).items():
        changed = load_config(opts=overrides, cfg=cfg.clone())
        for way in ways:
            model = build(changed, images)
            arguments = model, changed, images, DTYPES[dtype], _BACKENDS.get(way)
            if not any(isinstance(module, GroupWhitening) for module in model.modules()):
                makers[name] = partial(model_work, *arguments)
                break
            if way == "textbook":
                use_textbook(model)
            suffix = "" if way == "GW" else f", {way.removeprefix('GW ')}"
            makers[name + suffix] = partial(model_work, *arguments)
    size = "x".join(map(str, images[0]["image"].shape))
    place = {"part": f"Whole models, {dtype}", "input": f"{num_images}x{size}"}
    yield from in_turns(makers, rounds, on_gpu, **place)


def measure_gpu(opts: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """
    Yields the rows of Mask R-CNN's layers, for one image, and of whole models, for two.

    Raises:
        UsageError: on a mistake in the overrides.
    """
    cfg = benchmark_config(MASK_RCNN, opts)
    inputs = find_inputs(benchmark_config(MASK_RCNN, [*GW_IN_BOX_HEAD, *opts]))
    norms = ("GN", *_BACKENDS, "textbook", "FrozenBN")
    for part, dtype in _PARTS:
        if part == "layers":
            yield from measure_layers(inputs, norms, cfg.MODEL.DEVICE, dtype, rounds)
        else:
            yield from measure_models(cfg, _MODELS, dtype, 2, rounds, tuple(_BACKENDS))


def _set_precision(device: str, dtype: str) -> bool:
    """Makes PyTorch compute float32 products as the dtype says; returns whether it is on a GPU."""
    on_gpu = torch.device(device).type == "cuda"
    if dtype == "tf32" and not on_gpu:
        raise UsageError("--dtype tf32 is for a GPU; the CPU takes float32")
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    return on_gpu
