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


class TestWhereTheyAreLookedUp:
    def test_in_the_folder_that_gw_weights_names(self, folder):
        (folder / "R-50-GW.pth").touch()
        assert find_weights("gw://R-50-GW.pth") == folder / "R-50-GW.pth"

    @pytest.mark.parametrize("value", [None, ""])
    def test_in_weights_without_it(self, value, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("GW_WEIGHTS")
        if value is not None:
            monkeypatch.setenv("GW_WEIGHTS", value)
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "mine.pth").touch()
        assert str(find_weights("gw://mine.pth")) == os.path.join("weights", "mine.pth")

    def test_by_detectron2s_checkpointer(self, folder):
        model, other = nn.Linear(2, 3), nn.Linear(2, 3)
        content = {"model": model.state_dict(), "matching_heuristics": True}
        torch.save(content, folder / "a.pth")
        DetectionCheckpointer(other).load("gw://a.pth")
        assert torch.equal(other.weight, model.weight)

    def test_where_detectron2_alone_loads_the_plugin(self, folder):
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


class TestWhatIsSaidWhereTheyAreNot:
    @pytest.mark.parametrize(
        "name, model",
        [
            ("R-50-GW", "ResNet-50"),
            ("R-101-GW", "ResNet-101"),
            ("X-50-32x4d-GW", "ResNeXt-50"),
            ("X-101-32x8d-GW", "ResNeXt-101"),
        ],
    )
    def test_the_authors_are_named_with_the_command(self, name, model, folder):
        assert message_of(find_weights, f"gw://{name}.pth") == (
            f"gw://{name}.pth: there is no {name}.pth in the folder {folder} ($GW_WEIGHTS names "
            f"another one); download the authors' {model} with GW (pth in the table of "
            "https://github.com/huangleiBuaa/GroupWhitening; or train it with "
            "tools/pretrain_imagenet.py), then: "
            f"python tools/convert_weights.py DOWNLOADED.pth {folder}/{name}.pth"
        )

    def test_the_default_folder_makes_a_short_command(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("GW_WEIGHTS", raising=False)
        message = message_of(find_weights, "gw://R-50-GW.pth")
        assert message.endswith(
            "python tools/convert_weights.py DOWNLOADED.pth weights/R-50-GW.pth"
        )

    def test_torchvision_is_named_for_the_plain_ones(self, folder):
        message = message_of(find_weights, "gw://X-101-32x8d.pth")
        assert "torchvision's resnext101_32x8d" in message and "tools/convert_weights" in message

    @pytest.mark.parametrize(
        "name, config",
        [("R-50-GN", "R_50_gn"), ("R-18-GW", "R_18_gw"), ("X-101-32x8d-GN", "X_101_32x8d_gn")],
    )
    def test_what_nobody_publishes_is_to_be_trained(self, name, config, folder):
        assert message_of(find_weights, f"gw://{name}.pth").endswith(
            "nobody publishes it; it is trained by: python tools/pretrain_imagenet.py "
            f"--config-file configs/ImageNet-Classification/{config}.yaml --data IMAGENET "
            f"OUTPUT_DIR output/{name}, then: mkdir -p {folder} && "
            f"cp output/{name}/backbone.pth {folder}/{name}.pth"
        )
        assert (ROOT / "configs" / "ImageNet-Classification" / f"{config}.yaml").is_file()

    def test_an_unknown_name_gets_the_nearest(self, folder):
        (folder / "my-detector.pth").touch()
        assert "my-detector.pth" in message_of(find_weights, "gw://my-detektor.pth")
        assert "R-50-GW.pth" in message_of(find_weights, "gw://r50-gw.pth")

    def test_detectron2_stops_with_that_line(self, folder):
        with pytest.raises(UsageError, match="huangleiBuaa"):
            DetectionCheckpointer(nn.Linear(1, 1)).load("gw://R-50-GW.pth")


class TestRequireWeights:
    def test_stops_at_a_missing_file_of_ours(self, folder):
        assert "huangleiBuaa" in message_of(require_weights, config("gw://R-50-GW.pth"))

    @pytest.mark.parametrize("resume", [False, True])
    @pytest.mark.parametrize("name", ["model.pth", "."])
    def test_stops_at_a_missing_local_file_and_at_a_folder(self, resume, name, tmp_path):
        path = tmp_path / name
        message = message_of(require_weights, config(str(path), tmp_path), resume)
        assert message.startswith(f"MODEL.WEIGHTS {path}: there is no such file")

    def test_lets_pass_what_is_there_or_not_ours_to_know(self, folder):
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

    def test_a_run_to_resume_needs_none(self, folder, tmp_path):
        cfg = config("gw://R-50-GW.pth", output=tmp_path)
        (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
        require_weights(cfg, resume=True)
        with pytest.raises(UsageError):
            require_weights(cfg, resume=False)
