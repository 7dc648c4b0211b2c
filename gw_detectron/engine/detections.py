"""A picture of what a detector finds, beside what is there."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode, Instances
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ..data.images import spread_evenly
from .picture import Objects, draw_objects

__all__ = ["save_detection_sheet"]

_SHEET_WIDTH = 1600  # pixels
_PAIRS_IN_A_ROW = 2  # of images with ground truth and the same with detections
_GAP = 8
_HEADER_HEIGHT = 30
_PAPER = (255, 255, 255)


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
        model: any detector of Detectron2's that predicts "instances", built from `cfg`, on any
            device; its mode, training or not, is restored.
        path: of the picture, ".png" or any other format that Pillow writes by its ending.
        num_images: at most; a smaller dataset is shown whole.
        score_threshold: detections below it are left out.
    """
    records = spread_evenly(DatasetCatalog.get(dataset_name), num_images)
    class_names = MetadataCatalog.get(dataset_name).get("thing_classes", None)
    column_width = _column_width(len(records))
    pairs = []
    for record, found in zip(records, _detect(cfg, model, records), strict=True):
        found = found[found.scores >= score_threshold]
        pair = _true_objects(record, with_masks=found.has("pred_masks")), _found_objects(found)
        image = read_image(record["file_name"], format="RGB")
        pairs.append([draw_objects(image, o, class_names, column_width) for o in pair])
    threshold_header = f"detections, score at least {score_threshold:g}"
    sheet = _lay_out(pairs, column_width, ("ground truth", threshold_header))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    sheet.save(path)


def _detect(cfg: CfgNode, model: nn.Module, records: Sequence[dict[str, Any]]) -> list[Instances]:
    """Detections in the pixels of the original images, on the CPU."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # one process may draw while the others do something else
    mapper = DatasetMapper(cfg, is_train=False)
    with inference_context(model), torch.no_grad():
        return [model([mapper(record)])[0]["instances"].to("cpu") for record in records]


# ---- One image ------------------------------------------------------------------------------


def _true_objects(record: dict[str, Any], with_masks: bool) -> Objects:
    annotations = record.get("annotations", [])
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in annotations
    ]
    masks = None
    if with_masks and all("segmentation" in annotation for annotation in annotations):
        masks = [annotation["segmentation"] for annotation in annotations]
    return Objects(
        boxes=np.reshape(boxes, (-1, 4)),
        classes=[annotation["category_id"] for annotation in annotations],
        masks=masks,
        crowds=[bool(annotation.get("iscrowd")) for annotation in annotations],
    )


def _found_objects(found: Instances) -> Objects:
    return Objects(
        boxes=found.pred_boxes.tensor.numpy(),
        classes=found.pred_classes.tolist(),
        scores=found.scores.tolist(),
        masks=list(found.pred_masks.numpy()) if found.has("pred_masks") else None,
    )


# ---- The sheet -------------------------------------------------------------------------------


def _column_width(num_images: int) -> int:
    columns = 2 * min(num_images, _PAIRS_IN_A_ROW)
    return (_SHEET_WIDTH - (columns + 1) * _GAP) // columns


def _lay_out(
    pairs: Sequence[Sequence[Image.Image]],
    column_width: int,
    headers: tuple[str, str],
) -> Image.Image:
    rows = [pairs[i : i + _PAIRS_IN_A_ROW] for i in range(0, len(pairs), _PAIRS_IN_A_ROW)]
    row_heights = [max(image.height for pair in row for image in pair) for row in rows]
    columns = 2 * min(len(pairs), _PAIRS_IN_A_ROW)
    step = column_width + _GAP
    sheet = Image.new(
        "RGB", (_GAP + columns * step, _HEADER_HEIGHT + sum(row_heights) + _GAP * len(rows)), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for column in range(columns):
        draw.text((_GAP + column * step, 6), headers[column % 2], fill=(0, 0, 0), font=font)
    top = _HEADER_HEIGHT
    for row, height in zip(rows, row_heights, strict=True):
        for column, image in enumerate(image for pair in row for image in pair):
            sheet.paste(image, (_GAP + column * step, top))
        top += height + _GAP
    return sheet
