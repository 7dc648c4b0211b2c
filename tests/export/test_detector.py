import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from gw_detectron.errors import UsageError
from gw_detectron.export.comparison import Detections, detect
from gw_detectron.export.detector import exportable

from . import tiny


def assert_same(model, detector, image):
    expected, found = detect(model, image), Detections(*detector(image))
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    return len(expected.scores)


@pytest.mark.parametrize("norm", ["GN", tiny.GW])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_it_detects_what_the_model_detects(kind, norm):
    model = tiny.model(tiny.config(kind, norm=norm))
    detector = exportable(model)
    for image in (tiny.image(150, 210), tiny.image(257, 129), tiny.blank(160, 140)):
        assert assert_same(model, detector, image) > 5
    assert detector.output_names == ("boxes", "scores", "classes", "masks")[: 3 + (kind == "mask")]


@pytest.mark.parametrize(
    "kind, opts",
    [
        ("faster", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]),
        ("faster", ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]),
        ("faster", ["TEST.DETECTIONS_PER_IMAGE", -1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.9]),
        ("faster", ["MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 40]),
        ("mask", ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True]),
        ("mask", ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"]),
        ("retinanet", ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 7]),
        ("retinanet", ["MODEL.RETINANET.NORM", "BN", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.01]),
    ],
)
def test_it_does_as_the_config_says(kind, opts):
    model = tiny.model(tiny.config(kind, *opts))
    assert assert_same(model, exportable(model), tiny.image(150, 210)) > 0


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_it_may_find_nothing(kind):
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 1.0]
    model = tiny.model(tiny.config(kind, *opts))
    for image in (tiny.image(150, 210), tiny.image(150, 210) * torch.nan):
        assert assert_same(model, exportable(model), image) == 0


def test_the_model_stays_as_it_is():
    model = tiny.model(tiny.config("mask")).train()
    parts = [type(part) for part in model.modules()]
    exportable(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert [type(part) for part in model.modules()] == parts


@pytest.mark.parametrize(
    "opts, part",
    [
        (["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "CascadeROIHeads"),
        (["MODEL.KEYPOINT_ON", True], "KRCNNConvDeconvUpsampleHead"),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"], "RoIPool"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "ProposalNetwork"),
    ],
)
def test_another_model_is_a_line_that_names_what_is_different(opts, part):
    cfg = tiny.config("faster", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, *opts)
    with pytest.raises(UsageError, match=f"this model has a {part} where they have a") as error:
        exportable(build_model(cfg))
    assert "\n" not in str(error.value)


def test_a_backbone_of_squares_is_named():
    model = tiny.model(tiny.config("faster"))
    model.backbone._square_pad = 512
    with pytest.raises(UsageError, match="squares"):
        exportable(model)


def test_something_else_is_no_detector():
    with pytest.raises(UsageError, match="a Linear where they have a GeneralizedRCNN"):
        exportable(nn.Linear(1, 1))
