"""A classification set cut out of detection data: what a backbone can be pre-trained on."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from tqdm import tqdm

from .coco import require_files, require_registered
from .images import read

_CONTEXT = 1.25  # the side of the square around an object, in longer sides of its box
_MIN_SIDE = 8.0  # pixels; of a smaller object's box too little is to be seen


def crop_objects(names: Sequence[str], folder: str | os.PathLike) -> Counter:
    """
    Cuts a square around every object, in ImageNet's layout: FOLDER/<class>/*.png.

    Squares lie within the image, where it is wide and high enough, and keep its pixels; crowd
    regions and objects with a longer side below 8 pixels are left out.

    Args:
        names: of registered datasets, which may have different classes; classes of the same name
            become one.

    Returns:
        class -> its number of images.

    Raises:
        UsageError: an unknown dataset, an image that can't be read or is of another size.
    """
    counts: Counter = Counter()
    for name in names:
        require_registered(name)
        require_files(name)
        records, classes = DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes
        for record in tqdm(records, f"Cutting objects out of {name}", unit="image", mininterval=1):
            image = read(record["file_name"], "RGB", record)
            for number, annotation in enumerate(record.get("annotations", ())):
                crop = _crop(image, annotation)
                if crop is None:
                    continue
                class_ = classes[annotation["category_id"]].replace(os.sep, "_")
                path = Path(folder, class_, f"{name}_{record['image_id']}_{number}.png")
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
