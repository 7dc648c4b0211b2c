"""The detections of runs on a dataset, and their AP on it and on single images."""

import contextlib
import functools
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from ..checkpoint import WeightsCheckpointer
from ..config import choose_device, load_config, predicting_head
from ..data.annotations import Ids, Objects
from ..data.coco import require_files, require_registered
from ..data.values import mistakes_of, number, read_json, require, require_keys
from ..engine.trainer import Trainer
from ..errors import UsageError, building
from ..files import whole_file
from .run import Run, find_runs, tell_apart

logger = logging.getLogger("detectron2.gw")

# ---- What a command line names ---------------------------------------------------------------


def find_sources(texts: Sequence[str], trust: bool = False) -> dict[str, Run | str]:
    """
    Args:
        texts: each the path of a run, of a directory with several, or of a file of detections in
            COCO's results format; or LABEL=PATH. Without a label, a run is called by its norms.
            Runs that have neither results nor final weights are left out of a directory.
        trust: see :func:`gw_detectron.config.read_config_file`.

    Returns:
        label -> run, or path of a file.

    Raises:
        UsageError: there is no such path, or nothing of use in it; two are the same.
    """
    sources: list[tuple[str, str, Run | str]] = []  # label, path, and what is there
    for text in texts:
        label, _, path = ("", "", text) if os.path.exists(text) else text.partition("=")
        if os.path.isfile(path):
            name = os.path.splitext(os.path.basename(path))[0]
            sources.append((label or name, path, path))
            continue
        if not os.path.isdir(path):
            raise UsageError(f"there is no run directory or results file {text}")
        usable, left_out = [], []
        for run in find_runs([path], trust):
            results = any(map(run.results_file, run.test_sets))
            if run.config and (results or os.path.isfile(run.weights)):
                usable.append((label or run.label, run.path, run))
            else:
                left_out.append(f"{run.path}: {run.problem or f'no results, no {run.weights}'}")
        if not usable:
            raise UsageError(f"{left_out[0]}; a results file can be given instead")
        for line in left_out:
            logger.warning(f"left out: {line}")
        sources += usable
    labels, paths, found = zip(*sources, strict=True)
    return dict(zip(tell_apart(labels, paths), found, strict=True))


def common_dataset(sources: Mapping[str, Run | str]) -> str:
    """
    The last of the runs' DATASETS.TEST, that of which Detectron2 keeps the results.

    Raises:
        UsageError: there is none, or they differ.
    """
    runs = [run for run in sources.values() if isinstance(run, Run)]
    names = {name for run in runs for name in run.test_sets[-1:]}
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
    """

    name: str
    coco: COCO
    image_root: str
    classes: dict[Any, str]


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
    with _silence():
        coco = COCO(path)
    if not coco.anns:
        raise UsageError(f"the dataset {name} has no ground truth: no annotations in {path}")
    classes = {id: str(coco.cats[id]["name"]) for id in sorted(coco.cats)}
    return GroundTruth(name, coco, metadata.get("image_root", ""), classes)


def _silence() -> contextlib.AbstractContextManager:
    """pycocotools prints what it does."""
    return contextlib.redirect_stdout(io.StringIO())


# ---- Detections ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detections:
    """
    Attributes:
        label: of the source.
        file: that they are in.
        found: in COCO's results format, each with a "bbox"; by image in `found.imgToAnns`.
        has_masks: the dataset has some, and all detections have one.
    """

    label: str
    file: str
    truth: GroundTruth
    found: COCO
    has_masks: bool

    def ap(self, task: str = "bbox", image_ids: Sequence[Any] = ()) -> float:
        """
        COCO's AP, averaged over the IoUs 0.5 to 0.95 and the classes, in percent.

        Args:
            task: "bbox" or "segm".
            image_ids: of a part of the dataset that is evaluated alone. Only the classes that are
                there count: a detection of another class costs nothing.

        Returns:
            nan where there is no object (crowd regions are none).
        """
        evaluation = self.evaluate(task, image_ids)
        with _silence():
            evaluation.accumulate()
        precision = evaluation.eval["precision"]
        precision = precision[precision > -1]  # that is what classes without an object have
        return 100 * float(precision.mean()) if precision.size else float("nan")

    def evaluate(self, task: str = "bbox", image_ids: Sequence[Any] = ()) -> COCOeval:
        """Matches the detections with objects of all areas. The arguments are those of `ap`."""
        with _silence():
            evaluation = COCOeval(self.truth.coco, self.found, task)
            evaluation.params.imgIds = list(image_ids) or evaluation.params.imgIds
            evaluation.params.maxDets, evaluation.params.areaRng = [100], [[0, 1e10]]
            evaluation.evaluate()
        return evaluation

    def aps(self, image_ids: Sequence[Any] = ()) -> str:
        """The box AP, and the mask AP where there are masks, in words."""
        box = f"box AP {self.ap('bbox', image_ids):.2f}"
        return f"{box}, mask AP {self.ap('segm', image_ids):.2f}" if self.has_masks else box

    @functools.cached_property
    def summary(self) -> str:
        """Its APs on the dataset, and where it is from."""
        return f"{self.label}: {self.aps()} on {self.truth.name}, from {self.file}"


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
        UsageError: results are of other data, or a run's model doesn't fit the dataset.
    """
    detections = []
    for label, source in sources.items():
        file = kept_results(source, truth) if isinstance(source, Run) else source
        if not file:
            file = os.path.join(output, f"{label.replace(os.sep, '-')}.json")
            results = _run_model(source, truth, label, trust)
            with whole_file(file) as f:
                json.dump(results, f)
        detections.append(read_results(label, file, truth))
    return detections


def kept_results(run: Run, truth: GroundTruth) -> str | None:
    """
    The file of what a run has found on a dataset. None where there is none, or where the run had
    the categories in another order: their ids may be others.
    """
    classes = [*truth.classes.values()]
    has_these = [*(run.config.get("MODEL.GW.CLASSES") or classes)] == classes
    return run.results_file(truth.name) if has_these else None


def read_results(label: str, file: str, truth: GroundTruth) -> Detections:
    """
    Detections in COCO's results format; those with a mask alone get the box around it.

    Raises:
        UsageError: the file is not in this format, or of another dataset.
    """
    results = read_json(file, "results file")
    if not isinstance(results, list):
        kind = type(results).__name__
        raise UsageError(f"{file} is not in COCO format: it holds a {kind}, not a list of results")
    sizes = {id: (image["width"], image["height"]) for id, image in truth.coco.imgs.items()}
    ids = [
        Ids([*entries.values()], name, Counter())
        for name, entries in (("images", truth.coco.imgs), ("categories", truth.coco.cats))
    ]
    objects = Objects(*ids, sizes, f"the dataset {truth.name}")
    with mistakes_of(file):
        for position, result in enumerate(results):
            what = f"detection {position}"
            require_keys(result, ("image_id", "category_id", "score"), what)
            objects.check(result, what)
            score = number(result["score"])
            require(score is not None, f"the score of {what}", result["score"], "a number")
            result["score"] = score
    everything = [*truth.coco.anns.values(), *results]
    has_masks = bool(results) and all(one.get("segmentation") for one in everything)
    with _silence():
        found = truth.coco.loadRes(results) if results else COCO()
    return Detections(label, file, truth, found, has_masks)


@torch.no_grad()
def _run_model(run: Run, truth: GroundTruth, label: str, trust: bool) -> list[dict[str, Any]]:
    """What a run's final weights find; on the CPU where there is no GPU."""
    if not os.path.isfile(run.weights):
        raise UsageError(f"{run.path} has neither results on {truth.name} nor {run.weights} to run")
    cfg = load_config(os.path.join(run.path, "config.yaml"), trust=trust)
    num_classes, ids = cfg.MODEL[predicting_head(cfg)].NUM_CLASSES, list(truth.classes)
    if num_classes != len(ids):
        raise UsageError(
            f"{run.path} detects {num_classes} classes, and the dataset {truth.name} has {len(ids)}"
        )
    cfg.MODEL.GW.CLASSES = tuple(truth.classes.values())
    choose_device(cfg)
    with building(f"the model of {label}"):
        model = Trainer.build_model(cfg)
    WeightsCheckpointer(model, cfg=cfg, whole=True).load(run.weights)
    results = []
    with inference_context(model):
        loader = Trainer.build_test_loader(cfg, truth.name)
        for inputs in tqdm(loader, desc=f"Running {label}", unit="image"):
            found = model(inputs)[0]["instances"].to("cpu")
            results += instances_to_coco_json(found, inputs[0]["image_id"])
    return [result | {"category_id": ids[result["category_id"]]} for result in results]
