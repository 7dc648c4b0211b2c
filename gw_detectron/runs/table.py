"""Runs as a table: seeds merged, the paper's APs beside, and the differences between the norms."""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from ..config import differences, flatten
from ..model_zoo import get_config
from .config_norms import Config, norm_label, norms, stock_backbone
from .difference import ap_differences
from .run import METRICS, Run

__all__ = ["Line", "Table", "experiment", "make_table"]

T = TypeVar("T")

_ON_DIFFERENCES = (
    "In brackets are 95 % intervals: Student's over pairs of runs with the same seed, and a "
    "bootstrap over the test images with the same runs. A difference whose interval holds 0 is "
    "none."
)

# Where, when and how often it ran, and what it is called: no part of the experiment
_INCIDENTAL = re.compile(
    r"SEED|OUTPUT_DIR|VERSION|VIS_PERIOD|CUDNN_BENCHMARK|GLOBAL\..*|DATALOADER\.NUM_WORKERS"
    r"|MODEL\.DEVICE|MODEL\.GW\.(CLASSES|DIAGNOSTICS_PERIOD)|TEST\.(EVAL_PERIOD|EXPECTED_RESULTS)"
    r"|SOLVER\.(CHECKPOINT_PERIOD|REFERENCE_WORLD_SIZE)"
)
_RATE = "SOLVER.BASE_LR"
# The norms, where they are, what weights that were pre-trained with one dictate, and the learning
# rate, since each norm has a best one of its own
_OF_NORM = re.compile(
    r".*\.NORM|MODEL\.BACKBONE\.NAME|MODEL\.GW\..*|TEST\.PRECISE_BN\..*|INPUT\.FORMAT"
    r"|MODEL\.(WEIGHTS|PIXEL_MEAN|PIXEL_STD|RESNETS\.STRIDE_IN_1X1)|SOLVER\.BASE_LR"
)


@dataclass
class Line:
    """
    Runs that differ in the seed alone, on one dataset.

    Attributes:
        config, norm: labels; together with the iterations no other line has the same.
    """

    config: str
    norm: str
    dataset: str
    runs: list[Run]

    @property
    def iterations(self) -> int:
        return self.runs[0].config["SOLVER.MAX_ITER"]

    @property
    def aps(self) -> pd.DataFrame:
        """A row a run, a column a metric, e.g. "bbox/AP"."""
        return pd.DataFrame([run.final(self.dataset) for run in self.runs])

    def cells(self) -> dict[str, Any]:
        """Column -> what stands in it, unrounded; nan or None for nothing."""
        cells = {"config": self.config, "norm": self.norm}
        cells |= {"seeds": len(self.runs), "iterations": self.iterations}
        mean, deviation = self.aps.mean(), self.aps.std()  # of the sample, over n - 1
        for metric, name in METRICS.items():
            cells[name], cells[f"{name} std"] = mean.get(metric), deviation.get(metric)
        papers = _papers().get(_experiment_key(self.runs[0].config), ())
        return cells | dict(zip(("paper's box AP", "paper's mask AP"), papers, strict=False))


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        rows: lines of finished runs, together those of one config and dataset, whatever the norms.
        problems: (directory, why it is not in a line) of the other runs.
    """

    rows: list[list[Line]]
    problems: list[tuple[str, str]]

    @property
    def lines(self) -> list[Line]:
        return [line for row in self.rows for line in row]

    def markdown(self) -> str:
        """The table, the differences between the norms, and the runs that are not in it."""
        parts = [self._markdown() if self.rows else "No run has a result yet."]
        parts += [*self._differences, _ON_DIFFERENCES] if self._differences else []
        if self.problems:
            parts.append("Not in the table:")
            parts.append("\n".join(f"- {path}: {why}" for path, why in self.problems))
        return "\n\n".join(parts) + "\n"

    @functools.cached_property
    def _differences(self) -> list[str]:
        """A title and a list for each row and kind of AP; it takes seconds a run."""
        parts = []
        for row, task in itertools.product(self.rows, ("bbox", "segm")):
            metric = f"{task}/AP"
            runs_of = {line.norm: line.runs for line in row if metric in line.aps}
            if found := ap_differences(runs_of, row[0].dataset, task):
                title = f"{METRICS[metric]}, {row[0].config}, {row[0].iterations} iterations:"
                parts += [title, "\n".join(f"- {difference}" for difference in found)]
        return parts

    def _markdown(self) -> str:
        frame = self._frame()
        texts = frame[[name for name in frame if not name.endswith(" std")]].copy()
        for name in texts.select_dtypes("float"):
            texts[name] = texts[name].map("{:.2f}".format, na_action="ignore").fillna("-")
            if f"{name} std" in frame:
                deviations = frame[f"{name} std"].map(" ± {:.2f}".format, na_action="ignore")
                texts[name] += deviations.fillna("")
        align = ["left", "left", *["right"] * (texts.shape[1] - 2)]
        table = texts.to_markdown(index=False, disable_numparse=True, colalign=align)
        note = "AP is the mean over the seeds ± their standard deviation (n - 1)."
        return f"{table}\n\n{note}" if frame["seeds"].max() > 1 else table

    def csv(self) -> str:
        """A header and the lines, a number a cell, unrounded; without the runs in problems."""
        return self._frame().to_csv(index=False, lineterminator="\n") if self.lines else ""

    def _frame(self) -> pd.DataFrame:
        """The columns in which a line has something."""
        return pd.DataFrame([line.cells() for line in self.lines]).dropna(axis=1, how="all")


def make_table(runs: Iterable[Run]) -> Table:
    """
    Runs that differ in nothing but the seed become one line; the lines are in the order of their
    first runs, row by row. A row is of one config, whatever its norms.
    """
    finished, problems = [], []
    for run in runs:
        problems.append((run.path, run.problem)) if run.problem else finished.append(run)
    lines = [
        Line(f"{_config_label(same[0].config)}, {name}", norm_label(same[0].config), name, same)
        for same in _grouped(finished, lambda run: experiment(run.config))
        for name in same[0].test_sets
    ]
    rows = _grouped(lines, lambda line: (line.dataset, _row(line.runs[0].config)))
    lines = [line for row in rows for line in row]
    for row in rows:
        _tell_apart(row, "norm", lambda config: {_RATE: config[_RATE]})
    # Two rows, or two lines of a row, may still have one label
    for same in _grouped(lines, lambda line: (line.config, line.iterations)):
        _tell_apart(same, "config", _row)
    for same in _grouped(lines, lambda line: (line.config, line.iterations, line.norm)):
        _tell_apart(same, "norm", experiment)
    return Table(rows, problems)


def _tell_apart(lines: list[Line], label: str, keys_of: Callable[[Config], dict[str, Any]]) -> None:
    """Adds to a label of each line, in place, the keys in which not all lines agree."""
    of_each = differences([keys_of(line.runs[0].config) for line in lines])
    for line, difference in zip(lines, of_each, strict=True):
        setattr(line, label, ", ".join(filter(None, [getattr(line, label), difference])))


def _grouped(items: Iterable[T], key: Callable[[T], Any]) -> list[list[T]]:
    """Groups of items with equal keys, in the order of their first members."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(json.dumps(key(item), sort_keys=True), []).append(item)
    return list(groups.values())


# ---- What a config describes -----------------------------------------------------------------


def experiment(config: Config) -> dict[str, Any]:
    """The keys in which runs of one experiment agree, whatever their seeds."""
    return {key: value for key, value in config.items() if not _INCIDENTAL.fullmatch(key)}


def _row(config: Config) -> dict[str, Any]:
    """
    The keys in which the runs of one row agree, whatever their norms and pre-trained weights;
    whether there are any weights belongs to it.
    """
    row = {key: v for key, v in experiment(config).items() if not _OF_NORM.fullmatch(key)}
    weights = "pre-trained" if config.get("MODEL.WEIGHTS") else ""
    return row | {"MODEL.BACKBONE.NAME": stock_backbone(config), "MODEL.WEIGHTS": weights}


def _config_label(config: Config) -> str:
    """E.g. "Mask R-CNN R-50-FPN 4conv1fc, from scratch"."""
    words = [str(config.get("MODEL.META_ARCHITECTURE"))]
    head = ""
    if words == ["GeneralizedRCNN"]:
        words = ["Cascade"] * (config.get("MODEL.ROI_HEADS.NAME") == "CascadeROIHeads")
        words += ["Mask"] * bool(config.get("MODEL.MASK_ON"))
        words = [*(words or ["Faster"]), "R-CNN"]
        for key, layer in (("NUM_CONV", "conv"), ("NUM_FC", "fc")):
            number = config.get(f"MODEL.ROI_BOX_HEAD.{key}")
            head += f"{number}{layer}" if number else ""
    builder = stock_backbone(config)
    backbone = builder.removeprefix("build_").removesuffix("_backbone")
    if "resnet" in builder:
        depth, groups = config.get("MODEL.RESNETS.DEPTH"), config.get("MODEL.RESNETS.NUM_GROUPS")
        width = config.get("MODEL.RESNETS.WIDTH_PER_GROUP")
        backbone = f"X-{depth}-{groups}x{width}d" if groups > 1 else f"R-{depth}"
        backbone += "-FPN" * ("fpn" in builder)
    label = " ".join(filter(None, [*words, backbone, head]))
    return label if config.get("MODEL.WEIGHTS") else f"{label}, from scratch"


# ---- The paper -------------------------------------------------------------------------------

# The configs of its COCO tables -> box AP, mask AP
_PAPER = {
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_frozenbn": (36.31,),
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gn": (36.32,),
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gw": (38.13,),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_frozenbn": (36.39,),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gn": (37.86,),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gw": (39.60,),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_frozenbn": (42.24, 37.53),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_gn": (42.18, 37.54),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_gw": (44.41, 39.17),
}


@functools.cache
def _papers() -> dict[str, tuple[float, ...]]:
    """The experiment of each of the paper's rows -> its APs."""
    configs = {name: flatten(get_config(f"{name}.yaml")) for name in _PAPER}
    return {_experiment_key(configs[name]): aps for name, aps in _PAPER.items()}


def _experiment_key(config: Config) -> str:
    """With the norms and the learning rate, but without what the pre-trained weights dictate."""
    return json.dumps([_row(config), norms(config), config[_RATE]], sort_keys=True)
