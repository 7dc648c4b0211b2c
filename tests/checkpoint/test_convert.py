"""Converted weights: the same network in Detectron2, and the line that each wrong file gives."""

import argparse
import os
from collections import OrderedDict

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from gw_detectron.checkpoint import convert_file
from gw_detectron.checkpoint.convert import convert
from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening

from . import plain_resnet

STAGES = ["res2", "res3", "res4", "res5"]


def gw_backbone(depth, groups=1, width=64, name="build_gw_resnet_backbone"):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.MODEL.RESNETS.NORM = "GW"
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


def as_the_authors(state):
    """A checkpoint of their training script, trained on several GPUs."""
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    arguments = argparse.Namespace(arch="resnet", lr=0.1, lr_step=[30, 60])
    return {"model": state, "cfg": arguments, "epoch": 99, "best_prec1": torch.tensor(77.7)}


def under_state_dict(state):
    """With parameters for tensors, of a compiled model."""
    state = {
        f"module._orig_mod.{name}": nn.Parameter(t) if t.is_floating_point() else t
        for name, t in state.items()
    }
    return {"state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def state_of(*args, **kwargs):
    """Of a plain ResNet; all values of a tensor are the same one in memory."""
    with torch.device("meta"):
        state = plain_resnet.build(*args, **kwargs).state_dict()
    return {name: torch.ones((), dtype=t.dtype).expand(t.shape) for name, t in state.items()}


@pytest.fixture(scope="module")
def r18():
    return plain_resnet.randomise(plain_resnet.build(18, num_classes=10)).state_dict()


@pytest.fixture
def source(r18, tmp_path):
    torch.save(r18, tmp_path / "in.pth")
    return tmp_path / "in.pth"


# ---- What is converted -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "depth, groups, width, wrap, zipped",
    [
        (18, 1, 64, dict, False),
        (50, 1, 64, as_the_authors, True),
        (50, 32, 4, under_state_dict, True),
    ],
)
def test_the_converted_backbone_gives_the_same_features(
    depth, groups, width, wrap, zipped, tmp_path
):
    plain = plain_resnet.build(depth, groups=groups, width_per_group=width, num_classes=10)
    plain_resnet.randomise(plain, seed=depth + groups)
    content = wrap(plain.state_dict())
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    convert_file(tmp_path / "in.pth", tmp_path / "out.pth")

    backbone = gw_backbone(depth, groups, width)
    DetectionCheckpointer(backbone).load(str(tmp_path / "out.pth"))

    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_resnet.features(plain.double(), x)
        features = backbone.double()(x)
    assert list(features) == STAGES
    for stage in STAGES:
        scale = expected[stage].abs().max()
        assert 0.1 < scale < 1e4
        assert (features[stage] - expected[stage]).abs().max() < 1e-5 * scale


def test_a_detectors_backbone_takes_all_of_it(r18, source, tmp_path):
    convert_file(source, tmp_path / "out.pth")
    fpn = gw_backbone(18, name="build_gw_resnet_fpn_backbone")
    left = DetectionCheckpointer(nn.ModuleDict({"backbone": fpn}))._load_model(
        torch.load(tmp_path / "out.pth", weights_only=True)
    )
    assert (
        set(left.unexpected_keys) == {"linear.weight", "linear.bias"} and not left.incorrect_shapes
    )
    assert not [name for name in left.missing_keys if "bottom_up" in name]
    assert torch.equal(fpn.bottom_up.stem.conv1.norm.weight, r18["bn1.weight"].flatten())
    assert torch.equal(fpn.bottom_up.stem.conv1.weight, r18["conv1.weight"])


@pytest.mark.parametrize("depth, groups, width", [(34, 1, 64), (101, 32, 8)])
def test_other_sizes_have_the_names_and_shapes(depth, groups, width):
    tensors, *_ = convert(state_of(depth, groups=groups, width_per_group=width))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes.pop("linear.weight")[0] == shapes.pop("linear.bias")[0] == 1000
    with torch.device("meta"):
        expected = gw_backbone(depth, groups, width).state_dict()
    assert shapes == {name: tensor.shape for name, tensor in expected.items()}


def test_the_file_holds_float32_tensors_by_name_and_the_classifier(r18, source, tmp_path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in r18.items()}
    torch.save(half, source)
    target = tmp_path / "a" / "b" / "out.pth"
    convert_file(source, target)
    assert os.listdir(target.parent) == ["out.pth"]
    tensors = torch.load(target, weights_only=True)["model"]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    for theirs, ours in (("conv1.weight", "stem.conv1.weight"), ("fc.bias", "linear.bias")):
        assert torch.equal(tensors[ours], r18[theirs].half().float())


@pytest.mark.parametrize(
    "target, reason",
    [
        ("out.pkl", "must end in .pth"),
        ("there.pth", "there.pth exists"),
        ("in.pth/out.pth", "out.pth can't be written: File exists"),
    ],
)
def test_a_target_that_cannot_be_is_one_line(target, reason, source, tmp_path):
    (tmp_path / "there.pth").write_text("precious")
    with pytest.raises(UsageError, match=reason):
        convert_file(source, tmp_path / target)
    assert (tmp_path / "there.pth").read_text() == "precious"


# ---- What is said of it ----------------------------------------------------------------------


def test_the_report_is_two_lines_with_all_the_figures(tmp_path):
    state = state_of(50, groups=32, width_per_group=4, num_classes=10)
    torch.save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "in.pth")
    first, second = convert_file(tmp_path / "in.pth", tmp_path / "out.pth").splitlines()
    assert first == (
        "ResNet (MODEL.RESNETS: DEPTH 50, RES2_OUT_CHANNELS 256, STRIDE_IN_1X1 False, "
        "NUM_GROUPS 32, WIDTH_PER_GROUP 4), classifier of 10 classes"
    )
    tensors = 53 + 17 * 2 + 36 * 4 + 2  # convolutions, GW, BN, classifier
    assert second == (
        "Norms: 17 GW at conv2 stem, 36 BN at conv1 conv3 shortcut; "
        f"{tensors} tensors in {tmp_path / 'out.pth'}"
    )


GW = plain_resnet.TextbookGW


@pytest.mark.parametrize(
    "depth, positions, norm, base, norms",
    [
        (50, "S1-B123", GW, None, "49 GW at conv1 conv2 conv3 stem, 4 BN at shortcut"),
        (50, "S1-B2", GroupWhitening, None,
         "17 GN (or GW saved flat) at conv2 stem, 36 BN at conv1 conv3 shortcut"),
        (50, "", None, lambda c: nn.GroupNorm(32, c),
         "53 GN (or GW saved flat) at conv1 conv2 conv3 shortcut stem"),
        (18, "S1-B2", GW, None, "9 GW at conv1 stem, 11 BN at conv2 shortcut"),
        (18, "", None, None, "20 BN at conv1 conv2 shortcut stem"),
        (18, "", None, GW, "20 GW at conv1 conv2 shortcut stem"),
    ],
)  # fmt: skip
def test_the_report_names_the_positions(depth, positions, norm, base, norms):
    _, _, found = convert(state_of(depth, positions, norm=norm, base=base))
    assert found == norms


def test_a_file_may_have_no_classifier():
    state = state_of(50)
    del state["fc.weight"], state["fc.bias"]
    assert convert(state)[1].endswith("no classifier")


# ---- What is refused -------------------------------------------------------------------------


def refusal(state):
    with pytest.raises(UsageError) as error:
        convert(state)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_left_over_and_misshapen_tensors_are_named(r18):
    state = dict(r18)
    for name in ("layer1.0.bn2.running_var", "conv1.weight", "fc.bias", "layer2.0.bn1.bias"):
        del state[name]
    state |= {f"layer1.0.conv{k}.weight": torch.ones(1) for k in range(50, 60)}
    state["layer4.1.conv2.weight"] = state["layer4.1.conv2.weight"][:, :5]
    state["fc.weight"] = state["fc.weight"].T
    assert refusal(state) == (
        "not the tensors of a ResNet-18: 4 missing, first conv1.weight; "
        "10 left over, first layer1.0.conv50.weight; "
        "2 misshapen, first fc.weight (512, 10) instead of (512, 512)"
    )


NAMES = """
conv1.weight layer1.0.conv2.weight layer1.0.conv3.weight layer1.0.bn1.running_mean
layer1.0.bn2.bias layer2.0.downsample.0.weight fc.weight fc.bias
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_any_single_one_is_found(name):
    state = state_of(50, groups=32, width_per_group=4)
    tensor = state.pop(name)
    assert f" missing, first {name}" in refusal(state)
    assert " misshapen, first " in refusal({**state, name: torch.cat([tensor, tensor])})


@pytest.mark.parametrize("keys", ["running_mean running_var", "weight bias", "*"])
@pytest.mark.parametrize("block", ["layer1.0", "layer3.1"])
def test_a_norm_that_lost_what_tells_its_kind_is_found(r18, keys, block):
    prefix = f"{block}.bn2."
    lost = [prefix + key for key in keys.split()]
    if keys == "*":
        lost = [name for name in r18 if name.startswith(prefix)]
    message = refusal({name: tensor for name, tensor in r18.items() if name not in lost})
    expected = sorted(name for name in lost if not name.endswith("num_batches_tracked"))
    assert message.endswith(f": {len(expected)} missing, first {expected[0]}")


def test_a_norm_unlike_those_at_its_place_is_refused(r18):
    gw = {f"layer3.1.bn2.{key}": torch.ones(1, 256, 1, 1) for key in ("weight", "bias")}
    state = {n: t for n, t in r18.items() if not n.startswith("layer3.1.bn2.")} | gw
    assert refusal(state).endswith(": 2 missing, first layer3.1.bn2.running_mean")


@pytest.mark.parametrize(
    "name, value",
    [
        ("bn1.weight", torch.full((1, 64, 1, 1), float("nan"))),
        ("fc.bias", torch.full((10,), float("-inf"))),
        ("fc.bias", torch.full((10,), 1e300, dtype=torch.float64)),
    ],
)
def test_values_that_no_weights_have_are_named(name, value, r18):
    assert refusal({**r18, name: value}).endswith(f": 1 not finite in float32, first {name}")


def test_other_networks_are_refused(r18):
    assert "in torchvision's names" in refusal({"features.0.weight": torch.ones(1)})
    missing = {n: t for n, t in r18.items() if not n.startswith("layer4.1.")}
    assert "(2, 2, 2, 1) blocks" in refusal(missing)
    wide = {n: torch.cat([t, t]) if t.dim() else t for n, t in r18.items()}
    assert "misshapen" in refusal(wide)
    assert "Detectron2's already" in refusal(convert(r18)[0])


def test_a_refused_file_is_named_and_nothing_written(r18, source, tmp_path):
    torch.save({"model": {**r18, "fc.bias": torch.ones(3)}}, source)
    with pytest.raises(UsageError, match=f"^{source}: not the tensors of a ResNet-18: 1 misshapen"):
        convert_file(source, tmp_path / "out" / "R.pth")
    assert not (tmp_path / "out").exists()
