"""The detections of runs beside each other, on the images where they differ most: an HTML page."""

import base64
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.images import read
from ..engine.detection_sheet import draw_objects
from ..files import whole_file
from .detections import Detections

__all__ = ["save_page"]

_LARGEST = 520  # pixels, of the width and the height of a picture


def save_page(
    path: str, runs: Sequence[Detections], num_images: int = 24, threshold: float = 0.5
) -> None:
    """
    Draws the images on which the runs differ most in box AP, or where there is one run, those with
    its lowest.

    Args:
        path: of the page, which needs no other file.
        runs: one or more, on the same dataset.
        num_images: at most.
        threshold: detections with a lower score count in the AP and are not drawn.

    Raises:
        UsageError: an image to be drawn can't be read.
    """
    ids = sorted(runs[0].truth.coco.imgs)
    aps = np.array(
        [
            [run.ap("bbox", [id]) for id in tqdm(ids, desc=f"Evaluating {run.label}", unit="image")]
            for run in runs
        ]
    )
    low_first = aps.min(axis=0) - aps.max(axis=0) if len(runs) > 1 else aps[0]
    shown = [ids[i] for i in np.argsort(low_first, kind="stable")[:num_images]]  # nan comes last
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    page = jinja2.Template(template, autoescape=True, trim_blocks=True).stream(
        runs=runs, threshold=threshold, rows=_rows(runs, shown, threshold)
    )
    with whole_file(path) as file:
        page.dump(file)


def _rows(
    runs: Sequence[Detections], ids: Sequence[Any], threshold: float
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields of each image its name and its pictures."""
    truth, with_masks = runs[0].truth, any(run.has_masks for run in runs)
    for id in tqdm(ids, desc="Drawing", unit="image"):
        record = truth.coco.imgs[id]
        image = read(os.path.join(truth.image_root, record["file_name"]), "RGB", record)
        columns = [("ground truth", "", truth.coco, with_masks)]
        columns += [(run.label, f"{run.aps([id])}; ", run.found, run.has_masks) for run in runs]
        pictures = []
        for title, aps, coco, masks in columns:
            objects = [one for one in coco.imgToAnns[id] if one.get("score", 1) >= threshold]
            counts = Counter(truth.classes[one["category_id"]] for one in objects).most_common()
            names = ", ".join(f"{number} {name}" for name, number in counts) or "nothing"
            picture = _jpeg(image, objects, truth.classes, masks)
            pictures.append({"title": title, "caption": aps + names, "jpeg": picture})
        yield record["file_name"], pictures


def _jpeg(
    image: np.ndarray, objects: Sequence[dict[str, Any]], names: dict[Any, str], with_masks: bool
) -> str:
    height, width = image.shape[:2]
    width = max(1, round(width * _LARGEST / max(height, width)))
    jpeg = io.BytesIO()
    drawn = Image.fromarray(draw_objects(image, objects, names, width, with_masks))
    drawn.save(jpeg, format="JPEG", quality=85)
    return base64.b64encode(jpeg.getvalue()).decode()
