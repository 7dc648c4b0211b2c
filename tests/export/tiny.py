"""Small detectors with random weights whose scores are spread enough to detect something."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

from gw_detectron.errors import UsageError
from gw_detectron.export import FORMATS
from gw_detectron.export.exporting import draw

CONFIGS = Path(__file__).parents[2] / "configs"
GW = "GW(num_groups=8, iterations=2)"

# The ends of names of the last weights -> their standard deviation
SPREADS = {
    "GeneralizedRCNN": {
        "logits.weight": 0.1,
        "deltas.weight": 0.02,
        "score.weight": 2.0,
        "bbox_pred.weight": 1.0,
        "predictor.weight": 0.5,
    },
    "RetinaNet": {"score.weight": 0.1, "pred.weight": 0.02},
}
KINDS = {
    "faster": [],
    "mask": ["MODEL.MASK_ON", True],
    "retinanet": [],
    "cascade": [
        "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.5, 0.6],
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[10.0, 10.0, 5.0, 5.0]] * 2,
    ],
    "c4": [
        "MODEL.BACKBONE.NAME", "build_gw_resnet_backbone", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads",
        "MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.RPN.IN_FEATURES", ["res4"],
        "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
    ],
}  # fmt: skip


def config(kind: str, *opts, norm: str = GW) -> CfgNode:
    """Of an R-18 with few levels and channels, for images of 144 pixels; opts override."""
    cfg = get_cfg()
    if kind == "retinanet":
        cfg.merge_from_file(str(CONFIGS / "COCO-Detection" / "retinanet_R_50_FPN_1x_gw.yaml"))
    else:
        cfg.merge_from_file(str(CONFIGS / "quickstart" / "mask_rcnn_R_18_FPN_gw.yaml"))
        cfg.MODEL.BACKBONE.NAME = "build_gw_resnet_fpn_backbone"
    cfg.merge_from_list([
        "MODEL.MASK_ON", False, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.GW.BASE_NORM", "GN", "MODEL.GW.POSITIONS", "S1",
        "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
        "MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", norm,
        "MODEL.ROI_MASK_HEAD.NORM", norm, "MODEL.RETINANET.NUM_CONVS", 1,
        "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32,
        "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
        "MODEL.RETINANET.NUM_CLASSES", 6, "MODEL.RPN.POST_NMS_TOPK_TEST", 50,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, "TEST.DETECTIONS_PER_IMAGE", 20,
        "MODEL.FPN.IN_FEATURES", ["res4", "res5"], "MODEL.RPN.IN_FEATURES", ["p4", "p5", "p6"],
        "MODEL.ROI_HEADS.IN_FEATURES", ["p4", "p5"],
        "MODEL.RETINANET.IN_FEATURES", ["p4", "p5", "p6", "p7"],
        "MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]],
        "INPUT.MIN_SIZE_TEST", 144, "DATASETS.TRAIN", (), "DATASETS.TEST", (),
    ])  # fmt: skip
    cfg.merge_from_list([*KINDS[kind], *opts])
    return cfg


def model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    built = build_model(cfg).eval()
    for name, parameter in built.named_parameters():
        for ending, std in SPREADS[type(built).__name__].items():
            if name.endswith(ending):
                nn.init.normal_(parameter, std=std)
    return built


def image(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(draw(seed, height, width).transpose(2, 0, 1).astype("float32"))


def require(format: str) -> None:
    """Skips a test where what the format needs is not installed."""
    try:
        FORMATS[format].require()
    except UsageError as error:
        pytest.skip(str(error))


def save(cfg: CfgNode, folder: Path) -> list[str]:
    """Writes config.yaml and weights.pth: the arguments (config file, opts) of an export."""
    torch.save({"model": model(cfg).state_dict()}, folder / "weights.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return [str(folder / "config.yaml"), ["MODEL.WEIGHTS", str(folder / "weights.pth")]]
