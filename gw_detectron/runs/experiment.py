"""Which experiment a config describes: its name, what is compared with it, the paper's figures."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import flatten
from ..model_zoo import get_config
from .config_norms import norms, stock_backbone

__all__ = ["config_label", "is_incidental", "norm_details", "paper_figures", "row_of"]

Config = Mapping[str, Any]  # by full keys, as Run.config

# Where, when and how often it ran, and what it is called: no part of the experiment
_INCIDENTAL = (
    "SEED",
    "OUTPUT_DIR",
    "VERSION",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "GLOBAL.",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
)
# What weights that were pre-trained with one norm dictate
_WEIGHTS = (
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "INPUT.FORMAT",
)
_BY_NORM = ("MODEL.BACKBONE.NAME", "MODEL.GW.", "TEST.PRECISE_BN.")


def is_incidental(key: str) -> bool:
    """Whether two runs that differ only in this key are runs of one experiment."""
    return _starts(key, _INCIDENTAL)


def _starts(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == p or (p.endswith(".") and key.startswith(p)) for p in prefixes)


def row_of(config: Config) -> dict[str, Any]:
    """
    What the runs of one row of a table of norms have in common: everything but the norms, what
    goes with them (where they are, the weights pre-trained with them and the input these want),
    and the incidental. Whether there are any pre-trained weights belongs to it.
    """
    row = {
        key: value
        for key, value in config.items()
        if not (is_incidental(key) or _starts(key, _BY_NORM + _WEIGHTS) or key.endswith(".NORM"))
    }
    row["MODEL.BACKBONE.NAME"] = stock_backbone(config)
    row["MODEL.WEIGHTS"] = "pre-trained" if config.get("MODEL.WEIGHTS") else ""
    return row


def norm_details(config: Config) -> dict[str, Any]:
    """What tells the runs of one row apart: the norms, the weights, and the input these want."""
    return norms(config) | {key: config.get(key) for key in _WEIGHTS}


def config_label(config: Config) -> str:
    """E.g. "Mask R-CNN R-50-FPN 4conv1fc, from scratch"."""
    label = str(config.get("MODEL.META_ARCHITECTURE"))
    head = ""
    if label == "GeneralizedRCNN":
        cascade = "Cascade " * (config.get("MODEL.ROI_HEADS.NAME") == "CascadeROIHeads")
        kind = "Mask " if config.get("MODEL.MASK_ON") else "" if cascade else "Faster "
        label = f"{cascade}{kind}R-CNN"
        for key, layer in (("NUM_CONV", "conv"), ("NUM_FC", "fc")):
            number = config.get(f"MODEL.ROI_BOX_HEAD.{key}")
            head += f"{number}{layer}" if number else ""
    scratch = "" if config.get("MODEL.WEIGHTS") else ", from scratch"
    return f"{label} {_backbone(config)} {head}".strip() + scratch


def _backbone(config: Config) -> str:
    builder = stock_backbone(config)
    if "resnet" not in builder:
        return builder.removeprefix("build_").removesuffix("_backbone")
    depth, groups = config.get("MODEL.RESNETS.DEPTH"), config.get("MODEL.RESNETS.NUM_GROUPS", 1)
    width = config.get("MODEL.RESNETS.WIDTH_PER_GROUP")
    name = f"X-{depth}-{groups}x{width}d" if groups > 1 else f"R-{depth}"
    return f"{name}-FPN" if "fpn" in builder else name


# ---- The paper -------------------------------------------------------------------------------

# The configs of its COCO tables -> box AP, mask AP
_PAPER = {
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_frozenbn": (36.31,),
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gn": (36.32,),
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gw": (38.13,),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_frozenbn": (36.39,),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gn": (37.86,),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gw": (39.60,),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_frozenbn": (42.24, 37.53),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_gn": (42.18, 37.54),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_gw": (44.41, 39.17),
}
# What makes a run one of its rows, beside the norms and the images
_PAPER_KEYS = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.NUM_GROUPS",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "MODEL.MASK_ON",
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR",
    "SOLVER.STEPS",
    "SOLVER.MAX_ITER",
)
# The images are the same: trainval35k and coco_2017_train, minival and coco_2017_val
_TRAIN_SETS = (("coco_2017_train",), ("coco_2014_train", "coco_2014_valminusminival"))
_TEST_SETS = ("coco_2017_val", "coco_2014_minival")


def paper_figures(config: Config, dataset: str) -> dict[str, float]:
    """
    Args:
        dataset: that it was evaluated on.

    Returns:
        dict: {"bbox/AP": 38.13} and for Mask R-CNN "segm/AP", if the run is one of the paper's rows
            by architecture, head, images, schedule and norms; else {}.
    """
    is_on_coco = dataset in _TEST_SETS and tuple(config["DATASETS.TRAIN"]) in _TRAIN_SETS
    figures = _paper_rows().get(_paper_row(config), ()) if is_on_coco else ()
    return dict(zip(("bbox/AP", "segm/AP"), figures, strict=False))


@functools.cache
def _paper_rows() -> dict[str, tuple[float, ...]]:
    return {_paper_row(flatten(get_config(f"{n}.yaml"))): aps for n, aps in _PAPER.items()}


def _paper_row(config: Config) -> str:
    values = [config.get(key) for key in _PAPER_KEYS]
    values = [list(value) if isinstance(value, tuple) else value for value in values]
    return repr((bool(config.get("MODEL.WEIGHTS")), stock_backbone(config), norms(config), values))
