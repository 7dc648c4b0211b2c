"""An image with objects drawn into it, the same way wherever the project shows detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

__all__ = ["Objects", "class_color", "draw_objects"]


@dataclass(frozen=True)
class Objects:
    """
    Those of one image, N of them, detected or annotated.

    Attributes:
        boxes: XYXY in pixels of the image, (N, 4).
        classes: indices into the class names.
        scores: None for ground truth.
        masks: per object polygons, run-length encoding or an array (H, W); None draws none.
        crowds: which of them are crowd regions; None where none is.
    """

    boxes: np.ndarray
    classes: Sequence[int]
    scores: Sequence[float] | None = None
    masks: Sequence[Any] | None = None
    crowds: Sequence[bool] | None = None

    def labels(self, class_names: Sequence[str] | None) -> list[str]:
        labels = [class_names[c] if class_names else str(c) for c in self.classes]
        if self.scores is not None:
            labels = [f"{a} {100 * s:.0f}%" for a, s in zip(labels, self.scores, strict=True)]
        if self.crowds is not None:
            labels = [f"{a} (crowd)" if c else a for a, c in zip(labels, self.crowds, strict=True)]
        return labels


def class_color(index: int) -> np.ndarray:
    """RGB from 0 to 1; a class has the same one in every picture."""
    palette = colormap(rgb=True, maximum=1)
    return palette[index % len(palette)]


def draw_objects(
    image: np.ndarray, objects: Objects, class_names: Sequence[str] | None, width: int
) -> Image.Image:
    """
    Args:
        image: RGB, (H, W, 3), uint8.
        class_names: None labels with the classes' numbers.
        width: of the picture, to which the image is enlarged or shrunk.
    """
    visualizer = Visualizer(image, scale=width / image.shape[1])
    drawn = visualizer.overlay_instances(
        boxes=np.reshape(objects.boxes, (-1, 4)),
        masks=objects.masks,
        labels=objects.labels(class_names),
        assigned_colors=[class_color(c) for c in objects.classes],
        alpha=0.35,
    )
    return Image.fromarray(drawn.get_image())
