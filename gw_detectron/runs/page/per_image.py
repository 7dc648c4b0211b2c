"""COCO's AP image by image."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["ImageAPs", "evaluate_images"]

_MAX_DETECTIONS = 100  # an image, as in COCO's AP


@dataclass(frozen=True)
class ImageAPs:
    """
    COCO's AP, averaged over the IoUs 0.5 to 0.95 and the classes, in percent.

    Attributes:
        dataset: over all images, the AP that is otherwise reported; nan without any object.
        images: image id -> the AP of a dataset that has this image alone. Only the classes that
            are there count: a detection of another class costs nothing, and where there is no
            object (crowd regions are none), the AP is nan.
    """

    dataset: float
    images: dict[Any, float]


def evaluate_images(
    truth: COCO,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    each_image: Callable[[], object] = lambda: None,
) -> ImageAPs:
    """
    Args:
        results: in COCO's results format; they are completed in place as COCO.loadRes does.
        iou_type: "bbox" or "segm", which each result, and for "segm" each annotation, has to have.
        each_image: called after each image.
    """
    image_ids = sorted(truth.getImgIds())
    images: dict[Any, float] = {}
    matches = []
    with contextlib.redirect_stdout(io.StringIO()):
        found = _detections(truth, results)
        for image_id in image_ids:
            evaluation = _evaluation(truth, found, iou_type, [image_id])
            evaluation.evaluate()
            matches.append(evaluation.evalImgs)  # one of each category
            images[image_id] = _ap(evaluation)
            each_image()
        whole = _evaluation(truth, found, iou_type, image_ids)
        whole.evalImgs = [
            match for of_category in zip(*matches, strict=True) for match in of_category
        ]
        whole._paramsEval = whole.params
        return ImageAPs(_ap(whole), images)


def _detections(truth: COCO, results: Sequence[dict[str, Any]]) -> COCO:
    if results:
        return truth.loadRes(list(results))
    none = COCO()
    none.dataset = {**truth.dataset, "annotations": []}
    none.createIndex()
    return none


def _evaluation(truth: COCO, found: COCO, iou_type: str, image_ids: list[Any]) -> COCOeval:
    evaluation = COCOeval(truth, found, iou_type)
    evaluation.params.imgIds = image_ids
    evaluation.params.maxDets = [_MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    return evaluation


def _ap(evaluation: COCOeval) -> float:
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    precision = precision[precision > -1]  # that is what classes without an object have
    return 100 * float(precision.mean()) if precision.size else float("nan")
