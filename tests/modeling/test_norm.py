import importlib
import subprocess
import sys

import detectron2.layers
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ASPP, DepthwiseSeparableConv2d, ShapeSpec, batch_norm
from detectron2.modeling import FPN, META_ARCH_REGISTRY, build_model, build_resnet_backbone
from detectron2.modeling.backbone import Backbone, RegNet, SimpleFeaturePyramid
from detectron2.modeling.backbone.regnet import ResBottleneckBlock as RegNetBlock
from detectron2.modeling.backbone.regnet import SimpleStem
from detectron2.modeling.backbone.vit import ResBottleneckBlock
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

import gw_detectron
from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening


def count(model, kind=GroupWhitening):
    return sum(isinstance(module, kind) for module in model.modules())


def norms(model):
    kinds = (GroupWhitening, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    kinds += (detectron2.layers.FrozenBatchNorm2d, detectron2.layers.batch_norm.LayerNorm)
    return [type(module) for module in model.modules() if isinstance(module, kinds)]


def config(**keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([item for pair in keys.items() for item in (pair[0], pair[1])])
    return cfg


RESNET_FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
}


def small_fpn(norm):
    bottom_up = build_resnet_backbone(config(**RESNET_FPN), ShapeSpec(channels=3))
    return FPN(bottom_up, ["res2", "res3"], 64, norm=norm)


class PlainBackbone(Backbone):
    """What ViT looks like to its feature pyramid; ViT itself needs timm."""

    _out_features = ["plain"]
    _out_feature_channels = {"plain": 64}
    _out_feature_strides = {"plain": 16}

    def forward(self, image):
        raise NotImplementedError


# Every place of Detectron2 that takes a norm, built with it, and how many norms it should have
PLACES = {
    "ResNet-18": (
        lambda norm: build_resnet_backbone(
            config(**RESNET_FPN, **{"MODEL.RESNETS.NORM": norm}), ShapeSpec(channels=3)
        ),
        1 + 8 * 2 + 3,  # stem, two a block, three shortcuts
    ),
    "ResNet-50": (
        lambda norm: build_resnet_backbone(
            config(**{"MODEL.RESNETS.NORM": norm, "MODEL.RESNETS.OUT_FEATURES": ["res5"]}),
            ShapeSpec(channels=3),
        ),
        1 + 16 * 3 + 4,
    ),
    "RegNet": (
        lambda norm: RegNet(
            stem_class=SimpleStem,
            stem_width=32,
            block_class=RegNetBlock,
            depth=2,
            w_a=8,
            w_0=32,
            w_m=2,
            group_width=8,
            norm=norm,
        ),  # fmt: skip
        None,
    ),
    "ViT's residual blocks": (lambda norm: ResBottleneckBlock(64, 64, 32, norm=norm), 3),
    "ViT's feature pyramid": (
        lambda norm: SimpleFeaturePyramid(
            PlainBackbone(), "plain", 64, [4.0, 2.0], norm=norm
        ),  # fmt: skip
        2 * 2 + 1,  # two a level, one between the two upsamplings
    ),
    "FPN": (small_fpn, 2 * 2),
    "box head": (
        lambda norm: FastRCNNConvFCHead(
            ShapeSpec(channels=64, height=7, width=7),
            conv_dims=[64, 64],
            fc_dims=[32],
            conv_norm=norm,
        ),  # fmt: skip
        2,
    ),
    "mask head": (
        lambda norm: MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=64, height=14, width=14),
            num_classes=3,
            conv_dims=[64, 64, 64],
            conv_norm=norm,
        ),  # fmt: skip
        2,
    ),
    "RetinaNet head": (
        lambda norm: RetinaNetHead(
            input_shape=[ShapeSpec(channels=64, stride=8)],
            num_classes=3,
            num_anchors=1,
            conv_dims=[64, 64],
            norm=norm,
        ),  # fmt: skip
        2 * 2,
    ),
    "semantic head": (
        lambda norm: SemSegFPNHead(
            {"p2": ShapeSpec(channels=64, stride=4), "p3": ShapeSpec(channels=64, stride=8)},
            num_classes=3,
            conv_dims=64,
            common_stride=4,
            norm=norm,
        ),  # fmt: skip
        2,
    ),
    "ASPP": (lambda norm: ASPP(64, 64, [1, 2, 3], norm=norm, activation=nn.ReLU()), None),
    "depthwise separable convolution": (
        lambda norm: DepthwiseSeparableConv2d(64, 64, norm1=norm, norm2=norm),
        2,
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("norm", ["GW", "GW(num_groups=8, method=zca)"])
def test_every_place_that_takes_a_norm_takes_gw(place, norm):
    build, expected = PLACES[place]
    with torch.device("meta"):
        found = [m for m in build(norm).modules() if isinstance(m, GroupWhitening)]
        with_bn = norms(build("BN"))
    assert len(found) == (expected or with_bn.count(nn.BatchNorm2d) or with_bn.count(nn.Module))
    assert {m.method for m in found} == {"zca" if "zca" in norm else "itn"}
    assert all(m.num_groups == (8 if "zca" in norm else min(64, m.num_channels)) for m in found)


def test_no_module_of_detectron2_that_takes_a_norm_is_left_out_of_the_walk():
    import pathlib

    folder = pathlib.Path(detectron2.layers.__file__).parents[1]
    users = {
        str(file.relative_to(folder))
        for part in ("layers", "modeling")
        for file in (folder / part).rglob("*.py")
        if "get_norm(" in file.read_text()
    }
    assert users == {
        "layers/aspp.py", "layers/batch_norm.py", "layers/blocks.py", "modeling/backbone/fpn.py",
        "modeling/backbone/regnet.py", "modeling/backbone/resnet.py", "modeling/backbone/vit.py",
        "modeling/meta_arch/retinanet.py", "modeling/meta_arch/semantic_seg.py",
        "modeling/roi_heads/box_head.py", "modeling/roi_heads/mask_head.py",
    }  # fmt: skip


def test_a_whole_detector_takes_different_gws_at_different_places():
    cfg = config(
        **RESNET_FPN,
        **{
            "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
            "MODEL.MASK_ON": True,
            "MODEL.RESNETS.NORM": "GW(num_groups=16)",
            "MODEL.FPN.NORM": "GW(num_groups=32)",
            "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3"],
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
            "MODEL.ROI_BOX_HEAD.NORM": "GW(iterations=7)",
            "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
            "MODEL.ROI_MASK_HEAD.NORM": "GW(rescale=true)",
        },
    )
    model = build_model(cfg)
    assert isinstance(model, META_ARCH_REGISTRY.get("GeneralizedRCNN"))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, GroupWhitening)}
    assert {m.num_groups for n, m in layers.items() if "bottom_up" in n} == {16}
    assert {m.num_groups for n, m in layers.items() if "fpn" in n} == {32}
    assert {m.iterations for n, m in layers.items() if "box_head" in n} == {7}
    assert {m.rescale for n, m in layers.items() if "mask_head" in n} == {True}
    assert "backbone.bottom_up.res2.0.conv2.norm" in layers


@pytest.mark.parametrize("options, groups", [("", 64), ("()", 64), ("( num_groups = 32 )", 32)])
def test_gw_is_the_papers_layer_unless_told_otherwise(options, groups):
    layer = detectron2.layers.get_norm("GW" + options, 128)
    assert (layer.num_groups, layer.iterations, layer.eps) == (groups, 5, 1e-5)
    assert (layer.method, layer.rescale, layer.weight is None) == ("itn", False, False)


def test_every_option_can_be_given():
    layer = detectron2.layers.get_norm(
        "GW(num_groups=32, iterations=7, eps=1e-3, method=zca, affine=False, rescale=true)", 128
    )
    assert (layer.num_groups, layer.iterations, layer.eps) == (32, 7, 1e-3)
    assert (layer.method, layer.rescale, layer.weight) == ("zca", True, None)


@pytest.mark.parametrize(
    "norm, kind",
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("FrozenBN", detectron2.layers.FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("LN", batch_norm.LayerNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", batch_norm.NaiveSyncBatchNorm),
        ("naiveSyncBN_N", batch_norm.NaiveSyncBatchNorm),
        (lambda channels: nn.InstanceNorm2d(channels), nn.InstanceNorm2d),
        ("", type(None)),
        (None, type(None)),
    ],
)
def test_every_other_norm_is_as_before(norm, kind):
    assert type(detectron2.layers.get_norm(norm, 32)) is kind


@pytest.mark.parametrize(
    "norm, fragments",
    [
        ("gw", ['"gw"', "nearest is GW", "FrozenBN"]),
        ("GWN", ['"GWN"', "nearest is GW"]),
        ("FrozenBatchNorm", ['"FrozenBatchNorm"', "nearest is FrozenBN"]),
        ("GW(groups=32)", ['"groups"', "nearest is num_groups", "iterations, eps, method"]),
        ("GW(num_groups=many)", ["num_groups", "whole number", '"many"']),
        ("GW(num_groups=1.5)", ["num_groups", "whole number", '"1.5"']),
        ("GW(num_groups=48)", ["num_groups=48", "num_channels=256", "32 and 64"]),
        ("GW(eps=small)", ["eps", "a number", '"small"']),
        ("GW(eps=nan)", ["eps", "finite", "nan"]),
        ("GW(method=pca)", ["method", "itn, zca", "pca"]),
        ("GW(rescale=1)", ["rescale", "true or false", '"1"']),
        ("GW(num_groups)", ['"num_groups"', "option=value"]),
        ("GW(num_groups=8, num_groups=8)", ['"num_groups"', "twice"]),
        ("GW(num_groups=8", ["GW(option=value, ...)"]),
        ("GW[8]", ["GW(option=value, ...)"]),
    ],
)
def test_a_wrong_norm_is_one_line_that_names_it_and_what_is_allowed(norm, fragments):
    with pytest.raises(UsageError) as error:
        detectron2.layers.get_norm(norm, 256)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    assert "\n" not in message and norm in message


def test_registering_again_changes_nothing():
    before = detectron2.layers.get_norm
    gw_detectron.setup_environment()
    norm = importlib.reload(sys.modules["gw_detectron.modeling.norm"])
    importlib.reload(sys.modules["gw_detectron.modeling.backbone"])
    assert detectron2.layers.get_norm is before
    assert isinstance(before("GN", 32), nn.GroupNorm)
    assert type(before("GW", 32)).__name__ == "GroupWhitening"
    assert norm.OPTIONS["num_groups"] == 64


@pytest.mark.parametrize(
    "first, variable",
    [
        ("import detectron2", True),
        ("import gw_detectron.layers", True),
        ("import detectron2.modeling.backbone.resnet, gw_detectron", False),
    ],
)
def test_any_import_order_makes_gw_known(first, variable, monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_ENV_MODULE", raising=False)
    if variable:
        monkeypatch.setenv("DETECTRON2_ENV_MODULE", "gw_detectron")
    code = (
        f"{first}\n"
        "from detectron2.config import get_cfg\n"
        "from detectron2.modeling.backbone.fpn import get_norm\n"
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.utils.file_io import PathManager\n"
        "assert type(get_norm('GW', 8)).__name__ == 'GroupWhitening'\n"
        "assert get_cfg().MODEL.GW.POSITIONS == 'S1-B2'\n"
        "assert 'build_gw_resnet_backbone' in BACKBONE_REGISTRY\n"
        "assert 'gw_shapes_train' in DatasetCatalog\n"
        "assert 'gw://' in PathManager._path_handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_detectron2s_optimizer_spares_gw_the_weight_decay_of_norms():
    groups = get_default_optimizer_params(
        nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), detectron2.layers.get_norm("GW", 8)),
        weight_decay=1e-4,
        weight_decay_norm=0.0,
    )
    assert {len(g["params"]): g["weight_decay"] for g in groups} == {1: 1e-4, 2: 0.0}


def test_fvcore_counts_a_gw_layers_products_without_a_warning():
    layer = detectron2.layers.get_norm("GW(num_groups=16)", 64)
    analysis = FlopCountAnalysis(layer, torch.randn(2, 64, 16, 16))
    covariance = application = 2 * 16 * 64 * 16 * 16
    newton = 2 * 3 * (5 - 1) * 16**3
    assert analysis.by_operator() == {"bmm": covariance + application + newton}
    assert not analysis.unsupported_ops()


def test_a_gw_detectors_output_is_modified_in_place_without_error(device):
    block = PLACES["ViT's residual blocks"][0]("GW(num_groups=8)").to(device)
    x = torch.randn(1, 64, 6, 6, requires_grad=True, device=device)
    block(x).sum().backward()
    assert x.grad.isfinite().all()
