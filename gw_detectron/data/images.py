"""The images of a dataset, read; one that can't be is named."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from ..errors import UsageError, one_line

_DEEP_MODES = ("I", "F")  # Pillow's modes of more than 8 bits: I, I;16 and others, F
_ORIENTATION = 274  # EXIF's tag


class ImageMapper:
    """
    A mapper of Detectron2, which reads and augments the image of a record, that raises
    :class:`UsageError` where :func:`read` does.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]):
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        path = record["file_name"]
        try:
            _check(path, record)
            return self._mapper(record)
        except Exception:
            read(path, "BGR", record)  # tells whether it was the image
            raise


def read(path: str, format: str, record: Mapping[str, Any] | None = None) -> np.ndarray:
    """
    Detectron2's read_image: uint8, (H, W, 3), turned upright by what a camera has noted. Grey,
    palette, transparent, CMYK and L*a*b* images become RGB, 16 bits a color their higher 8.

    Args:
        format: "RGB" or "BGR".
        record: whose annotations are of the image, with the "width" and "height" that it has to
            have; None where there are none.

    Raises:
        UsageError: it can't be read, is of another size, or its numbers are not certain to be
            whole ones from 0 to 255.
    """
    orientation = 1
    try:
        orientation = _check(path, record)
        image = read_image(path, format)
        check_image_size(dict(record or {}), image)
        return image
    except UsageError:
        raise
    except SizeMismatchError as error:
        turned = f", turned by its EXIF orientation {orientation}" if orientation > 1 else ""
        raise UsageError(f"the annotations do not fit the image {path}{turned}: {error}") from error
    except Exception as error:  # any kind, on a file that isn't what it should be
        raise UsageError(
            f"the image {path} can't be read: {one_line(error)}; mend it, or leave it out"
        ) from error


def _check(path: str, record: Mapping[str, Any] | None) -> int:
    """
    Requires an image that Detectron2 reads as it is meant, and returns its EXIF orientation. Warns
    once a process where the size can't tell which way round the annotations are.
    """
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        orientation = _orientation(image)
        size_tells = orientation >= 5 and image.width != image.height and "width" in (record or ())
        unclear = _unclear(image, orientation)
    if unclear:
        raise UsageError(f"the image {path} {unclear}")
    if record is not None and orientation > 1 and not size_tells:
        log_first_n(
            logging.WARNING,
            f"The image {path} has EXIF orientation {orientation}: its annotations are taken as of "
            "the upright image, and so are those of any other such image",
            name="detectron2.gw",
        )
    return orientation


def _orientation(image: Image.Image) -> int:
    """From 1 to 8; 1 is upright."""
    try:
        # PNG's own getexif would decode the image, for an orientation that may follow the pixels
        orientation = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # which Detectron2 ignores too
        return 1
    return orientation if orientation in range(2, 9) else 1


def _unclear(image: Image.Image, orientation: int) -> str:
    """What would not be read as it is meant, and the way out; "" where everything is."""
    if image.format == "TIFF" and orientation > 1:
        return (
            f"is a TIFF of orientation {orientation}, by which both Pillow and Detectron2 turn it: "
            "save it upright"
        )
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        return "is a CMYK JPEG without Adobe's mark, and may be inverted: save it as RGB"
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    is_signed = image.mode == "L" and 2 in tags.get(SAMPLEFORMAT, ())
    if not is_signed and image.mode.split(";")[0] not in _DEEP_MODES:
        return ""
    white_is_0 = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
    numbers = np.asarray(image).view(np.int8) if is_signed else np.asarray(image)
    low, high = numbers.min(), numbers.max()
    up_to_1 = image.mode == "F" and 0 < high <= 1
    # Pillow cuts off fractions and what is below 0 or above 255
    pixels = np.asarray(image.convert("RGB"))[..., 0]
    if np.array_equal(pixels, numbers) and not white_is_0 and not up_to_1:
        return ""
    return (
        f"holds numbers from {low:g} to {high:g} in Pillow's mode {image.mode}"
        f"{', 0 for white' if white_is_0 else ''}; only whole ones on a scale from 0 to 255 become "
        "pixels: scale them and save it with 8 bits"
    )


def evenly_spread(records: Sequence[Any], count: int) -> list[Any]:
    """The middles of that many equal parts; all records where there are fewer."""
    count = min(count, len(records))
    return [records[(2 * i + 1) * len(records) // (2 * count)] for i in range(count)]
