import os
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from gw_detectron import model_zoo
from gw_detectron.errors import UsageError

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*")
    if path.suffix in {".yaml", ".py"}
)
QUICKSTART = "quickstart/mask_rcnn_R_18_FPN_gw.yaml"


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(model_zoo.model_zoo, "CONFIGS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("config_path", ALL)
def test_every_config_of_the_checkout_is_found_and_loads(config_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(model_zoo.get_config_file(config_path), CONFIGS / config_path)
    assert model_zoo.get_config(config_path)


def test_yaml_config_inherits_detectron2s_defaults_and_states_gw():
    cfg = model_zoo.get_config(QUICKSTART)
    assert isinstance(cfg, CfgNode)
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert "GW" in cfg.MODEL.RESNETS.NORM
    assert cfg.SOLVER.MOMENTUM == 0.9  # said by Detectron2 alone


def test_lazy_config_is_loaded(own_configs):
    (own_configs / "lazy.py").write_text("train = dict(max_iter=7)\n")
    assert model_zoo.get_config("lazy.py").train.max_iter == 7


def test_unknown_config_is_one_line_with_the_nearest(own_configs):
    (own_configs / "quickstart").mkdir()
    for name in ("mask_rcnn_gw.yaml", "mask_rcnn_gn.yaml", "retinanet.yaml", "README.md"):
        (own_configs / "quickstart" / name).touch()
    with pytest.raises(UsageError) as caught:
        model_zoo.get_config_file("quickstart/mask_rcnn_gm.yaml")
    message = str(caught.value)
    assert "'quickstart/mask_rcnn_gm.yaml'" in message and "\n" not in message
    assert "quickstart/mask_rcnn_gw.yaml" in message and "README" not in message


def test_file_outside_the_configs_is_unknown(own_configs):
    (own_configs / "x.txt").touch()
    for path in ("x.txt", "../x.yaml", "", "."):
        with pytest.raises(UsageError):
            model_zoo.get_config_file(path)
