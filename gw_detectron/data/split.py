"""A COCO file in two: images to train on, and images held out to choose settings by."""

import random
from collections import Counter
from typing import Any

from ..errors import UsageError
from .annotations import Ids
from .values import require, require_keys


def split(
    content: dict[str, Any], fraction: float, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Draws images at random. Annotations go with their images, everything else is in both parts.

    Args:
        content: of a COCO file.
        fraction: of the images that are drawn, above 0 and below 1.
        seed: the same one draws the same images.

    Returns:
        the content without the images drawn, the content with these alone; in the file's order.

    Raises:
        UsageError: one of the parts would have no image; content has no images and annotations as
            COCO's files have; an annotation is of none of the images.
    """
    require_keys(content, ("images", "annotations"), "the file")
    for name in ("images", "annotations"):
        require(isinstance(content[name], list), f'"{name}"', content[name], "a list")
    images, annotations = content["images"], content["annotations"]
    require(0 < fraction < 1, "the fraction", fraction, "a number between 0 and 1")
    number = round(fraction * len(images))
    if number in (0, len(images)):
        raise UsageError(
            f"{fraction:g} of {len(images)} images are {number}: a part would be empty"
        )
    ids = Ids(images, "images", Counter())
    drawn = {image["id"] for image in random.Random(seed).sample(images, number)}
    parts = []
    for is_in_part in (lambda id: id not in drawn, drawn.__contains__):
        part = content | {"images": [image for image in images if is_in_part(image["id"])]}
        parts.append(part | {"annotations": []})
    for position, annotation in enumerate(annotations):
        require_keys(annotation, ("image_id",), f"annotation {position}")
        id = ids.find(annotation["image_id"])
        what = f"the image_id of annotation {position}"
        require(id is not None, what, annotation["image_id"], "that of any image in the file")
        parts[id in drawn]["annotations"].append(annotation)
    return tuple(parts)
