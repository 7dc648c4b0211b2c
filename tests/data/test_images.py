"""What is read of a file is what was written into it, in every mode and depth, or one line."""

import io
import logging
import re
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.utils import logger
from PIL import Image

from gw_detectron.data.images import ImageMapper, read
from gw_detectron.errors import UsageError

WIDTH, HEIGHT = 9, 6
GREY = np.linspace(0, 255, WIDTH * HEIGHT).round().astype(np.uint8).reshape(HEIGHT, WIDTH)
COLORS = np.stack([GREY, GREY[::-1], 255 - GREY // 2], axis=2)  # smooth, for JPEG
ALPHA = 128 + GREY[:, ::-1] // 2
PALETTE = np.array([[1, 2, 3], [40, 50, 60], [200, 80, 90], [0, 255, 120]])
NO_ADOBE = (b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00", b"")


def saved(image, kind, replaced=None, **options):
    """The file's bytes, of which (some, others) may be replaced: those that Pillow doesn't save."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    content = file.getvalue()
    if replaced:
        assert content.count(replaced[0]) == 1
        content = content.replace(*replaced)
    return content


def array(numbers, kind="TIFF", **options):
    return saved(Image.fromarray(numbers), kind, **options)


def merged(mode, *channels):
    return Image.merge(mode, [Image.fromarray(channel) for channel in channels])


def tiff_tag(number, old, new):
    return tuple(struct.pack("<HHIHH", number, 3, 1, value, 0) for value in (old, new))


def png_of_16_bits(pixels):
    """Of RGB from 0 to 65535, which Pillow doesn't save."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + checksum
    return content


def palette_image():
    image = Image.fromarray(GREY % 4, "L")
    image.putpalette(PALETTE.astype(np.uint8).tobytes())
    return image


def big_endian(numbers):
    return Image.frombytes("I;16B", (WIDTH, HEIGHT), numbers.astype(">u2").tobytes())


def neutral_lab():
    """Of the greys, by sRGB's and L*a*b*'s definitions."""
    linear = np.where(GREY <= 10, GREY / 255 / 12.92, ((GREY / 255 + 0.055) / 1.055) ** 2.4)
    lightness = np.where(linear > 0.008856, 116 * np.cbrt(linear) - 16, 903.3 * linear)
    neutral = np.full_like(GREY, 128)
    return merged("LAB", (lightness * 2.55).round().astype(np.uint8), neutral, neutral)


def with_nan():
    numbers = GREY.astype(np.float32)
    numbers[0, 0] = np.nan
    return numbers


TRANSLUCENT = np.dstack([COLORS, ALPHA])
PREMULTIPLIED = np.dstack([(COLORS * (ALPHA[..., None] / 255)).round().astype(np.uint8), ALPHA])
INKS = Image.fromarray(COLORS).convert("CMYK")  # 255 - COLORS without black
BEST = {"quality": 100, "subsampling": 0}
# file -> its content, the pixels that are meant, by how much they may differ
READ = {
    "black and white": (array(GREY > 127, "PNG"), np.where(GREY > 127, 255, 0), 0),
    "grey": (array(GREY, "PNG"), GREY, 0),
    "grey of 4 bits": (b"P5 9 6 15\n" + (GREY // 17).tobytes(), GREY // 17 * 17, 0),
    "grey with alpha": (saved(merged("LA", GREY, ALPHA), "PNG"), GREY, 0),
    "grey with a transparent one": (array(GREY, "PNG", transparency=0), GREY, 0),
    "palette": (saved(palette_image(), "PNG"), PALETTE[GREY % 4], 0),
    "palette with a transparent one": (
        saved(palette_image(), "PNG", transparency=1), PALETTE[GREY % 4], 0,
    ),
    "palette with alphas": (
        saved(palette_image(), "PNG", transparency=b"\x00\x80\xff\x03"), PALETTE[GREY % 4], 0,
    ),
    "palette with alpha": (saved(merged("LA", GREY, ALPHA).convert("PA"), "TIFF"), GREY, 0),
    "RGB": (array(COLORS, "PNG"), COLORS, 0),
    "RGB with a transparent one": (array(COLORS, "PNG", transparency=(0, 255, 255)), COLORS, 0),
    "RGBA": (array(TRANSLUCENT, "PNG"), COLORS, 0),
    "RGBa, premultiplied": (
        array(PREMULTIPLIED, replaced=tiff_tag(338, 2, 1)), COLORS, 2,
    ),
    "RGBX": (saved(Image.fromarray(COLORS).convert("RGBX"), "TIFF"), COLORS, 0),
    "RGB of 16 bits": (png_of_16_bits(COLORS * np.uint16(256) + 99), COLORS, 0),
    "RGB of 16 bits, PPM": (
        b"P6 9 6 65535\n" + (COLORS * np.uint16(257)).astype(">u2").tobytes(), COLORS, 0,
    ),
    "JPEG": (array(COLORS, "JPEG", **BEST), COLORS, 4),
    "YCbCr": (saved(Image.fromarray(COLORS).convert("YCbCr"), "IM"), COLORS, 3),
    "CMYK": (saved(INKS, "TIFF"), COLORS, 0),
    "CMYK, inverted by Adobe": (saved(INKS, "JPEG", **BEST), COLORS, 4),
    "L*a*b*": (saved(neutral_lab(), "TIFF"), GREY, 2),
    "white is 0": (array(GREY, replaced=tiff_tag(262, 1, 0)), 255 - GREY, 0),
    "signed, 8 bits": (array(GREY // 2, tiffinfo={339: 2}), GREY // 2, 0),
    "16 bits, up to 255": (array(GREY.astype(np.uint16), "PNG"), GREY, 0),
    "16 bits, big end first, up to 255": (saved(big_endian(GREY), "TIFF"), GREY, 0),
    "32 bits, up to 255": (array(GREY.astype(np.int32)), GREY, 0),
    "float, whole, up to 255": (array(GREY.astype(np.float32)), GREY, 0),
    "float, black": (array(np.zeros((HEIGHT, WIDTH), np.float32)), 0 * GREY, 0),
}  # fmt: skip

# file -> its content, what is said of it
REFUSED = {
    "16 bits": (
        array(GREY * np.uint16(257)),
        "holds numbers from 0 to 65535 in Pillow's mode I;16; only whole ones on a scale from 0 to "
        "255 become pixels: scale them and save it with 8 bits",
    ),
    "16 bits, PNG": (array(GREY * np.uint16(257), "PNG"), "holds numbers from 0 to 65535"),
    "12 of 16 bits": (array(GREY * np.uint16(16)), "holds numbers from 0 to 4080"),
    "16 bits, big end first": (
        saved(big_endian(GREY * np.uint16(257)), "TIFF"),
        "holds numbers from 0 to 65535 in Pillow's mode I;16B",
    ),
    "16 bits, white is 0": (
        array(GREY.astype(np.uint16), replaced=tiff_tag(262, 1, 0)),
        "holds numbers from 0 to 255 in Pillow's mode I;16, 0 for white",
    ),
    "32 bits": (array(GREY.astype(np.int32) * 1000), "holds numbers from 0 to 255000"),
    "32 bits, negative": (array(GREY.astype(np.int32) - 5), "holds numbers from -5 to 250"),
    "8 bits, negative": (array(GREY, tiffinfo={339: 2}), "holds numbers from -126 to 125"),
    "float": (array(GREY.astype(np.float32) * 4), "holds numbers from 0 to 1020 "),
    "float, up to 1": (array(GREY / np.float32(255)), "holds numbers from 0 to 1 "),
    "float, 0 and 1": (array((GREY > 127).astype(np.float32)), "holds numbers from 0 to 1 "),
    "float, fractions": (array(GREY * np.float32(0.9)), "holds numbers from 0 to 229.5 "),
    "float, negative": (array(GREY.astype(np.float32) - 5), "holds numbers from -5 to 250 "),
    "float, nan": (array(with_nan()), "holds numbers from nan to nan "),
    "CMYK, inverted or not": (
        saved(INKS, "JPEG", replaced=NO_ADOBE),
        "is a CMYK JPEG without Adobe's mark, and may be inverted: save it as RGB",
    ),
    "no image": (b"no image", "can't be read: UnidentifiedImageError"),
    "cut short": (array(COLORS, "PNG")[:60], "can't be read: "),
}  # fmt: skip


@pytest.fixture
def both_ways(tmp_path):
    """(content, width, height) -> RGB by read, and by Detectron2's mapper, of a file "image"."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    path = str(tmp_path / "image")

    def call(content, width=WIDTH, height=HEIGHT):
        (tmp_path / "image").write_bytes(content)
        record = {"file_name": path, "width": width, "height": height}
        yield lambda: read(path, "RGB", record).astype(int)
        mapper = ImageMapper(DatasetMapper(cfg, is_train=False))
        yield lambda: mapper(record)["image"].flip(0).permute(1, 2, 0).int().numpy()

    return call


@pytest.mark.parametrize("what", READ)
def test_pixels_are_what_was_written(what, both_ways):
    content, meant, tolerance = READ[what]
    meant = meant if meant.ndim == 3 else np.repeat(meant[..., None], 3, axis=2)
    for reading in both_ways(content):
        pixels = reading()
        assert pixels.shape == meant.shape
        assert np.abs(pixels - meant).max() <= tolerance


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_to_be_pixels_is_one_line(what, both_ways):
    content, message = REFUSED[what]
    for reading in both_ways(content):
        with pytest.raises(UsageError, match=re.escape(f"/image {message}")):
            reading()


# ---- How a camera was held ----

# EXIF orientation -> what makes the stored pixels upright
TURNS = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.fixture
def warnings(monkeypatch, caplog):
    """What the plugin warns of; Detectron2 has not logged anything yet."""
    monkeypatch.setattr(logger, "_LOG_COUNTER", Counter())
    of_plugin = logging.getLogger("detectron2.gw")
    monkeypatch.setattr(of_plugin, "propagate", False)
    monkeypatch.setattr(of_plugin, "handlers", [caplog.handler])
    return lambda: [record.getMessage() for record in caplog.records]


def photograph(orientation, pixels=COLORS, kind="PNG"):
    exif = Image.Exif()
    exif[274] = orientation
    return array(pixels, kind, exif=exif)


@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_turned_upright_and_annotations_must_fit(orientation, both_ways, warnings):
    upright = TURNS[orientation](COLORS)
    for reading in both_ways(photograph(orientation), upright.shape[1], upright.shape[0]):
        assert np.array_equal(reading(), upright)
    # by the size alone these could be of the stored image
    assert len(warnings()) == (orientation in (2, 3, 4))
    if orientation >= 5:
        message = (
            f"/image, turned by its EXIF orientation {orientation}: .*got .6, 9., expect .9, 6"
        )
        for reading in both_ways(photograph(orientation)):
            with pytest.raises(UsageError, match=message):
                reading()


@pytest.mark.parametrize(
    "width, record", [(HEIGHT, {"width": HEIGHT, "height": HEIGHT}), (WIDTH, {})]
)
@pytest.mark.parametrize("orientation", TURNS)
def test_annotations_are_taken_as_upright_where_no_size_tells(
    orientation, width, record, tmp_path, warnings
):
    (tmp_path / "image").write_bytes(photograph(orientation, COLORS[:, :width], "JPEG"))
    path = str(tmp_path / "image")
    read(path, "RGB")
    assert warnings() == []
    for _ in range(2):
        read(path, "RGB", record)
    expected = f"The image {path} has EXIF orientation {orientation}: its annotations are taken as "
    assert [text[: len(expected)] for text in warnings()] == [expected] * (orientation > 1)


def test_a_tiff_that_would_be_turned_twice_is_refused(both_ways):
    for orientation in range(2, 9):
        for reading in both_ways(photograph(orientation, kind="TIFF")):
            with pytest.raises(UsageError, match=f"TIFF of orientation {orientation}.*save it up"):
                reading()


def test_errors_of_the_mapper_stay_what_they_are(tmp_path):
    def broken(record):
        raise KeyError("a bug")

    (tmp_path / "image").write_bytes(array(COLORS, "PNG"))
    with pytest.raises(KeyError, match="a bug"):
        ImageMapper(broken)({"file_name": str(tmp_path / "image")})
