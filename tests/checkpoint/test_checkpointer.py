import argparse
import os
import pickle
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from safetensors.torch import save_file
from torch import nn

from gw_detectron.checkpoint import WeightsCheckpointer, read_state_dict
from gw_detectron.errors import UsageError


def model(depth=18, norm="BN"):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.NORM = norm
    return nn.ModuleDict({"backbone": build_backbone(cfg), "head": nn.Linear(8, 3)})


def load(path, into):
    WeightsCheckpointer(into).load(str(path))


class Hostile:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write(content, path, zipped=True):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


# Whatever reads a file: what trains or evaluates, and the converter
def load_into_model(path):
    load(path, model())


READERS = pytest.mark.parametrize(
    "read, name, zipped",
    [
        (load_into_model, "m.pth", True),
        (load_into_model, "m.pkl", True),
        (load_into_model, "m.pyth", True),
        (read_state_dict, "m.pth", True),
        (read_state_dict, "m.pth", False),
    ],
)


@READERS
@pytest.mark.parametrize("wrap", [list, lambda hostile: argparse.Namespace(a=hostile)])
def test_a_file_that_brings_code_is_not_read(read, name, zipped, wrap, tmp_path):
    content = {"model": {"a": torch.ones(1)}, "__author__": "x", "model_state": {}}
    write({**content, "extra": wrap([Hostile(tmp_path / "ran")])}, tmp_path / name, zipped)
    with pytest.raises(UsageError, match=f"{name} can't be read without running code") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    # The same file does run it where it is trusted: the test would see it
    if name == "m.pth":
        torch.load(tmp_path / name, weights_only=False)
        assert (tmp_path / "ran").exists()


@READERS
@pytest.mark.parametrize("part", [0, 50, 100_000])
def test_a_file_cut_short_is_told_in_one_line(read, name, zipped, part, tmp_path):
    state = model().state_dict()
    if name == "m.pkl":
        state = {k: v.numpy() for k, v in state.items()}
    write({"model": state, "model_state": state, "__author__": "x"}, tmp_path / name, zipped)
    os.truncate(tmp_path / name, part)
    with pytest.raises(UsageError, match=f"{name} is not a file of weights, or it is cut short"):
        read(tmp_path / name)


@pytest.mark.parametrize("part", [0, 50, 100_000])
@pytest.mark.parametrize("read", [load_into_model, read_state_dict])
def test_safetensors_cut_short_are_told_in_one_line(read, part, tmp_path):
    save_file(model().state_dict(), path := tmp_path / "m.safetensors")
    os.truncate(path, part)
    with pytest.raises(UsageError, match="m.safetensors is not a file of weights, or it is cut"):
        read(path)


def test_what_is_no_file_of_weights_is_told(tmp_path):
    (tmp_path / "page.pth").write_bytes(b"<html>Not found</html>")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pth")
    for name, message in {
        "page.pth": "page.pth is not a file of weights",
        "program.pth": "program.pth is not a file of weights",
        "module.pth": r"torch.nn.modules.linear.Linear.* state_dict\(\)",
        "nothing.pth": "nothing.pth can't be read: No such file",
        "nothing.safetensors": "nothing.safetensors can't be read: No such file",
        ".": "can't be read: Is a directory",
    }.items():
        with pytest.raises(UsageError, match=message):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    "content", [[1], {}, {"model": 3}, {"a": "x"}, {"model": torch.zeros(1), "epoch": 3},
                {3: torch.zeros(1)}]
)  # fmt: skip
@pytest.mark.parametrize("read", [load_into_model, read_state_dict])
def test_what_are_no_weights_is_told(content, read, tmp_path):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(UsageError, match="m.pth holds .* where weights by name are exp") as error:
        read(tmp_path / "m.pth")
    hint = "python tools/convert_weights.py " in str(error.value)
    assert hint == (read is load_into_model)


def test_weights_of_which_nothing_fits_are_refused(tmp_path):
    state = {f"net.{name}": value for name, value in model().state_dict().items()}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(UsageError, match="m.pth has nothing of this model: .* like net.b") as error:
        load(tmp_path / "m.pth", model())
    command = f"python tools/convert_weights.py {tmp_path / 'm.pth'} OUT.pth"
    assert str(error.value).endswith(command)


def test_weights_that_cannot_be_fetched_are_one_line():
    with pytest.raises(UsageError, match="https://localhost:1/m.pth can't be had: .*refused"):
        load("https://localhost:1/m.pth", model())


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "m.safetensors"])
def test_whole_weights_are_loaded(name, tmp_path):
    source, target = model(), model()
    nn.init.constant_(source["head"].bias, 7.0)
    path = tmp_path / name
    if name.endswith(".pkl"):
        arrays = {k: v.numpy() for k, v in source.state_dict().items()}
        arrays["backbone.bottom_up.stem.conv1.weight"] += np.float32(1)
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    elif name.endswith(".safetensors"):
        save_file(source.state_dict(), path)
    else:
        torch.save({"model": source.state_dict()}, path)
    load(path, target)
    assert torch.equal(target["head"].bias, torch.full((3,), 7.0))


def test_heads_of_other_classes_and_another_norm_are_left_as_they_are(tmp_path):
    state = model(norm="BN").state_dict()
    state["head.weight"] = torch.zeros(5, 8)
    torch.save(state, tmp_path / "m.pth")
    target = model(norm="GN")
    kept = target["head"].weight.clone()
    load(tmp_path / "m.pth", target)
    assert torch.equal(target["head"].weight, kept)


def caffe2(state):
    """The convolutions of a ResNet's blocks in Caffe2's names."""
    for name, tensor in state.items():
        if found := re.search(r"(res\d)\.(\d+)\.conv(\d)\.weight", name):
            yield f"{found[1]}_{found[2]}_branch2{'ab'[int(found[3]) - 1]}_w", tensor.numpy()


@pytest.mark.parametrize("name", ["m.pth", "m.pkl"])
def test_weights_of_another_depth_are_refused(name, tmp_path):
    state = model(34).state_dict()
    write({"blobs": dict(caffe2(state))} if name == "m.pkl" else state, tmp_path / name)
    with pytest.raises(
        UsageError, match=f"{name} does not fit .* another MODEL.RESNETS.DEPTH.*{name} OUT"
    ):
        load(tmp_path / name, model(18))


@pytest.mark.parametrize(
    "spoilt, seen",
    [
        (
            torch.zeros(8, 8, 1, 1),
            r"is \(8, 8, 1, 1\) in the file and \(64, 64, 3, 3\) in the model",
        ),
        (None, "is not in the file"),
    ],
)
def test_weights_that_fit_the_backbone_in_part_are_refused(spoilt, seen, tmp_path):
    state = dict(model().state_dict())
    name = "backbone.bottom_up.res2.1.conv1.weight"
    state[name] = spoilt
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "m.pth")
    with pytest.raises(UsageError, match=f"{name} {seen}, the first of 1 "):
        load(tmp_path / "m.pth", model())
