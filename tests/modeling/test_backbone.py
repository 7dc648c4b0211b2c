import itertools

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.modeling.backbone import parse_positions

STAGES = ["res2", "res3", "res4", "res5"]


def build(name="build_gw_resnet_backbone", depth=50, device="meta", **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    cfg.MODEL.RESNETS.NORM = "GW"
    cfg.MODEL.FPN.IN_FEATURES = STAGES[1:] if "retinanet" in name else STAGES
    if depth in (18, 34):
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.merge_from_list([item for pair in keys.items() for item in pair])
    with torch.device(device):
        return build_backbone(cfg, ShapeSpec(channels=3))


def layers(model, kind=GroupWhitening):
    return {name for name, module in model.named_modules() if type(module) is kind}


def at(blocks, convs, stem=True):
    """The names of the norms after the given convolutions of a ResNet with blocks a stage."""
    names = {"stem.conv1.norm"} if stem else set()
    for stage, number in enumerate(blocks, start=2):
        names |= {
            f"res{stage}.{b}.conv{c}.norm" for b, c in itertools.product(range(number), convs)
        }
    return names


@pytest.mark.parametrize(
    "depth, blocks",
    [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)),
     (152, (3, 8, 36, 3))],
)  # fmt: skip
def test_the_default_is_s1_b2_over_frozen_bn(depth, blocks):
    resnet = build(depth=depth)
    gw = layers(resnet)
    # a basic block's one GW comes after its first convolution
    assert gw == at(blocks, convs=[1] if depth < 50 else [2])
    norms = sum("norm" in name for name, _ in resnet.named_modules())
    assert len(layers(resnet, FrozenBatchNorm2d)) == norms - len(gw)


@pytest.mark.parametrize(
    "positions, stem, bottleneck, basic",
    [
        ("S1", True, [], []),
        ("B1", False, [1], [1]),
        ("B12", False, [1, 2], [1, 2]),
        ("S1-B3", True, [3], [1]),
        ("S1-B13", True, [1, 3], [1, 2]),
        ("S1-B123", True, [1, 2, 3], [1, 2]),
    ],
)
def test_positions_are_where_they_say(positions, stem, bottleneck, basic):
    keys = {"MODEL.GW.POSITIONS": positions, "MODEL.GW.BASE_NORM": "BN"}
    assert layers(build(depth=50, **keys)) == at((3, 4, 6, 3), bottleneck, stem)
    assert layers(build(depth=18, **keys)) == at((2, 2, 2, 2), basic, stem)


def test_a_shortcuts_norm_stays_the_base_norm():
    resnet = build(**{"MODEL.GW.POSITIONS": "S1-B123", "MODEL.GW.BASE_NORM": "GN"})
    assert layers(resnet, nn.GroupNorm) == {f"res{stage}.0.shortcut.norm" for stage in (2, 3, 4, 5)}


@pytest.mark.parametrize("positions", ["", "S2", "B", "-B2", "S1-", "S1B2", "B21", "B4", "s1-b2"])
def test_a_wrong_position_says_what_is_allowed(positions):
    with pytest.raises(UsageError) as error:
        parse_positions(positions)
    message = str(error.value)
    assert f'"{positions}"' in message and "S1-B2" in message and "\n" not in message


@pytest.mark.parametrize("key", ["MODEL.RESNETS.NORM", "MODEL.GW.BASE_NORM"])
def test_a_wrong_norm_stops_at_build_time(key):
    with pytest.raises(UsageError, match="GWW"):
        build(depth=18, **{key: "GWW"})


@pytest.mark.parametrize(
    "name, features",
    [
        ("build_gw_resnet_fpn_backbone", ["p2", "p3", "p4", "p5", "p6"]),
        ("build_gw_retinanet_resnet_fpn_backbone", ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_the_fpn_builders_whiten_the_same_places_and_leave_the_fpn_its_own_norm(
    name, features, device
):
    fpn = build(name, depth=18, device=device, **{"MODEL.FPN.NORM": "GN"})
    assert list(fpn.output_shape()) == features
    assert layers(fpn) == {f"bottom_up.{n}" for n in at((2, 2, 2, 2), [1])}
    assert all("bottom_up" not in n for n in layers(fpn, nn.GroupNorm))
    outputs = fpn(torch.randn(1, 3, 64, 64, device=device))
    assert all(outputs[name].isfinite().all() for name in features)


def test_frozen_stages_freeze_their_whitening_too():
    resnet = build(**{"MODEL.BACKBONE.FREEZE_AT": 2, "MODEL.GW.BASE_NORM": "BN"})
    trained = {name.split(".")[0] for name, p in resnet.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4", "res5"}
    assert {n.split(".")[0] for n in layers(resnet, nn.BatchNorm2d)} == {"res3", "res4", "res5"}
    assert {n.split(".")[0] for n in layers(resnet, FrozenBatchNorm2d)} == {"res2"}


def test_resnext_whitens_the_grouped_convolution():
    resnet = build(**{"MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 8})
    assert layers(resnet) == at((3, 4, 6, 3), [2])
    assert resnet.res2[0].conv2.norm.num_channels == 256


def test_deformable_blocks_whiten_the_same_places(monkeypatch):
    class DeformConv(Conv2d):
        """In the place of Detectron2's, which isn't there without its compiled operators."""

        def __init__(self, *args, deformable_groups, **kwargs):
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("detectron2.modeling.backbone.resnet.DeformConv", DeformConv)
    resnet = build(**{"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]})
    assert layers(resnet) == at((3, 4, 6, 3), [2])
    assert "res3.0.conv2" in layers(resnet, DeformConv)


def test_weights_keep_detectron2s_names():
    assert {"stem.conv1.norm.weight", "res2.0.conv2.norm.bias"} <= set(build().state_dict())


def test_gradients_reach_every_layer(device):
    keys = {"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.GW.BASE_NORM": "GN"}
    resnet = build(depth=18, device=device, **keys)
    outputs = resnet(torch.randn(2, 3, 64, 64, device=device))
    sum(f.square().mean() for f in outputs.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in resnet.parameters())
