import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from gw_detectron.checkpoint import WeightsCheckpointer
from gw_detectron.errors import UsageError


class Detector(nn.Module):
    def __init__(self, depth=18, norm="GN"):
        super().__init__()
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.DEPTH = depth
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
        cfg.MODEL.FPN.OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.NORM = norm
        self.backbone = build_backbone(cfg)
        self.head = nn.Linear(8, 3)


def model(depth=18, norm="BN"):
    torch.manual_seed(depth)
    return Detector(depth, norm)


def load(path, into):
    WeightsCheckpointer(into).load(str(path))


class Hostile:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "m.pyth"])
def test_a_file_that_brings_code_is_not_read(name, tmp_path):
    content = {"model": {"a": Hostile(tmp_path / "ran")}, "__author__": "x", "model_state": {}}
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match="without running code") as error:
        load(path, model())
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["m.pth", "m.pkl"])
@pytest.mark.parametrize("part", [0, 10, 100_000])
def test_a_file_cut_short_is_told_in_one_line(name, part, tmp_path):
    state = {k: v.numpy() for k, v in model().state_dict().items()}
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": state, "__author__": "x"}))
    else:
        torch.save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(UsageError, match="cut short or damaged"):
        load(path, model())


@pytest.mark.parametrize(
    "content, reason",
    [
        ([1], "holds list where"),
        ({}, "holds nothing where"),
        ({"model": 3}, "holds int where"),
        ({"a": "x"}, "holds a str named 'a'"),
        ({3: torch.zeros(1)}, "holds a Tensor named 3"),
    ],
)
def test_what_are_no_weights_is_told(content, reason, tmp_path):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(UsageError, match=f"m.pth {reason},?.* weights by name are expected"):
        load(tmp_path / "m.pth", model())


def test_a_pycls_file_has_a_model_state(tmp_path):
    torch.save({"state": {}}, tmp_path / "m.pyth")
    with pytest.raises(UsageError, match='m.pyth has no "model_state"'):
        load(tmp_path / "m.pyth", model())


def test_weights_of_which_nothing_fits_are_refused(tmp_path):
    state = {f"net.{name}": value for name, value in model().state_dict().items()}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(UsageError, match="m.pth has nothing of this model: its net.backbone"):
        load(tmp_path / "m.pth", model())


def test_weights_that_cannot_be_fetched_are_one_line():
    with pytest.raises(UsageError, match="https://localhost:1/m.pth can't be had: .*refused"):
        load("https://localhost:1/m.pth", model())


@pytest.mark.parametrize("name", ["m.pth", "m.pkl"])
def test_whole_weights_are_loaded(name, tmp_path):
    source, target = model(), model()
    nn.init.constant_(source.head.bias, 7.0)
    path = tmp_path / name
    if name.endswith(".pkl"):
        arrays = {k: v.numpy() for k, v in source.state_dict().items()}
        arrays["backbone.bottom_up.stem.conv1.weight"] += np.float32(1)
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    else:
        torch.save({"model": source.state_dict()}, path)
    load(path, target)
    assert torch.equal(target.head.bias, torch.full((3,), 7.0))


def test_heads_of_other_classes_and_another_norm_are_left_as_they_are(tmp_path):
    state = model(norm="BN").state_dict()
    state["head.weight"] = torch.zeros(5, 8)
    torch.save(state, tmp_path / "m.pth")
    target = model(norm="GN")
    kept = target.head.weight.clone()
    load(tmp_path / "m.pth", target)
    assert torch.equal(target.head.weight, kept)


def test_weights_of_another_depth_are_refused(tmp_path):
    torch.save(model(34).state_dict(), tmp_path / "r34.pth")
    with pytest.raises(UsageError, match="r34.pth has 3 blocks in res2 and the model 2"):
        load(tmp_path / "r34.pth", model(18))


def test_weights_in_caffe2s_names_of_another_depth_are_refused(tmp_path):
    arrays = {f"res3_{k}_branch2a_w": np.zeros((8, 8, 1, 1), np.float32) for k in range(4)}
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": arrays}))
    with pytest.raises(UsageError, match="has 4 blocks in res3 and the model 2"):
        load(tmp_path / "c2.pkl", model(18))


@pytest.mark.parametrize(
    "spoil, seen",
    [
        (
            lambda v: torch.zeros(8, 8, 1, 1),
            r"in the file \(8, 8, 1, 1\), in the model \(64, 64, 3",
        ),
        (lambda v: None, "in the file not there"),
    ],
)
def test_weights_that_fit_the_backbone_in_part_are_refused(spoil, seen, tmp_path):
    state = dict(model().state_dict())
    name = "backbone.bottom_up.res2.1.conv1.weight"
    state[name] = spoil(state[name])
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "m.pth")
    with pytest.raises(
        UsageError, match=f"1 are missing or of another shape, first {name}.*{seen}"
    ):
        load(tmp_path / "m.pth", model())
