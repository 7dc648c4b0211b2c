"""`gw://` weights: where they are looked up, and what is said where they are not."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from torch import nn

from gw_detectron.checkpoint import find_weights, require_weights
from gw_detectron.errors import UsageError


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


def test_the_line_of_a_missing_file_names_the_command_that_makes_it(folder):
    message = message_of(find_weights, "gw://R-50-GW.pth")
    assert message.startswith(f"gw://R-50-GW.pth: there is no {folder}/R-50-GW.pth ($GW_WEIGHTS")
    assert f"python tools/convert_weights.py DOWNLOADED.pth {folder}/R-50-GW.pth" in message


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
