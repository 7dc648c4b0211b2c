"""The detections of runs beside each other, on the images where they differ most: an HTML page."""

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tqdm import tqdm

from ..data.images import read
from ..engine.detections import class_color, draw_objects
from ..errors import UsageError
from ..files import whole_file
from .detections import AP_NAMES, Detections, GroundTruth, find_detections
from .run import Run

__all__ = ["visualize"]

_LARGEST = 520  # pixels, of the width and the height of a picture
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

# image id -> for the ground truth and then each run the objects that are drawn
Shown = dict[Any, list[list[dict[str, Any]]]]


def visualize(
    sources: Mapping[str, Run | str],
    truth: GroundTruth,
    output: str,
    num_images: int = 24,
    threshold: float = 0.5,
    trust: bool = False,
) -> list[Detections]:
    """
    Draws the images on which the runs differ most in box AP, or where there is one run, those with
    its lowest, into OUTPUT/index.html. See :func:`find_detections` for what else is written.

    Args:
        sources: from :func:`find_sources`.
        num_images: at most.
        threshold: detections with a lower score count in the AP and are not drawn.
        trust: see :func:`gw_detectron.config.read_config_file`.

    Raises:
        UsageError: a run's results are of other data or its model doesn't fit; an image to be drawn
            can't be read; `output` can't be written.
    """
    if num_images < 1:
        raise UsageError(f"--images {num_images}: there must be one at least")
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: a score is between 0 and 1")
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} can't be made: {error.strerror}") from error
    runs = find_detections(sources, truth, output, trust)

    aps = np.array([list(run.aps["bbox"].images.values()) for run in runs])
    order = _ascending(aps.min(axis=0) - aps.max(axis=0) if len(runs) > 1 else aps[0])
    image_ids, shown = sorted(truth.coco.imgs), {}
    for place in order[:num_images]:
        id = image_ids[place]
        found = [run.by_image.get(id, []) for run in runs]
        found = [[one for one in of_run if one["score"] >= threshold] for of_run in found]
        shown[id] = [truth.coco.imgToAnns[id], *found]
    page = _TEMPLATES.get_template("page.html").stream(
        truth=truth,
        runs=runs,
        tasks={task: name for task, name in AP_NAMES.items() if any(task in r.aps for r in runs)},
        threshold=threshold,
        classes=_classes(truth, shown),
        orders=_orders(truth, runs, shown),
        rows=_rows(truth, runs, shown),
    )
    with whole_file(os.path.join(output, "index.html")) as file:
        page.dump(file)
    return runs


def _ascending(values: Sequence[Any]) -> list[int]:
    """The order of the values, in which nan comes last."""
    return np.argsort(values, kind="stable").tolist()


def _classes(truth: GroundTruth, shown: Shown) -> list[tuple[str, str]]:
    """(name, color in CSS) of those that are drawn on some image."""
    drawn = {o["category_id"] for columns in shown.values() for column in columns for o in column}
    return [
        (name, f"rgb({', '.join(f'{255 * part:.0f}' for part in class_color(index))})")
        for index, (id, name) in enumerate(truth.classes.items())
        if id in drawn
    ]


def _orders(truth: GroundTruth, runs: Sequence[Detections], shown: Shown) -> dict[str, list[int]]:
    """In which the page can show its images; the first is that in which they come."""
    orders = {"largest difference first": list(range(len(shown)))} if len(runs) > 1 else {}
    for run in runs:
        aps = [run.aps["bbox"].images[id] for id in shown]
        orders[f"lowest AP of {run.label} first"] = _ascending(aps)
    names = [truth.coco.imgs[id]["file_name"] for id in shown]
    return orders | {"by file name": _ascending(names)}


def _rows(
    truth: GroundTruth, runs: Sequence[Detections], shown: Shown
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yields of each image its heading, its name and what is to be known of its pictures."""
    with_masks = any("segm" in run.aps for run in runs)
    for number, id in enumerate(tqdm(shown, desc="Drawing", unit="image"), 1):
        record, (annotations, *found) = truth.coco.imgs[id], shown[id]
        name = record["file_name"]
        image = read(os.path.join(truth.image_root, name), "RGB", record)
        aps = [run.aps["bbox"].images[id] for run in runs]
        differ = f": box AP differs by {max(aps) - min(aps):.1f}"
        heading = f"{number}. {name}{differ if len(runs) > 1 and not math.isnan(aps[0]) else ''}"
        crowds = sum(bool(annotation["iscrowd"]) for annotation in annotations)
        caption = _count(len(annotations) - crowds, "object")
        if crowds:
            caption += f", {_count(crowds, 'crowd region')}"
        pictures = [_picture(truth, image, "ground truth", caption, annotations, with_masks)]
        for run, of_run in zip(runs, found, strict=True):
            aps = ", ".join(_say_ap(task, aps.images[id]) for task, aps in run.aps.items())
            caption = f"{aps}; {_count(len(of_run), 'detection')}"
            pictures.append(_picture(truth, image, run.label, caption, of_run))
        yield heading, name, pictures


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _say_ap(task: str, ap: float) -> str:
    return f"no {AP_NAMES[task]}" if math.isnan(ap) else f"{AP_NAMES[task]} {ap:.1f}"


def _picture(
    truth: GroundTruth,
    image: np.ndarray,
    title: str,
    caption: str,
    objects: Sequence[dict[str, Any]],
    with_masks: bool = True,
) -> dict[str, Any]:
    height, width = image.shape[:2]
    names, index = list(truth.classes.values()), {id: i for i, id in enumerate(truth.classes)}
    objects = [one | {"category_id": index[one["category_id"]]} for one in objects]
    width = max(1, round(width * _LARGEST / max(height, width)))
    drawn, jpeg = draw_objects(image, objects, names, width, with_masks), io.BytesIO()
    drawn.save(jpeg, format="JPEG", quality=85)
    counts = Counter(names[one["category_id"]] for one in objects).most_common()
    return {
        "title": title,
        "caption": caption,
        "classes": ", ".join(f"{number} {name}" for name, number in counts),
        "jpeg": base64.b64encode(jpeg.getvalue()).decode(),
        "size": drawn.size,
    }
