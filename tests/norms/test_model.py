import builtins

import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis

from gw_detectron.errors import UsageError
from gw_detectron.norms.model import analyze, build_from_config
from gw_detectron.norms.probe import watching

from .models import C4, CASCADE, CONFIGS, QUICKSTART, R_18, RETINANET

LAZY = str(CONFIGS / "COCO-Detection" / "faster_rcnn_R_50_FPN_2fc_1x_gw.py")

# ---- Building --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opts, size",
    [
        ([], (192, 319)),
        (["INPUT.MIN_SIZE_TEST", "800", "INPUT.MAX_SIZE_TEST", "1000"], (800, 1000)),
        (["INPUT.MIN_SIZE_TEST", "0"], (800, 1333)),  # images as they are
    ],
)
def test_the_size_is_that_of_a_wide_test_image(opts, size):
    opts = [*opts, "MODEL.WEIGHTS", "nowhere.pth", "MODEL.DEVICE", "cuda"]
    model, found = build_from_config(QUICKSTART, opts)
    assert found == size
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_lazy_config_takes_its_own_overrides():
    model, size = build_from_config(LAZY, ["model.backbone.norm=GN"])
    assert size == (800, 1333)
    assert model.backbone.fpn_output2.norm.num_groups == 32


@pytest.mark.parametrize(
    "config, opts, message",
    [
        ("nowhere.yaml", [], "nowhere.yaml"),
        ("nowhere.py", [], "nowhere.py can't be loaded: .*No such file"),
        (QUICKSTART, ["MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (QUICKSTART, ["MODEL.FPN.NORM", "GX"], 'unknown norm "GX"'),
        (QUICKSTART, ["MODEL.BACKBONE.NAME", "build_nothing"], "'build_nothing' .* registry"),
        (LAZY, ["MODEL.FPN.NORM", "GN"], "MODEL.FPN.NORM GN can't be loaded"),
        (LAZY, ["model.backbone.bottom_up.stages=3"], "the model can't be built"),
        ("model = (", [], "program.py can't be loaded: SyntaxError"),
        ("import nothing_there", [], "program.py can't be loaded: ModuleNotFound"),
        ("train = dict(max_iter=3)", [], "program.py has no model"),
    ],
)
def test_a_mistake_is_named_in_one_line(config, opts, message, tmp_path):
    if " " in config:
        (tmp_path / "program.py").write_text(config)
        config = str(tmp_path / "program.py")
    import_function = builtins.__import__
    with pytest.raises(UsageError, match=message) as caught:
        build_from_config(config, opts)
    assert "\n" not in str(caught.value)
    assert builtins.__import__ is import_function


# ---- What its norms are given ----------------------------------------------------------------


def analyzed(config, *opts, size=(96, 130)):
    model, _ = build_from_config(config, opts)
    rows, flops = analyze(model, *size)
    return {row["layer"]: row for row in rows}, flops


@pytest.mark.parametrize("config, opts", [(QUICKSTART, []), (RETINANET, R_18)])
def test_the_sizes_are_those_of_a_real_forward_pass(config, opts):
    model, _ = build_from_config(config, opts)
    expected = {}

    def look(name, norm, x, y):
        expected[name] = min(expected.get(name, x.shape[2:]), x.shape[2:])

    with torch.no_grad(), watching(model.eval(), look):
        model([{"image": torch.rand(3, 96, 130) * 255}])
    rows, _ = analyze(model, 96, 130)
    found = {row["layer"]: row["size"].split()[-1] for row in rows}
    expected = {name: "x".join(map(str, size)) for name, size in expected.items()}
    assert list(found.items()) == list(expected.items()) and len(expected) > 20


def test_the_flops_are_those_that_fvcore_counts():
    model, _ = build_from_config(RETINANET, R_18)
    counted = FlopCountAnalysis(model.eval(), [{"image": torch.rand(3, 64, 64) * 255}])
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analyze(model, 64, 64)[1] == counted.by_operator()["conv"]


def test_region_heads_are_counted_as_in_training():
    norm = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GN"]
    rows, _ = analyzed(QUICKSTART, "MODEL.ROI_MASK_HEAD.NORM", "GW", *norm)
    # 128 regions an image, a quarter of them for the mask head
    assert rows["roi_heads.box_head.conv1"]["size"] == "128 of 7x7"
    assert rows["roi_heads.mask_head.mask_fcn1"]["size"] == "32 of 14x14"
    assert rows["backbone.fpn_output2"]["size"] == "24x40"


def test_the_regions_of_cascade_are_counted_for_each_stage():
    box = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GW"]
    rows, _ = analyzed(CASCADE, *R_18, *box)
    stages = [f"roi_heads.box_head.{stage}.conv1" for stage in range(3)]
    assert [rows[stage]["size"] for stage in stages] == ["512 of 7x7"] * 3


def test_the_region_head_of_c4_is_counted_once():
    (rows, with_masks), (_, without) = (
        analyzed(C4, "MODEL.RESNETS.NORM", "GW", "MODEL.MASK_ON", on, size=(64, 96))
        for on in ("True", "False")
    )
    row = rows["roi_heads.res5.2.conv2"]
    assert row["size"] == "512 of 7x7"
    assert row["+GFLOPs"] == 512 * (2 * 64 * 512 * 49 + 12 * 64**3) / 1e9
    # 128 of the regions through the mask head: a deconvolution of 7 x 7 and 80 masks of 14 x 14
    mask_head = 128 * (2048 * 256 * 4 * 49 + 256 * 80 * 196)
    assert with_masks - without == mask_head


def test_norms_that_need_a_gpu_or_a_batch_to_train_are_analyzed():
    norms = ["MODEL.RESNETS.NORM", "SyncBN", "MODEL.FPN.NORM", "BN"]
    rows, _ = analyzed(QUICKSTART, *norms, size=(64, 64))
    assert {row["norm"] for row in rows.values()} == {"SyncBN", "BN"}
