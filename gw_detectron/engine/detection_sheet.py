"""Pictures of what a detector finds on images, beside what is there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure
from torch import nn

from ..data.images import ImageMapper, evenly_spread, read

__all__ = ["draw_objects", "save_detection_sheet"]

_NUM_IMAGES = 6  # in rows of two
_THRESHOLD = 0.5
_SHEET_WIDTH = 1600  # pixels


@torch.no_grad()
def save_detection_sheet(cfg: CfgNode, model: nn.Module, dataset_name: str, path: str) -> None:
    """
    Saves images of a dataset, evenly spread over it, with ground truth and detections of a score of
    at least 0.5 side by side: boxes, class names and scores, and masks where the model predicts
    them.

    Args:
        model: any detector of Detectron2's that predicts "instances", built from `cfg`, on any
            device; its mode, training or not, is restored at the end.
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.

    Raises:
        UsageError: an image can't be read.
    """
    records = evenly_spread(DatasetCatalog.get(dataset_name), _NUM_IMAGES)
    names = dict(enumerate(MetadataCatalog.get(dataset_name).thing_classes))
    columns = 2 * min(len(records), 2)
    width = _SHEET_WIDTH // columns
    mapper = ImageMapper(DatasetMapper(cfg, is_train=False))
    pictures = []
    with inference_context(model):
        for record in records:
            image = read(record["file_name"], "RGB", record)
            truth = record.get("annotations", [])
            found = model([mapper(record)])[0]["instances"].to("cpu")
            pictures.append(draw_objects(image, truth, names, width, found.has("pred_masks")))
            found = instances_to_coco_json(found[found.scores >= _THRESHOLD], None)
            pictures.append(draw_objects(image, found, names, width))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(len(picture) for picture in row) for row in rows]
    figure = Figure((_SHEET_WIDTH / 100, sum(heights) / 100 + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        axis.axis("off")
        axis.set_anchor("N")
    for axis, picture in zip(axes.flat, pictures, strict=False):
        axis.imshow(picture)
    for column, axis in enumerate(axes[0]):
        detected = f"detections, score at least {_THRESHOLD:g}"
        axis.set_title(detected if column % 2 else "ground truth", loc="left")
    figure.savefig(path)


def draw_objects(
    image: np.ndarray,
    objects: Sequence[dict[str, Any]],
    names: Mapping[Any, str],
    width: int,
    with_masks: bool = True,
) -> np.ndarray:
    """
    Draws boxes, class names, scores, and masks where all objects have one. A class has the same
    color in every picture.

    Args:
        image: RGB, (H, W, 3), uint8.
        objects: annotations as Detectron2 or COCO has them, or detections in COCO's results
            format.
        names: category_id -> name, of all classes.
        width: of the picture in pixels, to which the image is enlarged or shrunk.

    Returns:
        RGB, (height, width, 3), uint8.
    """
    boxes = [
        BoxMode.convert(o["bbox"], o.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for o in objects
    ]
    with_masks = with_masks and all(o.get("segmentation") for o in objects)
    palette = colormap(rgb=True, maximum=1)
    colors = {id: palette[i % len(palette)] for i, id in enumerate(names)}
    drawn = Visualizer(image, scale=width / image.shape[1]).overlay_instances(
        boxes=np.reshape(boxes, (-1, 4)),
        masks=[o["segmentation"] for o in objects] if with_masks else None,
        labels=[_label(o, names) for o in objects],
        assigned_colors=[colors[o["category_id"]] for o in objects],
        alpha=0.35,
    )
    return drawn.get_image()


def _label(one: dict[str, Any], names: Mapping[Any, str]) -> str:
    score = f" {100 * one['score']:.0f}%" if "score" in one else ""
    return f"{names[one['category_id']]}{score}{' (crowd)' if one.get('iscrowd') else ''}"
