import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark.inputs import find_inputs, require_triton
from gw_detectron.benchmark.workload import build, image_size, load_config, make_images
from gw_detectron.layers import set_backend
from gw_detectron.model_zoo import get_config_file

from .configs import CONFIG, LAYERS, OPTS

CPU = torch.device("cpu")


def found(opts, num_images):
    images = make_images((50, 64), num_images)
    inputs = find_inputs(build(load_config(CONFIG, opts, CPU), images), images)
    return {(at.shape, at.layer.num_groups): len(at.names) for at in inputs}, inputs


def test_inputs_are_those_that_strides_and_region_counts_give():
    counts, inputs = found(OPTS, num_images=1)
    assert counts == LAYERS
    assert inputs[0].names == ("backbone.bottom_up.stem.conv1.norm",)
    assert inputs[0].label == "1x64x32x32"


def test_two_images_have_twice_the_maps_and_twice_the_regions():
    counts, _ = found(OPTS, num_images=2)
    assert counts == {((2 * n, *of_one), g): count for ((n, *of_one), g), count in LAYERS.items()}


def test_the_layers_whiten_again_after():
    images = make_images((50, 64), 1)
    inputs = find_inputs(build(load_config(CONFIG, OPTS, CPU), images), images)
    x = torch.randn(2, 64, 5, 5)
    assert not inputs[0].layer(x).equal(x)


def test_an_input_that_pytorch_would_compute_in_tritons_place_is_refused():
    pytest.importorskip("triton")
    try:
        with pytest.raises((RuntimeError, ValueError), match="[Tt]riton"):
            require_triton(torch.zeros(2, 16, 3, dtype=torch.float64), 8)
    finally:
        set_backend(None)


def test_layers_with_other_options_are_measured_apart():
    opts = [*OPTS, "MODEL.FPN.NORM", "GW(num_groups=16, iterations=3)"]
    opts += ["MODEL.FPN.OUT_CHANNELS", "128"]
    counts, inputs = found(opts, num_images=1)
    at_8x8 = [at for at in inputs if at.shape == (1, 128, 8, 8)]
    assert {at.layer.iterations: len(at.names) for at in at_8x8} == {5: 5, 3: 2}


def test_retinanet_which_has_no_regions():
    file = get_config_file("COCO-Detection/retinanet_R_50_FPN_1x_gw.yaml")
    opts = [
        "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
        "MODEL.RETINANET.NORM", "GW", "MODEL.RETINANET.NUM_CONVS", "1",
    ]  # fmt: skip
    images = make_images((50, 64), 1)
    inputs = find_inputs(build(load_config(file, opts, CPU), images), images)
    levels = {at.shape for at in inputs if any(name.startswith("head.") for name in at.names)}
    assert levels == {(1, 256, side, side) for side in (8, 4, 2, 1)}  # p6 and p7 are of one size


def test_image_size_is_the_configs_and_a_landscape():
    cfg = load_config(CONFIG, ["INPUT.MIN_SIZE_TEST", "800"], CPU)
    assert image_size(cfg) == (800, 1333)
    cfg = load_config(CONFIG, ["INPUT.MIN_SIZE_TEST", "192"], CPU)
    assert image_size(cfg) == (192, 320)
    cfg = load_config(CONFIG, ["INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", "250"], CPU)
    assert image_size(cfg) == (192, 250)


@pytest.mark.parametrize("heads", ["StandardROIHeads", "CascadeROIHeads"])
def test_inference_finds_as_many_objects_as_it_may_return(heads):
    opts = [
        *OPTS, "MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
        "MODEL.ROI_HEADS.NUM_CLASSES", "80",  # of equal scores, each below the threshold
    ]  # fmt: skip
    images = make_images((50, 64), 2)
    model = build(load_config(CONFIG, opts, CPU), images).eval()
    with torch.no_grad():
        outputs = model(images)
    assert [len(output["instances"]) for output in outputs] == [100, 100]
    assert all(output["instances"].pred_masks.shape == (100, 50, 64) for output in outputs)
