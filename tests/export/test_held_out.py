import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.export.held_out import draw, example, find_held_out

from . import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.model(tiny.config("faster"))


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(draw(3, 100, 150)).save(path := tmp_path / "a picture.png")
    return str(path)


def test_a_file_comes_first_at_the_size_of_the_config(model, picture, tmp_path):
    register_shapes(name := f"shapes {tmp_path.name}", str(tmp_path), num_train=1, num_val=2)
    cfg = tiny.config("faster", "DATASETS.TEST", (f"{name}_val",))
    image, source, found = find_held_out(cfg, model, picture)
    assert image.shape == (3, 144, 216) and image.dtype == torch.float32 and image.max() > 100
    assert source == picture and len(found.scores) > 0

    image, source, _ = find_held_out(cfg, model, "")
    assert image.shape == (3, 144, 192) and source == f"000001.png of {name}_val"


def test_where_the_data_is_not_there_images_are_drawn(model, tmp_path):
    def load():
        raise FileNotFoundError("annotations.json")

    DatasetCatalog.register(name := f"gone {tmp_path.name}", load)
    for datasets in ((), (name,)):
        cfg = tiny.config("faster", "DATASETS.TEST", datasets)
        image, source, _ = find_held_out(cfg, model, "")
        assert image.shape == (3, 144, 192) and source == "drawn image 0"


def test_channels_are_in_the_models_order(model, picture):
    rgb = find_held_out(tiny.config("faster", "INPUT.FORMAT", "RGB"), model, picture)[0]
    bgr = find_held_out(tiny.config("faster", "INPUT.FORMAT", "BGR"), model, picture)[0]
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)


def test_a_check_without_detections_is_refused(picture):
    blind = tiny.model(cfg := tiny.config("faster", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0))
    for path, named in ((picture, picture), ("", "drawn image 0 and others")):
        with pytest.raises(UsageError, match="the model finds nothing in ") as error:
            find_held_out(cfg, blind, path)
        assert named in str(error.value) and "--image" in str(error.value)


def test_a_file_that_is_no_image_is_named(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(UsageError, match=path.name):
            find_held_out(tiny.config("faster"), model, str(path))


@pytest.mark.parametrize("size", [(160, 224), (160, 256), (200, 267), (192, 224), (320, 160)])
def test_the_example_has_neither_side_of_the_held_out_image(size):
    assert not set(example(torch.zeros(3, *size)).shape[1:]) & set(size)
