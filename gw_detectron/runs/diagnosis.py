"""Trained detectors, and what their norms do on the same images of a dataset."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model
from tqdm import tqdm

from ..checkpoint import WeightsCheckpointer
from ..config import flatten
from ..data.coco import require_files
from ..data.images import ImageMapper
from ..errors import UsageError, building
from ..norms.diagnostics import NormStatistics, NormWatcher, common_groups
from .config_norms import norm_label
from .run import find_runs, tell_apart

__all__ = ["Diagnosis", "Findings", "diagnose", "find_detectors"]


@dataclass(frozen=True)
class Diagnosis:
    """
    One detector.

    Attributes:
        label: its norms, as tools/compare_runs.py names them; no other of the Findings has it.
        weights: the file they were read from.
        norms: in the order in which an image meets them.
    """

    label: str
    weights: str
    norms: list[NormStatistics]


@dataclass(frozen=True)
class Findings:
    """
    Attributes:
        groups: the number of groups that the norms of all detectors are compared by.
    """

    diagnoses: list[Diagnosis]
    dataset: str
    images: int
    groups: int


def find_detectors(paths: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """
    The finished training runs in the directories and below them.

    Returns:
        (config.yaml, model_final.pth) of each, and a line for each run that is left out.

    Raises:
        UsageError: there is no run in one of the directories, or none at all is finished.
    """
    detectors, left_out = [], []
    for run in find_runs(paths):
        files = (os.path.join(run.path, "config.yaml"), run.weights)
        missing = [os.path.basename(file) for file in files if not os.path.isfile(file)]
        if missing:
            left_out.append(f"{run.path} has no {' and no '.join(missing)}")
        else:
            detectors.append(files)
    if left_out and not detectors:
        raise UsageError(left_out[0])
    return detectors, left_out


def diagnose(configs: Sequence[CfgNode], num_images: int, num_groups: int | None) -> Findings:
    """
    Measures the norms of detectors on images of their first test set, evenly spread over it.

    Args:
        configs: with the trained weights as MODEL.WEIGHTS.
        num_images: at most; of a smaller dataset all.
        num_groups: None for :func:`common_groups`.

    Raises:
        UsageError: there are no weights, no norms, no dataset or more than one; or a number is too
            small.
    """
    if num_images < 1:
        raise UsageError(f"--images must be at least 1, not {num_images}")
    if num_groups is not None and num_groups < 2:
        raise UsageError(f"--num-groups must be at least 2, not {num_groups}")
    dataset = _common_dataset(configs)
    for cfg in configs:
        if not cfg.MODEL.WEIGHTS:
            raise UsageError("there are no trained weights to diagnose: add --weights FILE")
    labels = _labels(configs)
    with building("the model"):
        models = [build_model(cfg) for cfg in configs]
    num_groups = num_groups or common_groups(models)
    watchers = [NormWatcher(model, num_groups) for model in models]

    require_files(dataset)
    records = DatasetCatalog.get(dataset)
    num_images = min(num_images, len(records))
    records = [records[(2 * i + 1) * len(records) // (2 * num_images)] for i in range(num_images)]
    with tqdm(total=num_images * len(configs), unit="image") as progress:
        for cfg, label, model, watcher in zip(configs, labels, models, watchers, strict=True):
            progress.set_description(label)
            WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
            mapper = ImageMapper(DatasetMapper(cfg, False))
            loader = build_detection_test_loader(
                records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
            )
            with inference_context(model), torch.no_grad(), watcher:
                for batch in loader:
                    model(batch)
                    progress.update(len(batch))
    diagnoses = [
        Diagnosis(label, cfg.MODEL.WEIGHTS, watcher.statistics())
        for cfg, label, watcher in zip(configs, labels, watchers, strict=True)
    ]
    return Findings(diagnoses, dataset, num_images, num_groups)


def _common_dataset(configs: Sequence[CfgNode]) -> str:
    names = list(dict.fromkeys(cfg.DATASETS.TEST[0] for cfg in configs if cfg.DATASETS.TEST))
    if len(names) != 1:
        found = f"they begin with {' and '.join(names)}" if names else "there is none"
        raise UsageError(
            "the images are those of the first dataset in DATASETS.TEST, the same for all: "
            f"{found}; add --on NAME"
        )
    return names[0]


def _labels(configs: Sequence[CfgNode]) -> list[str]:
    labels = [norm_label(flatten(cfg)) for cfg in configs]
    return tell_apart(
        labels, [cfg.MODEL.WEIGHTS.removesuffix("/model_final.pth") for cfg in configs]
    )
