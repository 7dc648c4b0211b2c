"""A run's detections on a dataset, in COCO's results format: read from a file, or computed."""

import json
import math
import os
from typing import Any

import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from tqdm import tqdm

from ...checkpoint import WeightsCheckpointer
from ...config import choose_device, load_config
from ...errors import UsageError
from .ground_truth import GroundTruth
from .sources import Source

__all__ = ["load_model_config", "read_results", "run_model"]

_RESULT_KEYS = ("image_id", "category_id", "score")

Detection = dict[
    str, Any
]  # image_id, category_id, score, bbox (XYWH), segmentation where it has one


def read_results(path: str, truth: GroundTruth) -> list[Detection]:
    """
    Raises:
        UsageError: the file is not in COCO's results format, or of another dataset.
    """
    try:
        with open(path, encoding="utf-8") as f:
            results = json.load(f)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not a JSON file in UTF-8: {reason}") from error
    if not isinstance(results, list):
        raise UsageError(
            f"{path} is not in COCO's results format: it holds a {type(results).__name__}, "
            "not a list of detections"
        )
    for position, result in enumerate(results):
        _check_result(result, f"{path}: detection {position}", truth)
    return results


def _check_result(result: Any, where: str, truth: GroundTruth) -> None:
    missing = [k for k in _RESULT_KEYS if k not in result] if isinstance(result, dict) else ["..."]
    if missing or not ("bbox" in result or "segmentation" in result):
        raise UsageError(
            f"{where} is not in COCO's results format: it has no {(missing or ['bbox'])[0]!r}"
        )
    for key, fits in (("score", _is_number), ("bbox", _is_box), ("segmentation", _is_mask)):
        if key in result and not fits(result[key]):
            raise UsageError(f"{where} is not in COCO's results format: its {key} is {result[key]}")
    for key, known in (("image_id", truth.coco.imgs), ("category_id", truth.coco.cats)):
        if not isinstance(result[key], (int, str)) or result[key] not in known:
            raise UsageError(
                f"{where} has the {key} {result[key]!r}, which is not in the dataset {truth.name}: "
                "these are results of other data"
            )
    if "bbox" not in result:
        result["bbox"] = mask_util.toBbox(result["segmentation"]).tolist()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_mask(value: Any) -> bool:
    """Run-length encoded, as COCO has it in results."""
    return isinstance(value, dict) and {"size", "counts"} <= value.keys()


# ---- Running the model -----------------------------------------------------------------------


def load_model_config(source: Source, truth: GroundTruth) -> CfgNode:
    """
    The config of a run, to test its final weights on a dataset; on the CPU where there is no GPU.

    Raises:
        UsageError: it has no final weights, its config can't be read, or its model has other
            classes.
    """
    if not os.path.isfile(source.weights):
        raise UsageError(
            f"{source.path} has neither results on {truth.name} nor {source.weights} to run"
        )
    cfg = load_config(os.path.join(source.path, "config.yaml"))
    head = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    num_classes = cfg.MODEL[head].NUM_CLASSES
    if num_classes != len(truth.category_ids):
        raise UsageError(
            f"{source.path} detects {num_classes} classes, and the dataset {truth.name} has "
            f"{len(truth.category_ids)}"
        )
    cfg.MODEL.WEIGHTS = source.weights
    choose_device(cfg)
    return cfg


def run_model(cfg: CfgNode, truth: GroundTruth, label: str) -> list[Detection]:
    """
    Args:
        cfg: from :func:`load_model_config`.
        label: of the progress bar.
    """
    model = build_model(cfg)
    WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    loader = build_detection_test_loader(cfg, truth.name)
    results = []
    with inference_context(model), torch.no_grad():
        for inputs in tqdm(loader, desc=f"Running {label}", unit="image"):
            for record, output in zip(inputs, model(inputs), strict=True):
                instances = output["instances"].to("cpu")
                results += instances_to_coco_json(instances, record["image_id"])
    for result in results:
        result["category_id"] = truth.category_ids[result["category_id"]]
    return results
