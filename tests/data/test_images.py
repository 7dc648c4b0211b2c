import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from PIL import Image

from gw_detectron.data.images import ImageMapper
from gw_detectron.errors import UsageError

WIDTH, HEIGHT = 9, 6


def read(image, tmp_path, mapper=None, kind="PNG"):
    """The pixels of the top left corner, BGR."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    image.save(tmp_path / f"image.{kind}", kind)
    record = {"file_name": str(tmp_path / f"image.{kind}"), "width": WIDTH, "height": HEIGHT}
    return ImageMapper(mapper or DatasetMapper(cfg, False))(record)["image"][:, 0, 0].tolist()


@pytest.mark.parametrize(
    "mode, color, kind, seen",
    [
        ("RGB", (10, 20, 30), "PNG", [30, 20, 10]),
        ("L", 40, "PNG", [40] * 3),
        ("1", 1, "PNG", [255] * 3),
        ("LA", (40, 0), "PNG", [40] * 3),
        ("RGBA", (10, 20, 30, 0), "PNG", [30, 20, 10]),
        ("CMYK", (255, 255, 0, 0), "TIFF", [255, 0, 0]),
        ("I", 200, "TIFF", [200] * 3),
    ],
)
def test_images_of_8_bits_become_bgr(mode, color, kind, seen, tmp_path):
    assert read(Image.new(mode, (WIDTH, HEIGHT), color), tmp_path, kind=kind) == seen


def test_palette_images_become_bgr(tmp_path):
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert read(image, tmp_path) == [30, 20, 10]


@pytest.mark.parametrize(
    "mode, color, kind", [("I;16", 256, "PNG"), ("I", 70_000, "TIFF"), ("F", 1e3, "TIFF")]
)
def test_what_conversion_would_cut_off_is_refused(mode, color, kind, tmp_path):
    with pytest.raises(UsageError, match=f"image.{kind} has more than 8 bits"):
        read(Image.new(mode, (WIDTH, HEIGHT), color), tmp_path, kind=kind)


def test_errors_of_the_mapper_stay_what_they_are(tmp_path):
    def broken(record):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        read(Image.new("RGB", (WIDTH, HEIGHT)), tmp_path, broken)
