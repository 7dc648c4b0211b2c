"""A classification set cut out of detection data: what a backbone can be pre-trained on."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from tqdm import tqdm

from ..errors import UsageError
from ..files import whole_folder
from .coco import require_files, require_registered
from .images import read

_CONTEXT = 1.25  # the side of the square around an object, in longer sides of its box
_MIN_SIDE = 8.0  # pixels; of a smaller object's box too little is to be seen


def crop_objects(splits: Mapping[str, Sequence[str]], output: str) -> dict[str, Counter]:
    """
    Cuts a square around every object, in ImageNet's layout: OUTPUT/<split>/<class>/*.png.

    Squares lie within the image, where it is wide and high enough, and keep its pixels; crowd
    regions and objects with a longer side below 8 pixels are left out. The folder is there whole
    or not at all.

    Args:
        splits: split, "train" or "val", -> names of registered datasets, which may have different
            classes; classes of the same name become one.
        output: a folder that does not exist yet.

    Returns:
        split -> class -> its number of images.

    Raises:
        UsageError: an unknown dataset, a class without an object in some split, an image that
            can't be read, an output that is there or can't be written.
    """
    for name in {name for names in splits.values() for name in names}:
        require_registered(name)
        require_files(name)
    if os.path.lexists(output):
        raise UsageError(f"{output} is there already: remove it, or choose another --output")
    try:
        with whole_folder(output) as draft:
            counts = {
                split: sum((_crop_dataset(name, draft / split) for name in names), Counter())
                for split, names in splits.items()
            }
            _require_same_classes(counts)
    except OSError as error:
        raise UsageError(f"{output} can't be written: {error.strerror}") from error
    return counts


def _crop_dataset(name: str, folder: Path) -> Counter:
    counts: Counter = Counter()
    records = DatasetCatalog.get(name)
    folders = [class_.replace(os.sep, "_") for class_ in MetadataCatalog.get(name).thing_classes]
    for record in tqdm(records, f"Cutting objects out of {name}", unit="image", mininterval=1):
        image = read(record["file_name"], "RGB")
        for number, annotation in enumerate(record.get("annotations", ())):
            crop = _crop(image, annotation)
            if crop is None:
                continue
            class_ = folders[annotation["category_id"]]
            path = folder / class_ / f"{name}_{record['image_id']}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(path)
            counts[class_] += 1
    return counts


def _crop(image: np.ndarray, annotation: dict[str, Any]) -> np.ndarray | None:
    """Of an image (H, W, 3), the square around an object; None where it should be left out."""
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    size = max(box[2] - box[0], box[3] - box[1])
    if annotation.get("iscrowd", 0) or size < _MIN_SIDE:
        return None
    side = round(_CONTEXT * size)
    window = []
    for low, high, length in ((box[1], box[3], image.shape[0]), (box[0], box[2], image.shape[1])):
        start = min(max(0, round((low + high - side) / 2)), max(0, length - side))
        window.append(slice(start, start + side))
    return image[tuple(window)]


def _require_same_classes(counts: Mapping[str, Counter]) -> None:
    for class_ in sorted(set().union(*counts.values())):
        for split, of_split in counts.items():
            if class_ not in of_split:
                raise UsageError(
                    f'no object of class "{class_}" in --{split}: both splits need all classes'
                )
