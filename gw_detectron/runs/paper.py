"""The COCO results of the Group Whitening paper (CVPR 2021), found by what a config says."""

from collections.abc import Mapping
from typing import Any

from .experiment import norms, stock_backbone

__all__ = ["paper_figures"]

# The images are the same: minival and coco_2017_val, trainval35k and coco_2017_train
_TEST_SETS = ("coco_2017_val", "coco_2014_minival")
_TRAIN_SETS = (
    ("coco_2017_train",),
    ("coco_2014_train", "coco_2014_valminusminival"),
)

_FASTER_R50 = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.MASK_ON": False,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.MAX_ITER": 90000,
}
_MASK_X101 = {
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.MASK_ON": True,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": [120000, 160000],
    "SOLVER.MAX_ITER": 180000,
}
_2FC = {"MODEL.ROI_BOX_HEAD.NUM_CONV": 0, "MODEL.ROI_BOX_HEAD.NUM_FC": 2}
_4CONV1FC = {"MODEL.ROI_BOX_HEAD.NUM_CONV": 4, "MODEL.ROI_BOX_HEAD.NUM_FC": 1}
_GW = "GW at S1-B2 over FrozenBN"

# (the row, {the norms of backbone, FPN, box head, mask head: (box AP, mask AP)})
_TABLES: tuple[tuple[dict[str, Any], dict[tuple[str, ...], tuple[float, ...]]], ...] = (
    (
        _FASTER_R50 | _2FC,
        {("FrozenBN", ""): (36.31,), ("GN", ""): (36.32,), (_GW, ""): (38.13,)},
    ),
    (
        _FASTER_R50 | _4CONV1FC,
        {
            ("FrozenBN", "", ""): (36.39,),
            ("GN", "GN", "GN"): (37.86,),
            (_GW, "GN", "GW"): (39.60,),
        },
    ),
    (
        _MASK_X101 | _4CONV1FC,
        {
            ("FrozenBN", "", "", ""): (42.24, 37.53),
            ("GN", "GN", "GN", "GN"): (42.18, 37.54),
            (_GW, "GW", "GW", "GW"): (44.41, 39.17),
        },
    ),
)


def paper_figures(config: Mapping[str, Any], dataset: str) -> dict[str, float]:
    """
    Args:
        config: by full keys, as `Run.config`.
        dataset: that it was evaluated on.

    Returns:
        dict: {"bbox/AP": 38.13} and for Mask R-CNN "segm/AP", if the run is one of the paper's rows
            by architecture, head, images, schedule and norms; else {}.
    """
    if not _is_pretrained_rcnn_on_coco(config, dataset):
        return {}
    of_run = tuple(norms(config).values())
    for row, figures in _TABLES:
        if of_run in figures and all(_equal(config.get(k), value) for k, value in row.items()):
            return dict(zip(("bbox/AP", "segm/AP"), figures[of_run], strict=False))
    return {}


def _is_pretrained_rcnn_on_coco(config: Mapping[str, Any], dataset: str) -> bool:
    return (
        config.get("MODEL.META_ARCHITECTURE") == "GeneralizedRCNN"
        and config.get("MODEL.ROI_HEADS.NAME") == "StandardROIHeads"
        and stock_backbone(config) == "build_resnet_fpn_backbone"
        and bool(config.get("MODEL.WEIGHTS"))
        and config.get("MODEL.BACKBONE.FREEZE_AT") == 2
        and tuple(config.get("DATASETS.TRAIN") or ()) in _TRAIN_SETS
        and dataset in _TEST_SETS
    )


def _equal(value: Any, expected: Any) -> bool:
    return (list(value) if isinstance(value, tuple) else value) == expected
