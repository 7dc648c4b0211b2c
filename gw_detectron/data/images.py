"""The images of a dataset, read; one that can't be is named."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import SizeMismatchError, read_image
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
        except SizeMismatchError as error:
            raise UsageError(f"the annotations do not fit the image {path}: {error}") from error
        except UsageError:
            raise
        except Exception:
            read(path, "BGR")
            raise


def _require_8_bits(path: str) -> None:
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        if image.mode.split(";")[0] in _DEEP_MODES and image.getextrema()[1] > 255:
            raise UsageError(
                f"the image {path} has more than 8 bits, values up to {image.getextrema()[1]}: "
                "scale it to 0 to 255 and save it with 8"
            )


def read(path: str, format: str) -> np.ndarray:
    """
    Detectron2's read_image: uint8, (H, W, 3).

    Raises:
        UsageError: it can't be read.
    """
    try:
        return read_image(path, format)
    except Exception as error:  # any kind, on a file that isn't what it should be
        raise UsageError(
            f"the image {path} can't be read: {one_line(error)}; mend it, or take it out of the "
            "annotations"
        ) from error


def spread_evenly(records: Sequence[Any], count: int) -> list[Any]:
    """The middles of `count` equal parts; all of them where there are no more."""
    count = min(count, len(records))
    return [records[(2 * i + 1) * len(records) // (2 * count)] for i in range(count)]
