import builtins

import pytest

from gw_detectron.errors import UsageError
from gw_detectron.norms.model import build_from_config

from .models import CONFIGS, QUICKSTART

LAZY = str(CONFIGS / "COCO-Detection" / "faster_rcnn_R_50_FPN_2fc_1x_gw.py")


@pytest.mark.parametrize(
    "opts, size",
    [
        ([], (192, 319)),
        (["INPUT.MIN_SIZE_TEST", "800"], (800, 1333)),
        (["INPUT.MIN_SIZE_TEST", "800", "INPUT.MAX_SIZE_TEST", "1000"], (800, 1000)),
        (["INPUT.MIN_SIZE_TEST", "0"], (800, 1333)),  # images as they are
    ],
)
def test_the_size_is_that_of_a_wide_test_image(opts, size):
    assert build_from_config(QUICKSTART, opts)[1] == size


def test_weights_and_device_are_no_matter():
    opts = ["MODEL.WEIGHTS", "nowhere.pth", "MODEL.DEVICE", "cuda"]
    model, _ = build_from_config(QUICKSTART, opts)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_lazy_config_takes_its_own_overrides():
    model, size = build_from_config(LAZY, ["model.backbone.norm=GN"])
    assert size == (800, 1333)
    assert model.backbone.fpn_output2.norm.num_groups == 32


@pytest.mark.parametrize(
    "config, opts, message",
    [
        ("nowhere.yaml", [], "nowhere.yaml"),
        ("nowhere.py", [], "nowhere.py: no such file"),
        (QUICKSTART, ["MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (QUICKSTART, ["MODEL.FPN.NORM", "GX"], 'unknown norm "GX"'),
        (QUICKSTART, ["MODEL.BACKBONE.NAME", "build_nothing"], "'build_nothing' .* registry"),
        (QUICKSTART, ["MODEL.RESNETS.DEPTH", "42"], r"KeyError: 42 \(build_resnet_backbone in "),
        (LAZY, ["MODEL.FPN.NORM", "GN"], "MODEL.FPN.NORM GN: "),
        (LAZY, ["model.backbone.bottom_up.stages=3"], "the model can't be built"),
        (str(CONFIGS / "common" / "nothing.py"), [], "no such file"),
    ],
)
def test_a_mistake_is_named(config, opts, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_from_config(config, opts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "program, reason", [("model = (", "SyntaxError"), ("import nothing_there", "ModuleNotFound")]
)
def test_a_lazy_config_that_fails_is_named(program, reason, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(program)
    import_function = builtins.__import__
    with pytest.raises(UsageError, match=f"program.py can't be run: {reason}"):
        build_from_config(str(path), [])
    assert builtins.__import__ is import_function


def test_a_lazy_config_without_a_model_is_named(tmp_path):
    path = tmp_path / "data.py"
    path.write_text("train = dict(max_iter=3)\n")
    with pytest.raises(UsageError, match="data.py has no model"):
        build_from_config(str(path), [])
