import pytest
import yaml

pytest.importorskip("detectron2")

from gw_detectron.config import flatten
from gw_detectron.runs.experiment import canonical_norm, config_label, norm_label

from .synthetic import config, everywhere


def flat(**overrides):
    return flatten(yaml.safe_load(config(**overrides).dump()))


PLACED = {"MODEL__BACKBONE__NAME": "build_gw_resnet_fpn_backbone", "MODEL__RESNETS__NORM": "GW"}


@pytest.mark.parametrize(
    "overrides, label",
    [
        (everywhere("GN"), "GN"),
        (everywhere("GW( iterations = 5,num_groups=16)"), "GW(num_groups=16)"),
        ({"MODEL__RESNETS__NORM": "GN"}, "GN, FPN none"),
        ({"MODEL__RESNETS__NORM": "FrozenBN"}, "FrozenBN"),
        (everywhere("FrozenBN"), "FrozenBN, FPN FrozenBN"),
        (PLACED, "GW at S1-B2 over FrozenBN, FPN none"),
        ({**PLACED, "MODEL__FPN__NORM": "GW"}, "GW at S1-B2 over FrozenBN"),
        (
            {**PLACED, "MODEL__FPN__NORM": "GN", "MODEL__GW__BASE_NORM": "GN"},
            "GW at S1-B2 over GN, FPN GN",
        ),
        # a head's norm counts where the head has one
        ({**everywhere("GN"), "MODEL__ROI_BOX_HEAD__NORM": "GW"}, "GN"),
        (
            {**everywhere("GN"), "MODEL__ROI_BOX_HEAD__NUM_CONV": 4},
            "GN, box head none",
        ),
        ({**everywhere("GN"), "MODEL__MASK_ON": True}, "GN, mask head none"),
    ],
)
def test_a_norms_label_says_where_it_is_and_what_is_elsewhere(overrides, label):
    assert norm_label(flat(**overrides)) == label


def test_a_norm_has_one_spelling():
    assert canonical_norm("GW(num_groups=64, eps=1e-5)") == canonical_norm(" GW ") == "GW"
    assert canonical_norm("GW(rescale=TRUE)") == "GW(rescale=true)"
    assert canonical_norm("GW(from_another_version=1)") == "GW(from_another_version=1)"
    assert canonical_norm(None) == ""


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
    assert config_label(flat(**overrides)) == label
