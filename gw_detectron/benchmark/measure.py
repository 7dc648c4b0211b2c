"""
The work of a model's GW layers by GW and by other norms, that of whole models that differ in their
norms, and on a GPU both in several types.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from detectron2.layers import get_norm
from torch import nn
from tqdm import tqdm

from ..config import flatten
from ..errors import UsageError
from ..layers import GroupWhitening
from ..runs.config_norms import parse_entries
from .costs import Work, copy_bandwidth, in_turns, layer_work, model_work
from .results import Results
from .textbook import TextbookGroupWhitening, use_textbook
from .workload import DTYPES, LayerInput, Setup, build, find_inputs

# GW in every part of Mask R-CNN that takes a norm
LAYERS_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw.yaml"
LAYERS_OPTS = (
    "MODEL.ROI_BOX_HEAD.NUM_CONV", "4", "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
    "MODEL.ROI_BOX_HEAD.NORM", "GW",
)  # fmt: skip

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

_NORMS = ("GN", *_BACKENDS, "textbook", "FrozenBN")
_COMPILED = ("GN", "GW Triton", "textbook", "compiled")
# Of the benchmark of a GPU: name -> title, type, the norms of layers or none for whole models, what
# matters most first
PARTS: dict[str, tuple[str, str, Sequence[str]]] = {
    "layers-bfloat16": ("Layers, bfloat16", "bfloat16", _NORMS),
    "models-amp": ("Whole models, mixed precision", "float16", ()),  # as SOLVER.AMP has it
    "layers-tf32": ("Layers, TF32", "tf32", _NORMS),
    "models-tf32": ("Whole models, TF32", "tf32", ()),
    "layers-float32": ("Layers, float32", "float32", _NORMS),
    "compiled": ("Layers with torch.compile, bfloat16", "bfloat16", _COMPILED),
    "models-float32": ("Whole models, float32", "float32", ()),
}
_EVERYWHERE = (
    "{0} everywhere: MODEL.BACKBONE.NAME build_resnet_fpn_backbone MODEL.RESNETS.NORM {0} "
    "MODEL.FPN.NORM {0} MODEL.ROI_MASK_HEAD.NORM {0}"
)
_MODELS = (
    "FrozenBN: MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM '' MODEL.ROI_MASK_HEAD.NORM ''",
    _EVERYWHERE.format("GN"),
    "GW at S1-B2: MODEL.FPN.NORM '' MODEL.ROI_MASK_HEAD.NORM ''",
    _EVERYWHERE.format("GW"),
)


def measure_layers(
    setup: Setup, inputs: Sequence[LayerInput], norms: Sequence[str]
) -> Iterator[Results]:
    """
    Yields after each input the results so far, the same every time. What fails is noted and left
    out.

    Args:
        inputs: see :func:`find_inputs`.
        norms: of NORMS, the baseline first.

    Raises:
        UsageError: there is no GPU for what asks for one.
    """
    setup.set_precision()
    on_gpu, dtype = setup.device == "cuda", DTYPES[setup.dtype]
    results = Results(setup.about(), norms)
    if on_gpu:
        bandwidth = copy_bandwidth()
        results.about["copy bandwidth"] = f"{bandwidth / 1e9:.0f} GB/s"
        results.bandwidth = bandwidth / dtype.itemsize
    for count, at in enumerate(tqdm(inputs, unit="input"), start=1):
        if "compiled" in norms:
            torch.compiler.reset()  # or it would give up after some shapes
        x = torch.randn(at.shape, device=setup.device, dtype=dtype)
        makers = {norm: partial(_norm_work, norm, at.layer, x) for norm in norms}
        *_, costs = in_turns(makers, setup.rounds, on_gpu, partial(results.fail, at=at))
        results.costs.append((at, costs))
        results.about["measured"] = f"{count} of {len(inputs)} inputs"
        yield results
        if time.monotonic() > setup.deadline:
            break


def _norm_work(norm: str, layer: GroupWhitening, x: torch.Tensor) -> Work:
    return layer_work(NORMS[norm](layer).to(x.device, x.dtype), x, _BACKENDS.get(norm))


def measure_models(
    setup: Setup,
    norms: Sequence[str] = (),
    textbook: bool = False,
    backends: Mapping[str, str | None] = {"": None},  # noqa: B006
) -> Iterator[Results]:
    """
    Yields after each round the results so far, the same every time, of Detectron2's own training
    step and inference. A model that fails is noted and left out.

    Args:
        norms: entries, see :func:`parse_entries`; none to take the config as it is.
        textbook: whether to measure each model with GW also with the textbook's layer.
        backends: what is added to the name of a model with GW -> what computes GW.

    Raises:
        UsageError: on a mistake in any of these.
    """
    setup.set_precision()
    dtype, images, makers = DTYPES[setup.dtype], setup.images(), {}
    if dtype is not torch.float32 and setup.device == "cpu":
        raise UsageError(
            f"--dtype {setup.dtype}: Detectron2's mixed precision needs a GPU; the layers can be "
            "measured without one"
        )
    entries = parse_entries(norms, flatten(setup.config()))
    configs = {entry.name: setup.config(entry.overrides) for entry in entries}
    configs = configs or {Path(setup.config_file).stem: setup.config()}
    variants = [(*backend, False) for backend in backends.items()]
    variants += [(", textbook", None, True)] * textbook
    for name, cfg in configs.items():
        for suffix, backend, is_textbook in variants:
            model = build(cfg, images)
            if not any(isinstance(module, GroupWhitening) for module in model.modules()):
                makers[name] = partial(model_work, model, cfg, images, dtype)
                break
            if is_textbook:
                use_textbook(model)
            makers[name + suffix] = partial(model_work, model, cfg, images, dtype, backend)
    if textbook and list(makers) == list(configs):
        raise UsageError("--textbook: there is no GW layer in any of the models")
    results = Results(setup.about(), list(makers))
    height, width = images[0]["image"].shape[1:]
    results.about["images"] = f"{len(images)} of {height}x{width}"
    turns = in_turns(makers, setup.rounds, setup.device == "cuda", results.fail)
    for count, costs in enumerate(tqdm(turns, total=setup.rounds, unit="round"), start=1):
        results.costs = [(None, costs)]
        results.about["measured"] = f"{count} of {setup.rounds} rounds"
        yield results
        if time.monotonic() > setup.deadline:
            break


def measure_parts(setup: Setup, names: Sequence[str]) -> Iterator[dict[str, Results]]:
    """
    Yields the results so far, by the parts' titles: after each input of layers, which are those of
    one image, and after each round of models, with two. A part that fails is noted.

    Args:
        names: of PARTS.

    Raises:
        UsageError: on a mistake in the setup.
    """
    setup.set_precision()
    setup.config()
    parts: dict[str, Results] = {}
    inputs: list[LayerInput] = []
    backends = {f", {name.removeprefix('GW ')}": backend for name, backend in _BACKENDS.items()}
    for name in names:
        title, dtype, norms = PARTS[name]
        part = replace(setup, dtype=dtype, num_images=1 if norms else 2)
        parts[title] = Results({}, ())
        try:
            if time.monotonic() > setup.deadline:
                parts[title].about["measured"] = "nothing, the time was up"
                yield parts
            elif norms:
                part = replace(part, opts=(*LAYERS_OPTS, *setup.opts))
                inputs = inputs or find_inputs(part)
                for parts[title] in measure_layers(part, inputs, norms):
                    yield parts
            else:
                for parts[title] in measure_models(part, _MODELS, backends=backends):
                    yield parts
        except Exception as error:
            parts[title].fail("this part", error)
            yield parts
