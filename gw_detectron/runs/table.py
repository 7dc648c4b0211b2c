"""Runs as a table: seeds merged, each norm's gain over batch norm, the paper's figures beside."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from tabulate import tabulate

from ..config import differences
from .config_norms import norm_label, norms
from .experiment import config_label, norm_details, paper_figures, row_of
from .run import Run

__all__ = ["Line", "Table", "make_table"]

T = TypeVar("T")

_METRICS = {
    "bbox/AP": "box AP",
    "bbox/AP50": "AP50",
    "bbox/AP75": "AP75",
    "bbox/APs": "APs",
    "bbox/APm": "APm",
    "bbox/APl": "APl",
    "segm/AP": "mask AP",
}
# What is compared, and what is added to the names of its columns
_COMPARED = {"bbox/AP": "", "segm/AP": " (mask)"}
# What a gain is counted from: the first of these that a row has
_BASELINES = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN")


@dataclass
class Line:
    """
    One experiment on one dataset, over its seeds.

    Attributes:
        config, norm: labels; together with dataset and iterations no other line has the same.
        runs: one a seed.
        aps: a row a run, a column a metric, e.g. "bbox/AP"; without those that a dataset can't
            have, such as APs where nothing is small.
        baseline: the line of the same row that gains are counted from; may be this one, or None.
    """

    config: str
    norm: str
    dataset: str
    runs: list[Run]
    aps: pd.DataFrame
    baseline: "Line | None" = None

    @property
    def iterations(self) -> int:
        return self.runs[0].config["SOLVER.MAX_ITER"]

    def cells(self) -> dict[str, Any]:
        """Column -> what stands in it, unrounded; nan or None for nothing."""
        mean, deviation = self.aps.mean(), self.aps.std()  # of the sample, over n - 1
        paper = paper_figures(self.runs[0].config, self.dataset)
        base = {} if self.baseline in (None, self) else self.baseline.aps.mean()
        cells = {
            "config": self.config,
            "norm": self.norm,
            "dataset": self.dataset,
            "seeds": len(self.runs),
            "iterations": self.iterations,
        }
        for metric, name in _METRICS.items():
            cells[name], cells[f"{name} std"] = mean.get(metric), deviation.get(metric)
        for metric, of_metric in _COMPARED.items():
            cells[f"gain{of_metric}"] = mean.get(metric, math.nan) - base.get(metric, math.nan)
        cells["gain over"] = self.baseline and self.baseline.norm
        for metric, of_metric in _COMPARED.items():
            cells[f"paper's {_METRICS[metric]}"] = figure = paper.get(metric, math.nan)
            cells[f"difference{of_metric}"] = mean.get(metric, math.nan) - figure
        return cells


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        lines: of finished runs.
        problems: (directory, why it is not in a line) of the other runs.
    """

    lines: list[Line]
    problems: list[tuple[str, str]]

    def markdown(self) -> str:
        """The table, what its columns mean, and the runs that are not in it."""
        problems = [f"- {path}: {why}" for path, why in self.problems]
        problems = ["", "Not in the table:", "", *problems] if problems else []
        if not self.lines:
            return "\n".join(["No run has a result yet.", *problems]) + "\n"
        frame = self._frame()
        hidden = [name for name in frame if name in ("dataset", "gain over") or name[-4:] == " std"]
        names = list(frame.drop(columns=hidden))
        table = tabulate(
            [[_cell(name, cells) for name in names] for cells in frame.to_dict("records")],
            names,
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["left" if name in ("config", "norm") else "right" for name in names],
        )
        notes = []
        if frame["seeds"].max() > 1:
            notes.append("AP is the mean over the seeds ± their standard deviation (n - 1).")
        if frame["gain"].notna().any():
            notes.append("Gains are over the FrozenBN (else BN) run of the same config.")
        if "difference" in frame:
            notes.append("Difference: AP minus the paper's.")
        legend = ["", " ".join(notes)] if notes else []
        return "\n".join([table, *legend, *problems]) + "\n"

    def csv(self) -> str:
        """A header and the lines, a number a cell, unrounded; without the runs in problems."""
        return self._frame().to_csv(index=False, lineterminator="\n") if self.lines else ""

    def _frame(self) -> pd.DataFrame:
        """The columns in which a line has something, and the gain."""
        frame = pd.DataFrame([line.cells() for line in self.lines])
        return frame[[name for name in frame if name == "gain" or frame[name].notna().any()]]


def _cell(name: str, cells: dict[str, Any]) -> str:
    value = cells[name]
    if isinstance(value, (str, int)):
        return str(value)
    if pd.isna(value) and name == "gain":
        return "baseline" if cells.get("gain over") == cells["norm"] else "none"
    if pd.isna(value):
        return "-"
    if name.startswith(("gain", "difference")):
        return f"{value:+.2f}"
    deviation = cells.get(f"{name} std")
    return f"{value:.2f}" + ("" if pd.isna(deviation) else f" ± {deviation:.2f}")


# ---- From runs to lines ----------------------------------------------------------------------


def make_table(runs: Iterable[Run]) -> Table:
    """
    Runs that differ in nothing but the seed become one line. Of several with one seed the first
    counts, and lines are in the order of their first runs, row by row, the baseline first.
    """
    finished, problems = _choose(runs)
    lines = [
        _make_line(of_line, dataset)
        for of_line in _grouped(
            finished, lambda run: (row_of(run.config), norm_details(run.config))
        )
        for dataset in of_line[0].evaluations
    ]
    _tell_apart(lines)
    ordered = []
    for row in _grouped(lines, lambda line: (line.dataset, row_of(line.runs[0].config))):
        baseline = _find_baseline(row)
        for line in row:
            line.baseline = baseline
        ordered += sorted(row, key=lambda line: line is not line.baseline)
    return Table(ordered, problems)


def _choose(runs: Iterable[Run]) -> tuple[list[Run], list[tuple[str, str]]]:
    chosen, problems = [], []
    first_with: dict[str, Run] = {}
    for run in runs:
        if run.problem:
            problems.append((run.path, run.problem))
            continue
        seed = run.config.get("SEED", -1)
        first = first_with.setdefault(_comparable((_experiment(run), seed)), run)
        if first is run or seed < 0:
            chosen.append(run)
        else:
            problems.append((run.path, f"the same config and seed as {first.path}"))
    return chosen, problems


def _experiment(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    return row_of(run.config), norm_details(run.config)


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _grouped(items: Iterable[T], key: Callable[[T], Any]) -> list[list[T]]:
    """Groups of items with equal keys, in the order of their first members."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(_comparable(key(item)), []).append(item)
    return list(groups.values())


def _make_line(runs: list[Run], dataset: str) -> Line:
    config = runs[0].config
    aps = pd.DataFrame([run.final(dataset) for run in runs]).dropna(axis=1)
    return Line(f"{config_label(config)}, {dataset}", norm_label(config), dataset, runs, aps)


def _tell_apart(lines: list[Line]) -> None:
    """Adds to labels that would stand for two rows, or two lines of a row, what differs."""
    for same in _grouped(lines, lambda line: (line.config, line.iterations)):
        configs = [row_of(line.runs[0].config) for line in same]
        for line, difference in zip(same, differences(configs), strict=True):
            line.config += f", {difference}" if difference else ""
    for same in _grouped(lines, lambda line: (line.config, line.iterations, line.norm)):
        details = [norm_details(line.runs[0].config) for line in same]
        for line, difference in zip(same, differences(details), strict=True):
            line.norm += f", {difference}" if difference else ""


def _find_baseline(row: list[Line]) -> Line | None:
    for norm in _BASELINES:
        found = []
        for line in row:
            of_part = norms(line.runs[0].config)
            if of_part.pop("backbone") == norm and set(of_part.values()) <= {norm, ""}:
                found.append((sum(map(bool, of_part.values())), line))
        if found:
            return min(found, key=lambda pair: pair[0])[1]
    return None
