import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark.workload import Setup, build, find_inputs
from gw_detectron.errors import UsageError
from gw_detectron.model_zoo import get_config_file

from .configs import CONFIG, LAYERS, OPTS


def test_inputs_are_those_that_strides_and_region_counts_give():
    for count in (1, 2):  # two images have twice the maps and twice the regions
        inputs = find_inputs(Setup(CONFIG, OPTS, num_images=count))
        found = {(at.shape, at.layer.num_groups): len(at.names) for at in inputs}
        assert found == {((count * n, *rest), g): k for ((n, *rest), g), k in LAYERS.items()}
    assert inputs[0].names == ("backbone.bottom_up.stem.conv1",)
    assert inputs[0].label == "2x64x32x32"


def test_layers_with_other_options_are_measured_apart():
    opts = ["MODEL.FPN.NORM", "GW(num_groups=16, iterations=3)", "MODEL.FPN.OUT_CHANNELS", "128"]
    inputs = find_inputs(Setup(CONFIG, [*OPTS, *opts]))
    at_8x8 = [at for at in inputs if at.shape == (1, 128, 8, 8)]
    assert {at.layer.iterations: len(at.names) for at in at_8x8} == {5: 5, 3: 2}


def test_retinanet_which_has_no_regions():
    file = get_config_file("COCO-Detection/retinanet_R_50_FPN_1x_gw.yaml")
    opts = [
        "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
        "MODEL.RETINANET.NORM", "GW", "MODEL.RETINANET.NUM_CONVS", "1",
        "INPUT.MIN_SIZE_TEST", "50", "INPUT.MAX_SIZE_TEST", "64",
    ]  # fmt: skip
    inputs = find_inputs(Setup(file, opts))
    levels = {at.shape for at in inputs if any(name.startswith("head.") for name in at.names)}
    assert levels == {(1, 256, side, side) for side in (8, 4, 2, 1)}  # p6 and p7 are of one size


@pytest.mark.parametrize("limit, width", [("1333", 320), ("250", 250)])
def test_images_are_landscapes_of_the_configs_size(limit, width):
    opts = ["INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", limit]
    (image,) = Setup(CONFIG, opts).images()
    assert image["image"].shape == (3, 192, width)


@pytest.mark.parametrize("heads", ["StandardROIHeads", "CascadeROIHeads"])
def test_inference_finds_as_many_objects_as_it_may_return(heads):
    opts = [
        *OPTS, "MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
        "MODEL.ROI_HEADS.NUM_CLASSES", "80",  # of equal scores, each below the threshold
    ]  # fmt: skip
    setup = Setup(CONFIG, opts, num_images=2)
    images = setup.images()
    with torch.no_grad():
        outputs = build(setup.config(), images).eval()(images)
    assert all(output["instances"].pred_masks.shape == (100, 50, 64) for output in outputs)


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.ROI_BOX_HEAD.NORM", ""]
            + ["MODEL.ROI_MASK_HEAD.NORM", ""],
            "no GW layer",
        ),
        (["MODEL.RESNETS.DEPTH", "42"], "can't be built from this config: KeyError: 42"),
        (["MODEL.NORM", "GW"], "MODEL.NORM"),
    ],
)
def test_mistakes(opts, message):
    with pytest.raises(UsageError, match=message):
        find_inputs(Setup(CONFIG, [*OPTS, *opts]))


def test_what_only_a_gpu_has_is_refused_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        Setup(CONFIG, device="cuda").set_precision()
    with pytest.raises(UsageError, match="tf32"):
        Setup(CONFIG, dtype="tf32").set_precision()
