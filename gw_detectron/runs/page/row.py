"""What is shown of one image: its ground truth and each run's detections, drawn and described."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...engine.picture import Objects, draw_objects
from .ground_truth import GroundTruth
from .per_image import ImageAPs

__all__ = ["AP_NAMES", "Picture", "Row", "RunDetections", "draw_row"]

AP_NAMES = {"bbox": "box AP", "segm": "mask AP"}
_LARGEST = (520, 520)  # pixels, width and height of a picture


@dataclass(frozen=True)
class RunDetections:
    """
    Attributes:
        source: the path that they come from.
        aps: "bbox", and "segm" where there are masks -> the run's APs.
        shown: image id -> the detections to be drawn, in COCO's results format.
        has_masks: whether these have masks.
    """

    label: str
    source: str
    aps: Mapping[str, ImageAPs]
    shown: Mapping[Any, list[dict[str, Any]]]
    has_masks: bool

    def box_ap(self, image_id: Any) -> float:
        return self.aps["bbox"].images[image_id]


@dataclass(frozen=True)
class Picture:
    """
    Attributes:
        title: "ground truth", or the run.
        caption: how many objects, and the run's APs on this image.
        description: of what is to be seen, for who doesn't see it.
    """

    title: str
    caption: str
    description: str
    image: Image.Image


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        name: of the image file.
        box_aps: of each run; nan where there is no object.
        pictures: the ground truth, then each run.
    """

    name: str
    box_aps: list[float]
    pictures: list[Picture]

    def title(self, number: int) -> str:
        """The name, and how much the runs differ."""
        difference = max(self.box_aps) - min(self.box_aps)
        if len(self.box_aps) == 1 or math.isnan(difference):
            return f"{number}. {self.name}"
        return f"{number}. {self.name}: box AP differs by {difference:.1f}"


def draw_row(truth: GroundTruth, runs: Sequence[RunDetections], image_id: Any) -> Row:
    """
    Raises:
        UsageError: the image can't be read.
    """
    name = truth.file_name(image_id)
    image = truth.read_image(image_id)
    annotations = truth.coco.imgToAnns[image_id]
    with_masks = truth.has_masks and any(run.has_masks for run in runs)
    crowds = [bool(annotation["iscrowd"]) for annotation in annotations]
    count = _count(len(crowds) - sum(crowds), "object")
    if any(crowds):
        count += f", {_count(sum(crowds), 'crowd region')}"
    objects = _objects(truth, annotations, with_masks, crowds=crowds)
    pictures = [_draw(truth, image, objects, "ground truth", count, name)]
    for run in runs:
        found = run.shown.get(image_id, [])
        scores = [detection["score"] for detection in found]
        aps = ", ".join(_say_ap(task, aps.images[image_id]) for task, aps in run.aps.items())
        caption = f"{aps}; {_count(len(found), 'detection')}"
        objects = _objects(truth, found, run.has_masks, scores=scores)
        pictures.append(_draw(truth, image, objects, run.label, caption, name))
    return Row(name, [run.box_ap(image_id) for run in runs], pictures)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _say_ap(task: str, ap: float) -> str:
    return f"no {AP_NAMES[task]}" if math.isnan(ap) else f"{AP_NAMES[task]} {ap:.1f}"


def _objects(
    truth: GroundTruth, annotations: Sequence[dict[str, Any]], with_masks: bool, **more: Any
) -> Objects:
    boxes = np.reshape([annotation["bbox"] for annotation in annotations], (-1, 4)).astype(float)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        boxes=boxes,
        classes=[truth.class_index(a["category_id"]) for a in annotations],
        masks=[annotation["segmentation"] for annotation in annotations] if with_masks else None,
        **more,
    )


def _draw(
    truth: GroundTruth, image: np.ndarray, objects: Objects, title: str, caption: str, name: str
) -> Picture:
    height, width = image.shape[:2]
    scale = min(_LARGEST[0] / width, _LARGEST[1] / height)
    drawn = draw_objects(image, objects, truth.class_names, max(1, round(scale * width)))
    what = _list_classes(truth.class_names[c] for c in objects.classes)
    return Picture(title, caption, f"{name}, {title}: {caption}{what}", drawn)


def _list_classes(names: Iterable[str]) -> str:
    counts = Counter(names)
    return f" ({', '.join(f'{n} {name}' for name, n in counts.most_common())})" if counts else ""
