import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark.workload import benchmark_config, build, find_inputs, noise_images
from gw_detectron.errors import UsageError
from gw_detectron.model_zoo import get_config_file

from .configs import CONFIG, LAYERS, OPTS


def test_inputs_are_those_that_strides_and_region_counts_give():
    for count in (1, 2):  # two images have twice the maps and twice the regions
        inputs = find_inputs(benchmark_config(CONFIG, OPTS), count)
        found = {(at.shape, at.layer.num_groups): at.count for at in inputs}
        assert found == {((count * n, *rest), g): k for ((n, *rest), g), k in LAYERS.items()}
    assert str(inputs[0]) == "2x64x32x32, 1 layer, num_groups=16"


def test_layers_with_other_options_are_measured_apart():
    opts = ["MODEL.FPN.NORM", "GW(num_groups=16, iterations=3)", "MODEL.FPN.OUT_CHANNELS", "128"]
    inputs = find_inputs(benchmark_config(CONFIG, [*OPTS, *opts]))
    assert [str(at) for at in inputs if at.shape == (1, 128, 8, 8)] == [
        "1x128x8x8, 5 layers, num_groups=16",
        "1x128x8x8, 2 layers, num_groups=16, iterations=3",
    ]


def test_retinanet_which_has_no_regions():
    file = get_config_file("COCO-Detection/retinanet_R_50_FPN_1x_gw.yaml")
    opts = [
        "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
        "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "",
        "MODEL.RETINANET.NORM", "GW", "MODEL.RETINANET.NUM_CONVS", "1",
        "INPUT.MIN_SIZE_TEST", "50", "INPUT.MAX_SIZE_TEST", "64",
    ]  # fmt: skip
    inputs = find_inputs(benchmark_config(file, opts))
    # one layer for classes and one for boxes; p6 and p7 are of one size
    assert {at.shape: at.count for at in inputs} == {(1, 256, n, n): 2 for n in (8, 4, 2, 1)}


@pytest.mark.parametrize("limit, width", [("1333", 320), ("250", 250)])
def test_images_are_landscapes_of_the_configs_size(limit, width):
    cfg = benchmark_config(CONFIG, ["INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", limit])
    (image,) = noise_images(cfg, 1)
    assert image["image"].shape == (3, 192, width)


@pytest.mark.parametrize("heads", ["StandardROIHeads", "CascadeROIHeads"])
def test_inference_finds_as_many_objects_as_it_may_return(heads):
    opts = [
        *OPTS, "MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
        "MODEL.ROI_HEADS.NUM_CLASSES", "80",  # of equal scores, each below the threshold
    ]  # fmt: skip
    cfg = benchmark_config(CONFIG, opts)
    images = noise_images(cfg, 2)
    with torch.no_grad():
        outputs = build(cfg, images).eval()(images)
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
        find_inputs(benchmark_config(CONFIG, [*OPTS, *opts]))
