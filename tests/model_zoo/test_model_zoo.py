import os
from pathlib import Path

import pytest

from gw_detectron import model_zoo
from gw_detectron.errors import UsageError

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*")
    if path.suffix in {".yaml", ".py"}
)


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(model_zoo.model_zoo, "CONFIGS", tmp_path)
    return tmp_path


def test_every_config_of_the_checkout_is_found_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ALL:
        assert os.path.samefile(model_zoo.get_config_file(path), CONFIGS / path)
        assert model_zoo.get_config(path)


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
