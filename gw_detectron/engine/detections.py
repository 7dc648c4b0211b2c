"""What a detector finds on images, and pictures of it beside what is there."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.utils.data import SequentialSampler

from ..data.images import ImageMapper, evenly_spread, read

__all__ = ["class_color", "detect", "draw_objects", "save_detection_sheet"]

_SHEET_WIDTH = 1600  # pixels
_PAIRS_IN_A_ROW = 2  # of images with ground truth and the same with detections
_GAP = 8
_HEADER_HEIGHT = 30


@torch.no_grad()
def detect(
    cfg: CfgNode, model: nn.Module, records: Sequence[dict[str, Any]], num_workers: int = 0
) -> Iterator[Instances]:
    """
    Detections on the images of a dataset's records, in their pixels, on the CPU.

    Args:
        model: any detector of Detectron2's that predicts "instances", built from `cfg`, on any
            device; its mode, training or not, is restored at the end.
        num_workers: processes that read images; 0 for none.

    Raises:
        UsageError: an image can't be read.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # one process may draw while the others do something else
    loader = build_detection_test_loader(
        records,
        mapper=ImageMapper(DatasetMapper(cfg, is_train=False)),
        sampler=SequentialSampler(records),
        num_workers=num_workers,
    )
    with inference_context(model):
        for inputs in loader:
            yield model(inputs)[0]["instances"].to("cpu")


# ---- One image ------------------------------------------------------------------------------


def class_color(index: int) -> np.ndarray:
    """RGB from 0 to 1; a class has the same one in every picture."""
    palette = colormap(rgb=True, maximum=1)
    return palette[index % len(palette)]


def draw_objects(
    image: np.ndarray,
    objects: Sequence[dict[str, Any]],
    class_names: Sequence[str] | None,
    width: int,
    with_masks: bool = True,
) -> Image.Image:
    """
    Draws boxes, class names, scores, and masks where all objects have one.

    Args:
        image: RGB, (H, W, 3), uint8.
        objects: annotations as Detectron2 or COCO has them, or detections in COCO's results
            format; but category_id is the index of the class.
        class_names: None labels with the classes' numbers.
        width: of the picture, to which the image is enlarged or shrunk.
    """
    boxes = [
        BoxMode.convert(o["bbox"], o.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for o in objects
    ]
    with_masks = with_masks and all(o.get("segmentation") for o in objects)
    drawn = Visualizer(image, scale=width / image.shape[1]).overlay_instances(
        boxes=np.reshape(boxes, (-1, 4)),
        masks=[o["segmentation"] for o in objects] if with_masks else None,
        labels=[_label(o, class_names) for o in objects],
        assigned_colors=[class_color(o["category_id"]) for o in objects],
        alpha=0.35,
    )
    return Image.fromarray(drawn.get_image())


def _label(one: dict[str, Any], class_names: Sequence[str] | None) -> str:
    name = class_names[one["category_id"]] if class_names else str(one["category_id"])
    score = f" {100 * one['score']:.0f}%" if "score" in one else ""
    return f"{name}{score}{' (crowd)' if one.get('iscrowd') else ''}"


# ---- Several ---------------------------------------------------------------------------------


def save_detection_sheet(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    path: str,
    num_images: int = 6,
    score_threshold: float = 0.5,
) -> None:
    """
    Saves images of a dataset, evenly spread over it, with ground truth and detections side by
    side: boxes, class names and scores, and masks where the model predicts them.

    Args:
        model: see :func:`detect`.
        path: of the picture, ".png" or any other format that Pillow writes by its ending.
        num_images: at most; a smaller dataset is shown whole.
        score_threshold: detections below it are left out.
    """
    records = evenly_spread(DatasetCatalog.get(dataset_name), num_images)
    class_names = MetadataCatalog.get(dataset_name).get("thing_classes")
    columns = 2 * min(len(records), _PAIRS_IN_A_ROW)
    width = (_SHEET_WIDTH - (columns + 1) * _GAP) // columns
    pictures = []
    for record, found in zip(records, detect(cfg, model, records), strict=True):
        image, truth = read(record["file_name"], "RGB"), record.get("annotations", [])
        pictures.append(draw_objects(image, truth, class_names, width, found.has("pred_masks")))
        found = instances_to_coco_json(found[found.scores >= score_threshold], None)
        pictures.append(draw_objects(image, found, class_names, width))
    headers = "ground truth", f"detections, score at least {score_threshold:g}"
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    _lay_out(pictures, columns, headers).save(path)


def _lay_out(
    pictures: Sequence[Image.Image], columns: int, headers: tuple[str, str]
) -> Image.Image:
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    row_heights = [max(picture.height for picture in row) + _GAP for row in rows]
    step = pictures[0].width + _GAP
    size = (_GAP + columns * step, _HEADER_HEIGHT + sum(row_heights))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for column in range(columns):
        draw.text((_GAP + column * step, 6), headers[column % 2], fill="black", font=font)
    top = _HEADER_HEIGHT
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (_GAP + column * step, top))
        top += row_height
    return sheet
