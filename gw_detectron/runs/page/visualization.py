"""From runs and a dataset to a page and sheets of pictures."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ...errors import UsageError
from .detections import Detection, load_model_config, read_results, run_model
from .ground_truth import GroundTruth
from .page import Page
from .per_image import evaluate_images
from .row import RunDetections, draw_row
from .sheets import Sheets
from .sources import Source

__all__ = ["Visualization", "visualize"]


@dataclass(frozen=True)
class Visualization:
    """
    Attributes:
        runs: in the order given.
        image_ids: of the images shown, in the order shown.
    """

    runs: list[RunDetections]
    image_ids: list[Any]
    page: str
    sheets: list[str]


def visualize(
    sources: Sequence[Source],
    truth: GroundTruth,
    output: str,
    num_images: int = 24,
    threshold: float = 0.5,
) -> Visualization:
    """
    Draws the images on which the runs differ most in box AP, or where there is one run, those with
    its lowest, into OUTPUT/index.html and OUTPUT/sheet-01.png, ... A run without results on the
    dataset is tested on it; its detections are kept in OUTPUT/LABEL.json.

    Args:
        sources: from :func:`find_sources`, at least one.
        num_images: at most.
        threshold: detections with a lower score count in the AP and are not drawn.

    Raises:
        UsageError: a run's results are of other data or its model doesn't fit; an image to be drawn
            can't be read; `output` can't be written.
    """
    if num_images < 1:
        raise UsageError(f"--images {num_images}: there must be one at least")
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: a score is between 0 and 1")
    configs = {
        source.path: load_model_config(source, truth)
        for source in sources
        if source.results_of(truth.name) is None
    }
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} can't be made: {error.strerror}") from error

    runs: dict[str, RunDetections] = {}
    for source in sorted(sources, key=lambda source: source.path in configs):  # mistakes show soon
        results_file = source.results_of(truth.name)
        if results_file is None:
            results = run_model(configs[source.path], truth, source.label)
            results_file = _write_results(results, output, source.label)
        else:
            results = read_results(results_file, truth)
        runs[source.path] = _evaluate(source.label, results_file, results, truth, threshold)
    in_order = [runs[source.path] for source in sources]

    image_ids = _most_different(in_order)[:num_images]
    page = os.path.join(output, "index.html")
    sheets = _draw(in_order, truth, image_ids, page, threshold)
    return Visualization(in_order, image_ids, page, sheets)


def _write_results(results: list[Detection], output: str, label: str) -> str:
    path = os.path.join(output, re.sub(r"[^\w.=+-]+", "-", label).strip("-.") + ".json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(results, f)
    return path


def _evaluate(
    label: str, source: str, results: list[Detection], truth: GroundTruth, threshold: float
) -> RunDetections:
    has_masks = bool(results) and all("segmentation" in result for result in results)
    tasks = ["bbox", "segm"] if has_masks and truth.has_masks else ["bbox"]
    number = len(tasks) * len(truth.coco.imgs)
    with tqdm(total=number, desc=f"Evaluating {label}", unit="image") as bar:
        aps = {task: evaluate_images(truth.coco, results, task, bar.update) for task in tasks}
    shown: dict[Any, list[Detection]] = {}
    for result in results:
        if result["score"] >= threshold:
            shown.setdefault(result["image_id"], []).append(result)
    return RunDetections(label, source, aps, shown, has_masks)


def _most_different(runs: Sequence[RunDetections]) -> list[Any]:
    """All image ids, those without an AP last."""

    def place(image_id: Any) -> float:
        aps = [run.box_ap(image_id) for run in runs]
        place = min(aps) - max(aps) if len(aps) > 1 else aps[0]
        return math.inf if math.isnan(place) else place

    return sorted(sorted(runs[0].aps["bbox"].images), key=place)


def _draw(
    runs: Sequence[RunDetections],
    truth: GroundTruth,
    image_ids: Sequence[Any],
    page_path: str,
    threshold: float,
) -> list[str]:
    """Returns the paths of the sheets."""
    heading = f"{truth.name}; detections with a score of at least {threshold:g} are drawn"
    sheets = Sheets(os.path.dirname(page_path), heading)
    with open(page_path, "w", encoding="utf-8") as f:
        page = Page(f, truth, runs, image_ids, threshold)
        for image_id in tqdm(image_ids, desc="Drawing", unit="image"):
            row = draw_row(truth, runs, image_id)
            sheets.add(row)
            page.add(row)
        page.close()
    sheets.close()
    return sheets.paths
