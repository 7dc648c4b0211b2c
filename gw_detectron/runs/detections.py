"""The detections of runs on a dataset, and their AP on each of its images."""

import contextlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from ..checkpoint import WeightsCheckpointer
from ..config import choose_device, load_config
from ..data.coco import (
    check_object,
    is_number,
    mistakes_of,
    read_json,
    require_files,
    require_keys,
    require_registered,
)
from ..engine.detections import detect
from ..errors import UsageError, building
from ..files import whole_file
from .run import Run, find_runs, tell_apart

AP_NAMES = {"bbox": "box AP", "segm": "mask AP"}


# ---- What a command line names ---------------------------------------------------------------


def find_sources(
    texts: Sequence[str], trust: bool = False
) -> tuple[dict[str, Run | str], list[str]]:
    """
    Args:
        texts: each the path of a run, of a directory with several, or of a file of detections in
            COCO's results format; or LABEL=PATH. Without a label, a run is called by its norms.
        trust: see :func:`gw_detectron.config.read_config_file`.

    Returns:
        label -> run, or path of a file; and a line for each run that is left out of a directory
        with several, since it has neither results nor final weights.

    Raises:
        UsageError: there is no such path, or nothing of use in it; two are the same.
    """
    sources: list[tuple[str, str, Run | str]] = []  # label, path, and what is there
    left_out: list[str] = []
    for text in texts:
        ends = [match.start() for match in re.finditer("=", text)]  # a path may have a "=", too
        parts = [("", text), *((text[:end], text[end + 1 :]) for end in ends)]
        label, path = next((part for part in parts if os.path.exists(part[1])), ("", ""))
        if not path:
            raise UsageError(f"there is no run directory or results file {text}")
        if os.path.isfile(path):
            name = os.path.splitext(os.path.basename(path))[0]
            sources.append((label or name, path, path))
            continue
        runs = [(run, _why_unusable(run)) for run in find_runs([path], trust)]
        unusable = [f"{run.path}: {why}" for run, why in runs if why]
        if len(unusable) == len(runs):
            raise UsageError(unusable[0])
        sources += [(label or run.label, run.path, run) for run, why in runs if not why]
        left_out += unusable
    labels, paths, found = zip(*sources, strict=True)
    return dict(zip(tell_apart(labels, paths), found, strict=True)), left_out


def _why_unusable(run: Run) -> str | None:
    if not run.config:
        return f"{run.problem}; a results file alone can be given instead"
    if os.path.isfile(run.weights) or any(map(run.results_file, run.test_sets)):
        return None
    state = f" ({run.problem})" if run.problem else ""
    return f"it has neither results nor {os.path.basename(run.weights)}{state}"


def common_dataset(sources: Mapping[str, Run | str]) -> str:
    """
    The last of the runs' DATASETS.TEST, that of which Detectron2 keeps the results.

    Raises:
        UsageError: there is none, or they differ.
    """
    names = {
        run.test_sets[-1] for run in sources.values() if isinstance(run, Run) and run.test_sets
    }
    if len(names) == 1:
        return names.pop()
    known = f": the runs were evaluated on {', '.join(sorted(names))}" if names else ""
    raise UsageError(f"which dataset is to be shown? Name it with --on{known}")


# ---- The dataset -----------------------------------------------------------------------------


@dataclass(frozen=True)
class GroundTruth:
    """
    A dataset as COCO's evaluation sees it.

    Attributes:
        name: of the dataset, as Detectron2 has it registered.
        coco: its annotations, each with "area" and "iscrowd".
        classes: category id -> name, in the order of the model's class indices.
        has_masks: every annotation has one.
    """

    name: str
    coco: COCO
    image_root: str
    classes: dict[int, str]
    has_masks: bool


def load_ground_truth(name: str) -> GroundTruth:
    """
    Raises:
        UsageError: Detectron2 knows no such dataset, its files are missing, or it is not one that
            is evaluated as COCO is.
    """
    require_registered(name)
    metadata = MetadataCatalog.get(name)
    json_file, kind = metadata.get("json_file"), metadata.get("evaluator_type")
    if json_file is None or kind not in ("coco", "coco_panoptic_seg"):
        raise UsageError(f"the dataset {name} is not evaluated as COCO is, so it can't be shown")
    require_files(name)
    path = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    if "annotations" not in coco.dataset:
        raise UsageError(f"the dataset {name} has no ground truth: no annotations in {path}")
    for annotation in coco.anns.values():
        # All that is counted here is objects of any size, for which neither makes a difference
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return GroundTruth(
        name=name,
        coco=coco,
        image_root=metadata.get("image_root", ""),
        classes={id: str(coco.cats[id]["name"]) for id in sorted(coco.cats)},
        has_masks=all(annotation.get("segmentation") for annotation in coco.anns.values()),
    )


# ---- Detections ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageAPs:
    """
    COCO's AP, averaged over the IoUs 0.5 to 0.95 and the classes, in percent.

    Attributes:
        dataset: over all images, the AP that is otherwise reported; nan without any object.
        images: image id, ascending -> the AP of a dataset that has this image alone. Only the
            classes that are there count: a detection of another class costs nothing, and where
            there is no object (crowd regions are none), the AP is nan.
    """

    dataset: float
    images: dict[Any, float]


@dataclass(frozen=True)
class Detections:
    """
    Attributes:
        label: of the source.
        file: that they are in.
        by_image: image id -> those of the image, in COCO's results format, each with a "bbox".
        aps: "bbox", and "segm" where the dataset and all detections have masks -> their APs.
    """

    label: str
    file: str
    by_image: dict[Any, list[dict[str, Any]]]
    aps: dict[str, ImageAPs]


def find_detections(
    sources: Mapping[str, Run | str], truth: GroundTruth, output: str, trust: bool = False
) -> list[Detections]:
    """
    The detections of each source: those that it has on the dataset, else what its final weights
    find there, which are kept in OUTPUT/LABEL.json.

    Args:
        sources: from :func:`find_sources`.
        output: a folder that is there.
        trust: see :func:`gw_detectron.config.read_config_file`.

    Raises:
        UsageError: results are of other data, or a run's model doesn't fit the dataset; that is
            found before a model is run.
    """
    files, configs, results = {}, {}, {}
    for label, source in sources.items():
        files[label] = source.results_file(truth.name) if isinstance(source, Run) else source
        if files[label]:
            results[label] = read_results(files[label], truth)
        else:
            configs[label] = _test_config(source, truth, trust)
    for label, cfg in configs.items():
        results[label] = _run_model(cfg, truth, label)
        name = re.sub(r"[^\w.=+-]+", "-", label).strip("-.")
        files[label] = os.path.join(output, f"{name}.json")
        with whole_file(files[label]) as f:
            json.dump(results[label], f)
    return [_evaluate(label, file, results[label], truth) for label, file in files.items()]


def _evaluate(
    label: str, file: str, results: list[dict[str, Any]], truth: GroundTruth
) -> Detections:
    has_masks = truth.has_masks and results and all(r.get("segmentation") for r in results)
    tasks = ["bbox", "segm"] if has_masks else ["bbox"]
    aps = {
        task: evaluate_images(truth.coco, results, task, f"Evaluating {label}") for task in tasks
    }
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)
    return Detections(label, file, by_image, aps)


def read_results(path: str, truth: GroundTruth) -> list[dict[str, Any]]:
    """
    Detections in COCO's results format; those with a mask alone get the box around it.

    Raises:
        UsageError: the file is not in this format, or of another dataset.
    """
    results = read_json(path, "results file")
    if not isinstance(results, list):
        kind = type(results).__name__
        raise UsageError(f"{path} is not in COCO format: it holds a {kind}, not a list of results")
    images = {id: (image["width"], image["height"]) for id, image in truth.coco.imgs.items()}
    with mistakes_of(path):
        for position, result in enumerate(results):
            what = f"detection {position}"
            require_keys(result, ("image_id", "category_id", "score"), what)
            if not result.get("segmentation"):
                require_keys(result, ("bbox",), what)
            check_object(result, what, images, truth.classes, f"the dataset {truth.name}")
            if not is_number(result["score"]):
                raise UsageError(f"the score of {what} is {result['score']!r:.99}, not a number")
            if "bbox" not in result:
                result["bbox"] = mask_util.toBbox(truth.coco.annToRLE(result)).tolist()
    return results


def _test_config(run: Run, truth: GroundTruth, trust: bool) -> CfgNode:
    """To test a run's final weights on a dataset; on the CPU where there is no GPU."""
    if not os.path.isfile(run.weights):
        raise UsageError(f"{run.path} has neither results on {truth.name} nor {run.weights} to run")
    cfg = load_config(os.path.join(run.path, "config.yaml"), trust=trust)
    head = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    if cfg.MODEL[head].NUM_CLASSES != len(truth.classes):
        raise UsageError(
            f"{run.path} detects {cfg.MODEL[head].NUM_CLASSES} classes, and the dataset "
            f"{truth.name} has {len(truth.classes)}"
        )
    cfg.MODEL.WEIGHTS = run.weights
    choose_device(cfg)
    return cfg


def _run_model(cfg: CfgNode, truth: GroundTruth, label: str) -> list[dict[str, Any]]:
    with building(f"the model of {label}"):
        model = build_model(cfg)
    WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    records, category_ids, results = DatasetCatalog.get(truth.name), list(truth.classes), []
    found = detect(cfg, model, records, cfg.DATALOADER.NUM_WORKERS)
    progress = tqdm(records, desc=f"Running {label}", unit="image")
    for record, instances in zip(progress, found, strict=True):
        results += instances_to_coco_json(instances, record["image_id"])
    return [r | {"category_id": category_ids[r["category_id"]]} for r in results]


def evaluate_images(
    truth: COCO, results: list[dict[str, Any]], task: str, label: str = ""
) -> ImageAPs:
    """
    Args:
        results: in COCO's results format.
        task: "bbox" or "segm", which each result, and for "segm" each annotation, has to have.
        label: of the progress bar.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes([dict(result) for result in results]) if results else COCO()
        evaluation = COCOeval(truth, found, task)
        params = evaluation.params
        params.maxDets, params.areaRng, params.areaRngLbl = [100], [[0, 1e10]], ["all"]
        evaluation.evaluate()
        aps = ImageAPs(_ap(evaluation), {})
        matches = evaluation.evalImgs  # of all images with the first class, with the second, ...
        for i, image_id in enumerate(tqdm(sorted(truth.imgs), desc=label, unit="image")):
            evaluation.evalImgs = matches[i :: len(truth.imgs)]
            params.imgIds = evaluation._paramsEval.imgIds = [image_id]
            aps.images[image_id] = _ap(evaluation)
    return aps


def _ap(evaluation: COCOeval) -> float:
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    precision = precision[precision > -1]  # that is what classes without an object have
    return 100 * float(precision.mean()) if precision.size else float("nan")
