"""The images of a dataset, read; one that can't be is named."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..errors import UsageError, one_line

# Pillow's modes of more than 8 bits. In converting them to 8 it cuts off what is above 255
_DEEP_MODES = ("I", "F")


class ImageMapper:
    """
    A mapper of Detectron2, which reads and augments the image of a record, that raises
    :class:`UsageError` where it can't be read, isn't of the size its record says, or would be cut
    off to 8 bits. Grey, palette, transparent and CMYK images become INPUT.FORMAT.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]):
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        path = record["file_name"]
        try:
            _require_8_bits(path)
            return self._mapper(record)
        except Exception:
            read(path, "BGR", record)  # tells whether it was the image
            raise


def read(path: str, format: str, record: Mapping[str, Any] | None = None) -> np.ndarray:
    """
    Detectron2's read_image: uint8, (H, W, 3), turned upright by what a camera has noted.

    Args:
        format: "RGB" or "BGR".
        record: with the "width" and "height" that the image has to have; None for any.

    Raises:
        UsageError: it can't be read, has more than 8 bits, or is of another size.
    """
    try:
        _require_8_bits(path)
        image = read_image(path, format)
        check_image_size(dict(record or {}), image)
        return image
    except UsageError:
        raise
    except SizeMismatchError as error:
        raise UsageError(f"the annotations do not fit the image {path}: {error}") from error
    except Exception as error:  # any kind, on a file that isn't what it should be
        raise UsageError(
            f"the image {path} can't be read: {one_line(error)}; mend it, or leave it out"
        ) from error


def _require_8_bits(path: str) -> None:
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        if image.mode.split(";")[0] in _DEEP_MODES and image.getextrema()[1] > 255:
            raise UsageError(
                f"the image {path} has more than 8 bits, values up to {image.getextrema()[1]}: "
                "scale it to 0 to 255 and save it with 8"
            )


def evenly_spread(records: Sequence[Any], count: int) -> list[Any]:
    """The middles of that many equal parts; all records where there are fewer."""
    count = min(count, len(records))
    return [records[(2 * i + 1) * len(records) // (2 * count)] for i in range(count)]
