"""Rows of pictures as one HTML page that needs nothing but itself."""

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from typing import IO, Any

from ...engine.picture import class_color
from .ground_truth import GroundTruth
from .row import AP_NAMES, Picture, Row, RunDetections

__all__ = ["Page"]

_JPEG_QUALITY = 85

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.4 system-ui, sans-serif; margin: 1rem; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 45rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td:last-child { white-space: normal; overflow-wrap: anywhere; }
.classes { display: flex; flex-wrap: wrap; gap: .3rem 1rem; list-style: none; padding: 0; }
.classes span { display: inline-block; width: .9em; height: .9em; margin-right: .4em; }
article { border-top: 1px solid #8888; margin-top: 1rem; padding-top: .8rem; }
.pictures {
  --least: 15rem;
  --gap: .8rem;
  --all-beside: calc((100% - (var(--columns) - 1) * var(--gap)) / var(--columns));
  display: grid;
  gap: var(--gap);
  grid-template-columns:
    repeat(auto-fill, minmax(min(100%, max(var(--least), var(--all-beside))), 1fr));
  align-items: end;
}
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
figcaption b { display: block; }
img { display: block; height: auto; max-width: 100%; }
@media print {
  body { margin: 0; }
  label { display: none; }
  h2 { break-after: avoid; }
  article, figure { break-inside: avoid; }
  .pictures { --least: 11rem; }
}
"""

# Without it the page is in the first of the orders
_SCRIPT = """
const control = document.querySelector("label");
const orders = JSON.parse(document.getElementById("orders").textContent);
const articles = [...document.querySelectorAll("article")];
control.hidden = false;
control.querySelector("select").addEventListener("change", (event) => {
  const parent = articles[0].parentNode;
  orders[event.target.selectedIndex].forEach((i) => parent.append(articles[i]));
});
"""


class Page:
    """
    Writes a page into a file, row by row, without keeping the pictures.

    Args:
        file: open for writing, as text in UTF-8.
        image_ids: of the rows to come.
        threshold: below which detections are not drawn.
    """

    def __init__(
        self,
        file: IO[str],
        truth: GroundTruth,
        runs: Sequence[RunDetections],
        image_ids: Sequence[Any],
        threshold: float,
    ):
        self._file = file
        self._labels = [run.label for run in runs]
        self._names: list[str] = []
        self._box_aps: list[list[float]] = []
        title = f"Detections on {truth.name}"
        file.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(title)}</h1>\n{_introduction(truth, runs, threshold)}"
            f"{_table(runs)}{_legend(truth, runs, image_ids)}"
            f"<label hidden>Order: <select>{_options(self._labels)}</select></label>\n"
            f'<main style="--columns: {len(runs) + 1}">\n'
        )

    def add(self, row: Row) -> None:
        self._names.append(row.name)
        self._box_aps.append(row.box_aps)
        title = escape(row.title(len(self._names)))
        self._file.write(f'<article>\n<h2>{title}</h2>\n<div class="pictures">\n')
        for picture in row.pictures:
            self._file.write(_figure(picture))
        self._file.write("</div>\n</article>\n")

    def close(self) -> None:
        """Writes the end; the file stays open."""
        orders = json.dumps(_orders(self._names, self._box_aps))
        self._file.write(
            f'</main>\n<script type="application/json" id="orders">{orders}</script>\n'
            f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
        )


def _introduction(truth: GroundTruth, runs: Sequence[RunDetections], threshold: float) -> str:
    number = len(truth.coco.imgs)
    order = (
        f"Of {number} images, those on which the runs' box AP differs most come first."
        if len(runs) > 1
        else f"Of {number} images, those with the lowest box AP come first."
    )
    return (
        f"<p>{order} Detections with a score of at least {threshold:g} are drawn. "
        "The AP of an image counts those below it too, and of the classes only those that are on "
        "the image.</p>\n"
    )


def _table(runs: Sequence[RunDetections]) -> str:
    tasks = [task for task in AP_NAMES if any(task in run.aps for run in runs)]
    head = "".join(f'<th scope="col">{AP_NAMES[task]}</th>' for task in tasks)
    lines = []
    for run in runs:
        aps = "".join(
            f"<td>{run.aps[task].dataset:.2f}</td>" if task in run.aps else "<td></td>"
            for task in tasks
        )
        lines.append(
            f'<tr><th scope="row">{escape(run.label)}</th>{aps}<td>{escape(run.source)}</td></tr>\n'
        )
    return (
        f'<table>\n<tr><th scope="col">run</th>{head}<th scope="col">from</th></tr>\n'
        f"{''.join(lines)}</table>\n"
    )


def _legend(truth: GroundTruth, runs: Sequence[RunDetections], image_ids: Sequence[Any]) -> str:
    """The colors of the classes on these images."""
    drawn = [*(truth.coco.imgToAnns[id] for id in image_ids)]
    drawn += [run.shown.get(id, []) for run in runs for id in image_ids]
    classes = {truth.class_index(a["category_id"]) for of_image in drawn for a in of_image}
    items = []
    for index in sorted(classes):
        color = ", ".join(str(round(255 * part)) for part in class_color(index))
        name = escape(truth.class_names[index])
        items.append(f'<li><span style="background: rgb({color})"></span>{name}</li>')
    return f'<ul class="classes" aria-label="classes">{"".join(items)}</ul>\n'


def _figure(picture: Picture) -> str:
    data = io.BytesIO()
    picture.image.save(data, format="JPEG", quality=_JPEG_QUALITY)
    return (
        f"<figure><figcaption><b>{escape(picture.title)}</b>{escape(picture.caption)}</figcaption>"
        f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}" '
        f'width="{picture.image.width}" height="{picture.image.height}" '
        f'alt="{escape(picture.description)}"></figure>\n'
    )


# ---- Orders ----------------------------------------------------------------------------------


def _options(labels: Sequence[str]) -> str:
    names = ["largest difference first"] if len(labels) > 1 else []
    names += [f"lowest AP of {label} first" for label in labels]
    return "".join(f"<option>{escape(name)}</option>" for name in [*names, "by file name"])


def _orders(names: Sequence[str], box_aps: Sequence[Sequence[float]]) -> list[list[int]]:
    """Of the rows, for each of the options."""
    rows = range(len(names))
    orders = [list(rows)] if box_aps and len(box_aps[0]) > 1 else []
    for of_run in zip(*box_aps, strict=True):
        orders.append(sorted(rows, key=lambda i: math.inf if math.isnan(of_run[i]) else of_run[i]))
    return [*orders, sorted(rows, key=lambda i: names[i])]
