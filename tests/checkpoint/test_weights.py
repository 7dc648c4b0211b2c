"""`gw://` weights: where they are looked up, and what is said where they are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from torch import nn

from gw_detectron.checkpoint import find_weights, require_weights
from gw_detectron.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GW_WEIGHTS", str(tmp_path / "w"))
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


def config(weights, output="."):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = weights
    cfg.OUTPUT_DIR = str(output)
    return cfg


def message_of(function, *args):
    with pytest.raises(UsageError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [None, "", "w"])
def test_they_are_in_the_folder_that_gw_weights_names_or_in_weights(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GW_WEIGHTS", raising=False)
    if value is not None:
        monkeypatch.setenv("GW_WEIGHTS", value)
    Path(value or "weights").mkdir()
    Path(value or "weights", "mine.pth").touch()
    assert str(find_weights("gw://mine.pth")) == os.path.join(value or "weights", "mine.pth")


def test_detectron2s_checkpointer_finds_them(folder):
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save({"model": model.state_dict(), "matching_heuristics": True}, folder / "a.pth")
    DetectionCheckpointer(other).load("gw://a.pth")
    assert torch.equal(other.weight, model.weight)
    with pytest.raises(UsageError, match="huangleiBuaa"):
        DetectionCheckpointer(other).load("gw://R-50-GW.pth")


def test_detectron2_alone_finds_them_where_it_loads_the_plugin(folder):
    code = (
        "from detectron2.utils.file_io import PathManager\n"
        "print(PathManager.get_local_path('gw://a.pth'))"
    )
    (folder / "a.pth").touch()
    environment = {**os.environ, "DETECTRON2_ENV_MODULE": "gw_detectron"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == str(folder / "a.pth"), result.stderr


def test_the_line_of_a_missing_file_is_whole(folder):
    assert message_of(find_weights, "gw://R-50-GW.pth") == (
        f"gw://R-50-GW.pth: there is no R-50-GW.pth in the folder {folder} ($GW_WEIGHTS names "
        "another one); download the authors' ResNet-50 with GW (pth in the table of "
        "https://github.com/huangleiBuaa/GroupWhitening; or train it with "
        "tools/pretrain_imagenet.py), then: "
        f"python tools/convert_weights.py DOWNLOADED.pth {folder}/R-50-GW.pth"
    )


@pytest.mark.parametrize(
    "name, fragment",
    [
        ("R-101-GW", "the authors' ResNet-101 with GW"),
        ("X-50-32x4d-GW", "the authors' ResNeXt-50 with GW"),
        ("X-101-32x8d-GW", "the authors' ResNeXt-101 with GW"),
        ("R-18", "torchvision's resnet18 "),
        ("X-101-32x8d", "torchvision's resnext101_32x8d "),
        ("my-detektor", "the nearest names are my-detector.pth"),
        ("r50-gw", "R-50-GW.pth"),
    ],
)
def test_where_to_get_each_is_said(name, fragment, folder):
    (folder / "my-detector.pth").touch()
    assert fragment in message_of(find_weights, f"gw://{name}.pth")


@pytest.mark.parametrize(
    "name, config",
    [("R-50-GN", "R_50_gn"), ("R-18-GW", "R_18_gw"), ("X-101-32x8d-GN", "X_101_32x8d_gn")],
)
def test_what_nobody_publishes_is_to_be_trained(name, config, folder):
    assert message_of(find_weights, f"gw://{name}.pth").endswith(
        "nobody publishes it; it is trained by: python tools/pretrain_imagenet.py "
        f"--config-file configs/ImageNet-Classification/{config}.yaml --data IMAGENET "
        f"OUTPUT_DIR output/{name}, then: mkdir -p {folder} && "
        f"cp output/{name}/backbone.pth {folder}/{name}.pth"
    )
    assert (ROOT / "configs" / "ImageNet-Classification" / f"{config}.yaml").is_file()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["model.pth", "."])
def test_a_missing_local_file_and_a_folder_stop_a_run(resume, name, tmp_path):
    message = message_of(require_weights, config(str(tmp_path / name), tmp_path), resume)
    assert message.startswith(f"MODEL.WEIGHTS {tmp_path / name}: there is no such file")


def test_what_is_there_or_not_ours_to_know_may_pass(folder):
    (folder / "a.pth").touch()
    for weights in (
        "",
        "gw://a.pth",
        "gw://a.pth?matching_heuristics=True",
        str(folder / "a.pth"),
        "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        "https://example.org/model.pth",
    ):
        require_weights(config(weights))


def test_a_run_to_resume_needs_none(folder, tmp_path):
    cfg = config("gw://R-50-GW.pth", output=tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    require_weights(cfg, resume=True)
    assert "huangleiBuaa" in message_of(require_weights, cfg, False)
