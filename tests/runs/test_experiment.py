import pytest

pytest.importorskip("detectron2")

from gw_detectron.config import flatten, load_config
from gw_detectron.model_zoo import get_config_file
from gw_detectron.runs.experiment import config_label, paper_figures

from .synthetic import config


@pytest.mark.parametrize(
    "overrides, label",
    [
        ({}, "Faster R-CNN R-50-FPN 2fc, from scratch"),
        (
            {
                "MODEL__MASK_ON": True,
                "MODEL__WEIGHTS": "x.pkl",
                "MODEL__RESNETS__DEPTH": 101,
                "MODEL__RESNETS__NUM_GROUPS": 32,
                "MODEL__RESNETS__WIDTH_PER_GROUP": 8,
                "MODEL__ROI_BOX_HEAD__NUM_CONV": 4,
                "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
            },
            "Mask R-CNN X-101-32x8d-FPN 4conv1fc",
        ),
        (
            {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads"},
            "Cascade R-CNN R-50-FPN 2fc, from scratch",
        ),
        (
            {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads", "MODEL__MASK_ON": True},
            "Cascade Mask R-CNN R-50-FPN 2fc, from scratch",
        ),
        (
            {
                "MODEL__META_ARCHITECTURE": "RetinaNet",
                "MODEL__BACKBONE__NAME": "build_gw_retinanet_resnet_fpn_backbone",
            },
            "RetinaNet R-50-FPN, from scratch",
        ),
    ],
)
def test_a_configs_label_says_what_the_detector_is(overrides, label):
    assert config_label(flatten(config(**overrides))) == label


FASTER = "COCO-Detection/faster_rcnn_R_50_FPN"
MASK = "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x"


def zoo(name, *overrides):
    return flatten(load_config(get_config_file(f"{name}.yaml"), overrides))


@pytest.mark.parametrize(
    "name, figures",
    [
        (f"{FASTER}_2fc_1x_frozenbn", {"bbox/AP": 36.31}),
        (f"{FASTER}_2fc_1x_gn", {"bbox/AP": 36.32}),
        (f"{FASTER}_2fc_1x_gw", {"bbox/AP": 38.13}),
        (f"{FASTER}_4conv1fc_1x_frozenbn", {"bbox/AP": 36.39}),
        (f"{FASTER}_4conv1fc_1x_gn", {"bbox/AP": 37.86}),
        (f"{FASTER}_4conv1fc_1x_gw", {"bbox/AP": 39.60}),
        (f"{MASK}_frozenbn", {"bbox/AP": 42.24, "segm/AP": 37.53}),
        (f"{MASK}_gn", {"bbox/AP": 42.18, "segm/AP": 37.54}),
        (f"{MASK}_gw", {"bbox/AP": 44.41, "segm/AP": 39.17}),
        # beyond the paper
        (f"{FASTER}_4conv1fc_1x_gw_all", {}),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw", {}),
        ("COCO-Detection/retinanet_R_50_FPN_1x_gw", {}),
        ("quickstart/faster_rcnn_R_18_FPN_gw", {}),
    ],
)
def test_the_papers_rows_are_known_by_their_configs(name, figures):
    assert paper_figures(zoo(name), "coco_2017_val") == figures


@pytest.mark.parametrize(
    "overrides",
    [
        ("SOLVER.MAX_ITER", "180000"),
        ("SOLVER.IMS_PER_BATCH", "8"),
        ("MODEL.RESNETS.NORM", "GW(num_groups=16)"),
        ("MODEL.GW.POSITIONS", "S1"),
        ("MODEL.RESNETS.DEPTH", "101"),
        ("MODEL.WEIGHTS", ""),
        ("DATASETS.TRAIN", "('own_train',)"),
    ],
)
def test_a_run_that_differs_is_none_of_them(overrides):
    assert paper_figures(zoo(f"{FASTER}_2fc_1x_gw", *overrides), "coco_2017_val") == {}


def test_what_cannot_make_a_difference_does_not():
    config = zoo(
        f"{FASTER}_2fc_1x_gw", "SEED", "7", "MODEL.ROI_BOX_HEAD.NORM", "GN",
        "MODEL.RESNETS.NORM", "GW(num_groups=64, iterations=5)",
        "DATASETS.TRAIN", "('coco_2014_train', 'coco_2014_valminusminival')",
    )  # fmt: skip
    assert paper_figures(config, "coco_2014_minival") == {"bbox/AP": 38.13}
    assert paper_figures(config, "own_val") == {}
