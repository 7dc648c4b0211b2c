import builtins
import re

import pytest
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn, rand

from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.advice import describe
from gw_detectron.norms.analysis import analysis_report, analyze, build_from_config

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
        (QUICKSTART, ["MODEL.FPN.NORM", "GX"], 'unknown norm "GX"'),
        (LAZY, ["MODEL.FPN.NORM", "GN"], "MODEL.FPN.NORM GN can't be loaded"),
        (LAZY, ["model.backbone.bottom_up.stages=3"], "the model can't be built"),
        ("import nothing_there", [], "program.py can't be loaded: ModuleNotFound"),
        ("train = dict(max_iter=3)", [], "Missing key model"),
    ],
)
def test_a_mistake_is_named_in_one_line(config, opts, message, tmp_path, monkeypatch):
    if " " in config:
        (tmp_path / "program.py").write_text(config)
        config = str(tmp_path / "program.py")
    # LazyConfig replaces it while it loads a file, for good where that fails
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)
    with pytest.raises(UsageError, match=message) as caught:
        build_from_config(config, opts)
    assert "\n" not in str(caught.value)


# ---- What its norms are given ----------------------------------------------------------------


def analyzed(config, *opts, size=(96, 130)):
    model, _ = build_from_config(config, opts)
    rows, flops = analyze(model, *size)
    return {row["layer"]: row for row in rows}, flops


def test_the_flops_are_those_that_fvcore_counts():
    model, _ = build_from_config(RETINANET, R_18)
    counted = FlopCountAnalysis(model.eval(), [{"image": rand(3, 64, 64) * 255}])
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analyze(model, 64, 64)[1] == counted.by_operator()["conv"]


def test_region_heads_are_counted_as_in_training():
    box = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GW"]
    rows, _ = analyzed(CASCADE, *R_18, *box, "MODEL.ROI_MASK_HEAD.NORM", "GN")
    stages = [f"roi_heads.box_head.{stage}.conv1" for stage in range(3)]
    assert [rows[stage]["size"] for stage in stages] == ["512 of 7x7"] * 3
    assert rows["roi_heads.mask_head.mask_fcn1"]["size"] == "128 of 14x14"  # a quarter
    assert rows["backbone.fpn_lateral2"]["size"] == "24x40"


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


# ---- As text ---------------------------------------------------------------------------------


def test_a_line_tells_all_of_a_layer_and_totals_and_notes_follow():
    rows = [
        describe("stem", FrozenBatchNorm2d(64), [(64, 20, 30)]),
        describe("lateral", nn.GroupNorm(32, 256), [(256, 5, 4)]),
        describe("box_head", GroupWhitening(256), [(256, 7, 7)], regions=512),
        describe("fc", GroupWhitening(1024), [(1024,)], regions=512),
        describe("head", GroupWhitening(256, 16, method="zca"), [(256, 3, 3), (256, 1, 1)]),
    ]
    lines = analysis_report(rows, 10_000_000_000).splitlines()
    header, _, *table = (re.split(r"\s{2,}", line.rstrip()) for line in lines[:7])
    assert header == [
        "layer", "norm", "C", "size", "g", "T", "m", "constraints", "share", "limit", "max g",
        "+GFLOPs", "+MB", "1/10", "1/g", "1/10g", "verdict", "suggestion",
    ]  # fmt: skip
    assert table[0] == ["stem", "FrozenBN", "64", "20x30", *"---", "0", "0.00%", *"--------"]
    # 512 regions of 2 * 64 * 12544 + 12 * 64^3 products; of 4 * (2 * 64^2 - 64) bytes
    assert table[2] == [
        "box_head", "GW", "256", "512 of 7x7", "64", "5", "196", "2144", "17.09%", "156.9", "128",
        "2.43", "16.65", "0.5%", "41.4%", "91.4%", "fine", "T=7",
    ]  # fmt: skip
    # 152 constraints on 256 values at the smaller of two calls; nothing missing
    assert table[4][3:6] == ["1 of 2: 1x1", "16", "-"]
    assert table[4][-5:] == ["0.0%", "0.0%", "0.0%", "tight", "g=8"]

    text = " ".join(" ".join(lines).split())
    assert "5 norms: 1 FrozenBN, 1 GN, 3 GW. GN and GW: 2 fine, 1 tight, 1 over the limit." in text
    flops = 512 * (2 * 64 * 12544 + 2 * 64 * 1024 + 2 * 12 * 64**3)  # of the region heads
    flops += 2 * 16 * 256 * 10 + 2 * 5.5 * 16**3
    assert f"{flops / 1e9:+.1f} GFLOPs forward to the 10.0" in text
    assert "(+41.1%), +33.3 MB" in text
    assert "Over the limit" in text and "fc (GW, num_groups 64 on 1024 values" in text
    assert "Small output: with 64 groups" in text
    # without GW there is no cost
    assert analysis_report(rows[:2], 1).endswith("GN and GW: 1 fine, 0 tight, 0 over the limit.")
