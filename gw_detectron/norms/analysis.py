"""A config's model without its weights: what its norms are given of an image, as a report."""

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from tabulate import tabulate
from torch import Tensor, nn

from ..config import load_config
from ..errors import UsageError, building, one_line
from .advice import describe, notes, sample_shape
from .probe import watching

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
        try:
            cfg = LazyConfig.apply_overrides(LazyConfig.load(config_file), list(opts))
        except Exception as error:  # of any kind: it is a Python program
            given = " ".join([config_file, *opts])
            raise UsageError(f"config {given} can't be loaded: {one_line(error)}") from error
        with building("the model"):
            return instantiate(cfg.model), (_HEIGHT, _WIDTH)
    cfg = load_config(config_file, opts, trust)
    cfg.MODEL.DEVICE = "cpu"
    with building("the model"):
        model = build_model(cfg)
    height = cfg.INPUT.MIN_SIZE_TEST or _HEIGHT
    return model, (height, min(height * _WIDTH // _HEIGHT, cfg.INPUT.MAX_SIZE_TEST))


def analyze(model: nn.Module, height: int, width: int) -> tuple[list[dict[str, Any]], int]:
    """
    Runs a detector on a blank image for the sizes in it, whatever its weights.

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
    shapes, flops = defaultdict(list), defaultdict(list)

    def look(name: str, norm: nn.Module, x: Tensor, _: Tensor) -> None:
        shapes[name, norm].append(sample_shape(norm, x))

    def count(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        # As many products as there are weights of a channel, for each value of the output, or of a
        # transposed convolution's input
        values = x if isinstance(module, nn.ConvTranspose2d) else y
        shape = values.shape[1:] if name.startswith("roi_heads.") else values.shape
        flops[name].append(math.prod(shape) * math.prod(module.weight.shape[1:]))

    counted = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    with torch.no_grad(), watching(model, look), watching(model, count, counted):
        model([{"image": torch.zeros(3, height, width), "height": height, "width": width}])

    def in_training(name: str, calls: list[Any]) -> tuple[list[Any], int]:
        """The calls that a training step makes too, and how many samples an image has in each."""
        if not name.startswith("roi_heads."):
            return calls, 1
        heads, of_objects = model.roi_heads, ("roi_heads.mask_", "roi_heads.keypoint_")
        fraction = heads.positive_fraction if name.startswith(of_objects) else 1
        # C4's region head runs a second time on the detections, which is no part of training
        return calls[:1], int(heads.batch_size_per_image * fraction)

    rows = [describe(*of, *in_training(of[0], calls)) for of, calls in shapes.items()]
    calls = (in_training(*of_module) for of_module in flops.items())
    return rows, sum(regions * sum(of_sample) for of_sample, regions in calls)


# ---- As text ---------------------------------------------------------------------------------

_PERCENT = dict.fromkeys(("1/10", "1/g", "1/10g"), ".1%")
_FORMATS = {"share": ".2%", "limit": ".1f", "+GFLOPs": ".2f", "+MB": ".2f", **_PERCENT}


def analysis_report(rows: Sequence[dict[str, Any]], flops: int) -> str:
    """
    The norms in a table, totals, and notes on what should be changed.

    Args:
        rows, flops: from :func:`analyze`.
    """
    formats = [_FORMATS.get(column, "") for column in (rows[0] if rows else ())]
    table = tabulate(rows, "keys", floatfmt=formats, numalign="right", missingval="-")
    kinds, verdicts = (Counter(row[column] for row in rows) for column in ("norm", "verdict"))
    of_kinds = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    of_verdicts = ", ".join(f"{verdicts[v]} {v}" for v in ("fine", "tight", "over the limit"))
    totals = f"{len(rows)} norms: {of_kinds}. GN and GW: {of_verdicts}."
    if "GW" in kinds:
        gflops, mb = (sum(row[column] or 0 for row in rows) for column in ("+GFLOPs", "+MB"))
        totals += (
            f"\nGW instead of GN, an image in training: {gflops:+.1f} GFLOPs forward to the "
            f"{flops / 1e9:.1f} of convolutions and linear layers ({1e9 * gflops / flops:+.1%}), "
            f"{mb:+.1f} MB."
        )
    paragraphs = [textwrap.fill(p, 100, break_on_hyphens=False) for p in notes(rows)]
    return "\n\n".join([table, totals, *paragraphs])


def save_csv(rows: Sequence[dict[str, Any]], path: str) -> None:
    """
    Writes a header and a line a norm, a number a cell, unrounded; empty where there is none.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        pd.DataFrame(rows, dtype=object).to_csv(path, index=False)
    except OSError as error:
        raise UsageError(f"--csv {path}: {error}") from error
