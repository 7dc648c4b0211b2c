import argparse
import os
import pickle
from collections import OrderedDict

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from gw_detectron.checkpoint import check, convert_file, read_state_dict, recognise, rename
from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening

from . import plain_resnet

STAGES = ["res2", "res3", "res4", "res5"]


def gw_config(depth, groups=1, width=64, backbone="build_gw_resnet_backbone"):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    cfg.MODEL.RESNETS.NORM = "GW"
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return cfg


def gw_backbone(depth, groups=1, width=64):
    return build_backbone(gw_config(depth, groups, width), ShapeSpec(channels=3)).eval()


def save(content, path, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def as_is(state):
    return state


def as_the_authors(state):
    """A checkpoint of their training script, trained on several GPUs."""
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    arguments = argparse.Namespace(arch="resnet", lr=0.1, lr_step=[30, 60])
    return {"model": state, "cfg": arguments, "epoch": 99, "best_prec1": torch.tensor(77.7)}


def under_state_dict(state):
    """With parameters for tensors, of a compiled model."""
    state = {f"module._orig_mod.{name}": as_parameter(tensor) for name, tensor in state.items()}
    return {"state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def as_parameter(tensor):
    return nn.Parameter(tensor) if tensor.is_floating_point() else tensor


@pytest.fixture(scope="module")
def r18():
    return plain_resnet.randomise(plain_resnet.build(18, num_classes=10)).state_dict()


@pytest.fixture
def converted(r18, tmp_path):
    convert_file(save(r18, tmp_path / "in.pth"), tmp_path / "out.pth")
    return torch.load(tmp_path / "out.pth", weights_only=True)["model"]


@pytest.fixture
def fails(tmp_path):
    """Converts a state dict (or whatever) that can't be, and gives the error's message."""

    def convert(content):
        source = save(content, tmp_path / "in.pth")
        with pytest.raises(UsageError) as error:
            convert_file(source, tmp_path / "out" / "R.pth")
        assert not (tmp_path / "out").exists()
        message = str(error.value)
        assert message.startswith(str(source)) and "\n" not in message
        return message

    return convert


class TestTheConvertedBackboneIsTheSameNetwork:
    @pytest.mark.parametrize(
        "depth, groups, width, wrap, ending, zipped",
        [
            (18, 1, 64, as_is, "pth", False),
            (50, 1, 64, as_the_authors, "pth", True),
            (50, 32, 4, under_state_dict, "pkl", True),
        ],
    )
    def test_gives_the_same_features(self, depth, groups, width, wrap, ending, zipped, tmp_path):
        plain = plain_resnet.build(depth, groups=groups, width_per_group=width, num_classes=10)
        plain_resnet.randomise(plain, seed=depth + groups)
        source = save(wrap(plain.state_dict()), tmp_path / "in.pth", zipped)
        convert_file(source, tmp_path / f"out.{ending}")

        backbone = gw_backbone(depth, groups, width)
        DetectionCheckpointer(backbone).load(str(tmp_path / f"out.{ending}"))

        x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
        with torch.no_grad():
            expected = plain_resnet.features(plain.double(), x)
            features = backbone.double()(x)
        assert list(features) == STAGES
        for stage in STAGES:
            scale = expected[stage].abs().max()
            assert 0.1 < scale < 1e4
            assert (features[stage] - expected[stage]).abs().max() < 1e-5 * scale

    def test_a_detectors_backbone_takes_all_of_it(self, r18, tmp_path):
        convert_file(save(r18, tmp_path / "in.pth"), tmp_path / "out.pth", drop_classifier=True)
        cfg = gw_config(18, backbone="build_gw_resnet_fpn_backbone")
        cfg.MODEL.FPN.IN_FEATURES = STAGES
        detector = nn.ModuleDict({"backbone": build_backbone(cfg, ShapeSpec(channels=3))})
        left = DetectionCheckpointer(detector)._load_model(
            torch.load(tmp_path / "out.pth", weights_only=True)
        )
        assert not left.unexpected_keys and not left.incorrect_shapes
        assert not [name for name in left.missing_keys if "bottom_up" in name]
        stem = detector["backbone"].bottom_up.stem.conv1
        assert isinstance(stem.norm, GroupWhitening)
        assert torch.equal(stem.norm.weight, r18["bn1.weight"].flatten())
        assert torch.equal(stem.weight, r18["conv1.weight"])

    def test_detectron2s_own_classifier_takes_the_classifier(self, r18, converted):
        assert torch.equal(converted["linear.weight"], r18["fc.weight"])
        assert torch.equal(converted["linear.bias"], r18["fc.bias"])

    @pytest.mark.parametrize(
        "depth, groups, width",
        [(34, 1, 64), (101, 1, 64), (152, 1, 64), (101, 32, 8), (50, 1, 128)],
    )
    def test_other_sizes_have_the_names_and_shapes(self, depth, groups, width):
        with torch.device("meta"):
            plain = plain_resnet.build(depth, groups=groups, width_per_group=width)
            backbone = gw_backbone(depth, groups, width)
        state = plain.state_dict()
        layout = recognise(state)
        check(state, layout)
        assert (layout.depth, layout.num_groups, layout.width_per_group) == (depth, groups, width)
        shapes = {name: tensor.shape for name, tensor in rename(state, layout).items()}
        assert shapes.pop("linear.weight")[0] == shapes.pop("linear.bias")[0] == 1000
        assert shapes == {name: tensor.shape for name, tensor in backbone.state_dict().items()}


class TestTheFile:
    def test_pth_loads_with_weights_only_and_holds_nothing_else(self, converted, tmp_path):
        content = torch.load(tmp_path / "out.pth", weights_only=True)
        assert content.keys() == {"model", "__author__", "matching_heuristics"}
        assert content["matching_heuristics"] is True
        assert not any("num_batches_tracked" in name for name in converted)
        assert all(tensor.dtype == torch.float32 for tensor in converted.values())

    def test_pkl_is_detectron2s(self, r18, converted, tmp_path):
        convert_file(tmp_path / "in.pth", tmp_path / "out.pkl")
        content = pickle.loads((tmp_path / "out.pkl").read_bytes())
        assert content["matching_heuristics"] is True
        assert content["model"].keys() == converted.keys()
        assert all((a == converted[name].numpy()).all() for name, a in content["model"].items())

    def test_classifier_is_dropped_on_request_only(self, converted, tmp_path):
        convert_file(tmp_path / "in.pth", tmp_path / "without.pth", drop_classifier=True)
        without = torch.load(tmp_path / "without.pth", weights_only=True)["model"]
        assert converted.keys() - without.keys() == {"linear.weight", "linear.bias"}

    def test_its_folder_is_made_and_no_other_file_stays(self, r18, tmp_path):
        convert_file(save(r18, tmp_path / "in.pth"), tmp_path / "a" / "b" / "out.pth")
        assert os.listdir(tmp_path / "a" / "b") == ["out.pth"]

    def test_half_precision_becomes_float32(self, r18, tmp_path):
        half = {name: t.half() if t.is_floating_point() else t for name, t in r18.items()}
        convert_file(save(half, tmp_path / "in.pth"), tmp_path / "out.pth")
        model = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
        assert torch.equal(model["stem.conv1.weight"], r18["conv1.weight"].half().float())

    def test_an_existing_one_is_replaced_on_request_only(self, r18, tmp_path):
        source, target = save(r18, tmp_path / "in.pth"), tmp_path / "out.pth"
        target.write_text("precious")
        with pytest.raises(UsageError, match="out.pth exists.*--overwrite"):
            convert_file(source, target)
        assert target.read_text() == "precious"
        convert_file(source, target, overwrite=True)
        assert "model" in torch.load(target, weights_only=True)

    def test_the_one_that_is_read_is_never_replaced(self, r18, tmp_path):
        source = save(r18, tmp_path / "in.pth")
        with pytest.raises(UsageError, match="name another"):
            convert_file(source, source, overwrite=True)

    @pytest.mark.parametrize("name", ["out", "out.pyth", "out.pt"])
    def test_its_ending_must_be_one_that_detectron2_knows(self, name, r18, tmp_path):
        with pytest.raises(UsageError, match=r"\.pth or \.pkl"):
            convert_file(save(r18, tmp_path / "in.pth"), tmp_path / name)

    def test_a_folder_or_a_place_where_it_cannot_be_is_an_error(self, r18, tmp_path):
        source = save(r18, tmp_path / "in.pth")
        (tmp_path / "folder.pth").mkdir()
        for target in (tmp_path / "folder.pth", source / "out.pth"):
            with pytest.raises(UsageError, match=target.name):
                convert_file(source, target, overwrite=True)

    def test_a_failed_writing_leaves_nothing(self, r18, tmp_path, monkeypatch):
        def full(*args):
            args[1].write(b"half of it")
            raise OSError(28, "No space left on device")

        source = save(r18, tmp_path / "in.pth")
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(UsageError, match="No space left"):
            convert_file(source, tmp_path / "new" / "out.pth")
        assert os.listdir(tmp_path / "new") == []


class TestTheReport:
    def test_is_two_lines_with_all_the_figures(self, tmp_path):
        model = plain_resnet.build(50, groups=32, width_per_group=4, num_classes=10)
        source = save(model.state_dict(), tmp_path / "in.pth")
        first, second = convert_file(source, tmp_path / "out.pth").splitlines()
        assert first == (
            "ResNeXt-50 32x4d (MODEL.RESNETS: DEPTH 50, NUM_GROUPS 32, WIDTH_PER_GROUP 4, "
            "STEM_OUT_CHANNELS 64, RES2_OUT_CHANNELS 256, STRIDE_IN_1X1 False), "
            "classifier of 10 classes"
        )
        tensors = 53 + 17 * 2 + 36 * 4 + 2  # convolutions, GW, BN, classifier
        assert second == (
            f"Norms: S1-B2 GW over BN (17 GW, 36 BN); {tensors} tensors in {tmp_path / 'out.pth'}"
        )

    @pytest.mark.parametrize("positions", ["S1", "S1-B1", "B2", "S1-B3", "S1-B12", "S1-B123"])
    def test_names_the_positions_of_a_bottleneck(self, positions):
        layout = recognise(self.meta(50, positions))
        assert layout.describe_norms().startswith(f"{positions} GW over BN (")

    @pytest.mark.parametrize("positions", ["S1", "S1-B2", "B2"])
    def test_names_the_positions_of_a_basic_block(self, positions):
        layout = recognise(self.meta(18, positions))
        assert layout.describe_norms().startswith(f"{positions} GW over BN (")

    def meta(self, *args, **kwargs):
        with torch.device("meta"):
            return plain_resnet.build(*args, **kwargs).state_dict()

    def test_both_norms_of_a_basic_block_are_b12(self):
        state = self.meta(18, "S1", base=plain_resnet.TextbookGW)
        bn = self.meta(18)
        state = {n: t for n, t in state.items() if "downsample.1" not in n}
        state |= {n: t for n, t in bn.items() if "downsample.1" in n}
        assert recognise(state).describe_norms() == "S1-B12 GW over BN (17 GW, 3 BN)"

    def test_one_norm_everywhere_is_said_so(self):
        bn = recognise(self.meta(18, ""))
        gw = recognise(self.meta(18, "", base=plain_resnet.TextbookGW))
        assert bn.describe_norms() == "BN everywhere (20 BN)"
        assert gw.describe_norms() == "GW everywhere (20 GW)"

    def test_flat_norms_without_statistics_are_gn_or_a_flat_gw(self):
        gn = recognise(self.meta(50, "", base=lambda c: nn.GroupNorm(32, c)))
        assert gn.describe_norms().startswith("GN everywhere (53 GN; a GW that was saved flat")
        flat = recognise(self.meta(50, "S1-B2", norm=GroupWhitening))
        assert flat.describe_norms().startswith("S1-B2 GN over BN (17 GN, 36 BN; a GW that was ")
        check(self.meta(50, "S1-B2", norm=GroupWhitening), flat)

    def test_irregular_places_are_listed(self):
        state = self.meta(18, "S1")
        gw = self.meta(18, "S1-B2")
        state = {n: t for n, t in state.items() if not n.startswith("layer3.1.bn1.")}
        state |= {n: t for n, t in gw.items() if n.startswith("layer3.1.bn1.")}
        assert recognise(state).describe_norms() == (
            "at no MODEL.GW.POSITIONS: GW at stem.conv1, GW at res4.1.conv1, BN elsewhere "
            "(2 GW, 18 BN)"
        )

    def test_a_file_without_classifier_is_one_too(self):
        state = self.meta(18)
        del state["fc.weight"], state["fc.bias"]
        layout = recognise(state)
        check(state, layout)
        assert layout.describe().endswith("no classifier")

    def test_a_wider_stem_is_recognised(self):
        state = self.meta(50)
        with torch.device("meta"):
            state["conv1.weight"] = torch.empty(32, 3, 7, 7)
            for name in ("weight", "bias"):
                state[f"bn1.{name}"] = torch.empty(1, 32, 1, 1)
            state["layer1.0.conv1.weight"] = torch.empty(64, 32, 1, 1)
            state["layer1.0.downsample.0.weight"] = torch.empty(256, 32, 1, 1)
        layout = recognise(state)
        check(state, layout)
        assert layout.stem_channels == 32


class TestWrongTensors:
    def test_every_missing_left_over_and_misshapen_one_is_named(self, r18, fails):
        state = dict(r18)
        for name in ("layer1.0.bn2.running_var", "conv1.weight", "fc.bias", "layer2.0.bn1.bias"):
            del state[name]
        state["last_bn.weight"] = torch.ones(512)
        state["layer1.0.conv9.weight"] = torch.ones(1)
        state["layer4.1.conv2.weight"] = state["layer4.1.conv2.weight"][:, :5]
        state["fc.weight"] = state["fc.weight"].T
        message = fails(state)
        missing, left_over, misshapen = message.split("; ")[1:]
        missing = missing.removeprefix("missing: ").split(", ")
        assert sorted(missing) == [
            "conv1.weight",
            "fc.bias",
            "layer1.0.bn2.running_var",
            "layer2.0.bn1.bias",
        ]
        assert left_over == "left over: last_bn.weight, layer1.0.conv9.weight"
        assert misshapen == (
            "misshapen: layer4.1.conv2.weight (512, 5, 3, 3) instead of (512, 512, 3, 3), "
            "fc.weight (512, 10) instead of (512, 512)"
        )

    @pytest.mark.parametrize("depth, groups, width", [(18, 1, 64), (50, 32, 4)])
    def test_any_single_one_is_found(self, depth, groups, width):
        with torch.device("meta"):
            plain = plain_resnet.build(depth, groups=groups, width_per_group=width)
        state = {n: t for n, t in plain.state_dict().items() if "num_batches" not in n}
        for name, tensor in state.items():
            missing = {other: t for other, t in state.items() if other != name}
            with pytest.raises(UsageError, match=f"; missing: {name}$"):
                check(missing, recognise(missing))
            misshapen = {**state, name: torch.cat([tensor, tensor])}
            if not name.startswith("fc."):  # weight and bias disagree: either may be the wrong one
                with pytest.raises(UsageError, match=f"; misshapen: {name} [^a-z]* instead of "):
                    check(misshapen, recognise(misshapen))
        check(state, recognise(state))

    def test_a_bn_that_lost_its_statistics_or_all_of_it_is_missing_them(self, r18, fails):
        state = dict(r18)
        for name in ("running_mean", "running_var"):
            del state[f"layer3.1.bn2.{name}"]
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            del state[f"layer1.1.bn2.{name}"]
        message = fails(state)
        assert "layer3.1.bn2.running_mean, layer3.1.bn2.running_var" in message
        assert "layer1.1.bn2.weight, layer1.1.bn2.bias, layer1.1.bn2.running_mean" in message

    def test_whitenings_half_flattened_are_misshapen(self, r18, fails):
        message = fails({**r18, "layer1.0.bn1.bias": torch.ones(64)})
        assert message.endswith("misshapen: layer1.0.bn1.bias (64,) instead of (1, 64, 1, 1)")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite_are_named(self, value, r18, fails):
        state = {**r18, "bn1.weight": torch.full((1, 64, 1, 1), value)}
        assert "not a number, in float32: bn1.weight" in fails(state)

    def test_values_too_large_for_float32_are_named(self, r18, fails):
        state = {**r18, "fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}
        assert fails(state).endswith("in float32: fc.bias")

    def test_negative_variances_are_named(self, r18, fails):
        state = {**r18, "layer1.0.bn2.running_var": torch.full((64,), -1.0)}
        assert fails(state).endswith("negative variances: layer1.0.bn2.running_var")

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.ones(10, dtype=torch.int64),
            torch.ones(10, device="meta"),
            torch.ones(10).to_sparse(),
        ],
    )
    def test_tensors_of_no_plain_floats_are_named(self, tensor, r18, fails):
        assert fails({**r18, "fc.bias": tensor}).endswith("floating-point numbers: fc.bias")


class TestWrongFiles:
    def test_other_networks_are_refused(self, r18, fails):
        assert "no ResNet in torchvision's names" in fails({"features.0.weight": torch.ones(1)})
        missing = {n: t for n, t in r18.items() if not n.startswith("layer4.1.")}
        assert "(2, 2, 2, 1) basic blocks" in fails(missing)
        empty = {n: torch.ones(1) if "conv" in n else t for n, t in r18.items()}
        assert "shapes of a ResNet" in fails(empty)

    def test_a_converted_file_needs_no_conversion(self, converted, fails):
        assert "Detectron2's already" in fails({"model": converted})

    @pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, torch.ones(3)])
    def test_what_is_no_state_dict_is_refused(self, content, fails):
        assert "not a state dict" in fails(content)

    def test_a_dict_with_other_things_is_refused_and_they_are_named(self, r18, fails):
        assert fails({**r18, "epoch": 3, 7: torch.ones(1)}).endswith("no tensors are: epoch, 7")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_in_a_file_is_never_run(self, zipped, r18, fails, tmp_path):
        content = {"state_dict": r18, "extra": Hostile(tmp_path / "it ran")}
        save(content, tmp_path / "hostile.pth", zipped)
        with pytest.raises(UsageError) as error:
            read_state_dict(tmp_path / "hostile.pth")
        assert "running code" in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "it ran").exists()
        # the same file does run it where it is trusted: the test would see it
        torch.load(tmp_path / "hostile.pth", weights_only=False)
        assert (tmp_path / "it ran").exists()

    def test_a_namespace_brings_no_code_in(self, r18, tmp_path):
        content = {"model": r18, "cfg": argparse.Namespace(a=Hostile(tmp_path / "it ran"))}
        with pytest.raises(UsageError, match="running code"):
            read_state_dict(save(content, tmp_path / "hostile.pth"))
        assert not (tmp_path / "it ran").exists()

    def test_a_plain_pickle_is_not_run_either(self, tmp_path):
        (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "it ran")))
        with pytest.raises(UsageError, match="hostile.pkl"):
            read_state_dict(tmp_path / "hostile.pkl")
        assert not (tmp_path / "it ran").exists()

    def test_a_whole_module_says_to_save_its_state_dict(self, fails):
        message = fails(nn.Linear(2, 2))
        assert "torch.nn.modules.linear.Linear" in message and "state_dict()" in message

    def test_a_torchscript_file_says_so(self, tmp_path):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "in.pth")
        with pytest.raises(UsageError, match="TorchScript"):
            read_state_dict(tmp_path / "in.pth")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_truncated_file_says_so(self, zipped, r18, tmp_path):
        path = save(r18, tmp_path / "in.pth", zipped)
        for size in (0, 50, 10**6):
            os.truncate(path, size)
            with pytest.raises(
                UsageError, match="in.pth is not a file of torch.save, or it is cut"
            ):
                read_state_dict(path)
            save(r18, path, zipped)

    @pytest.mark.parametrize("content", [b"<html>Not found</html>", b"hello", b"\x80\x02."])
    def test_any_other_file_says_so(self, content, tmp_path):
        (tmp_path / "in.pth").write_bytes(content)
        with pytest.raises(UsageError, match="is not a file of torch.save"):
            read_state_dict(tmp_path / "in.pth")

    def test_no_file_or_a_folder_says_so(self, tmp_path):
        with pytest.raises(UsageError, match="nothing.pth can't be read: No such file"):
            read_state_dict(tmp_path / "nothing.pth")
        with pytest.raises(UsageError, match="can't be read: Is a directory"):
            read_state_dict(tmp_path)


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)
