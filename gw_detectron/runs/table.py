"""Runs as a table: seeds merged, each norm's gain over batch norm, the paper's figures beside."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..config import differences
from .experiment import config_label, norm_label, norms, row_of, weights_of
from .paper import paper_figures
from .run import Run

__all__ = ["Line", "Statistic", "Table", "make_table"]

_BOX, _MASK = "bbox/AP", "segm/AP"
_METRICS = {
    _BOX: "box AP",
    "bbox/AP50": "AP50",
    "bbox/AP75": "AP75",
    "bbox/APs": "APs",
    "bbox/APm": "APm",
    "bbox/APl": "APl",
    _MASK: "mask AP",
}
# What a gain is counted from: the first of these that a row has
_BASELINES = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN")


@dataclass(frozen=True)
class Statistic:
    """
    Attributes:
        deviation: the standard deviation of the sample, over count - 1; None for one value.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass
class Line:
    """
    One experiment on one dataset, over its seeds.

    Attributes:
        config, norm: labels; together with dataset and iterations no other line has the same.
        runs: one a seed.
        values: metric, e.g. "bbox/AP", -> over the runs; without those that a dataset can't have,
            such as APs where nothing is small.
        baseline: the line of the same row that gains are counted from; may be this one, or None.
        paper: metric -> the paper's figure, where this is one of its rows.
    """

    config: str
    norm: str
    dataset: str
    iterations: int
    runs: list[Run]
    values: dict[str, Statistic]
    baseline: "Line | None" = None
    paper: dict[str, float] = field(default_factory=dict)

    def gain(self, metric: str) -> float | None:
        """In AP over the baseline; None where there is nothing to compare."""
        if self.baseline in (None, self) or metric not in self.values:
            return None
        theirs = self.baseline.values.get(metric)
        return self.values[metric].mean - theirs.mean if theirs else None

    def beyond_paper(self, metric: str) -> float | None:
        if metric not in self.paper or metric not in self.values:
            return None
        return self.values[metric].mean - self.paper[metric]


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
        parts = []
        if self.lines:
            columns = self._columns(_MARKDOWN_COLUMNS)
            rows = [[text(line) or "-" for _, text in columns] for line in self.lines]
            parts.append(_markdown([name for name, _ in columns], rows))
            parts += self._legend()
        else:
            parts.append("No run has a result yet.")
        parts += self.problem_lines()
        return "\n".join(parts) + "\n"

    def csv(self) -> str:
        """A header and the lines, a number a cell, unrounded; without the runs in problems."""
        columns = self._columns(_CSV_COLUMNS)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for name, _ in columns])
        writer.writerows([value(line) for _, value in columns] for line in self.lines)
        return out.getvalue()

    def problem_lines(self) -> list[str]:
        """One a run that is not in a line, under a heading; [] where there is none."""
        if not self.problems:
            return []
        return ["", "Not in the table:", ""] + [f"- {path}: {why}" for path, why in self.problems]

    def _columns(self, columns: "Sequence[_Column]") -> "list[_Column]":
        return [
            (name, cell)
            for name, cell in columns
            if name in _ALWAYS or any(cell(line) not in ("", None) for line in self.lines)
        ]

    def _legend(self) -> list[str]:
        notes = []
        if any(len(line.runs) > 1 for line in self.lines):
            notes.append("AP is the mean over the seeds ± their standard deviation (n - 1).")
        if any(line.gain(_BOX) is not None for line in self.lines):
            notes.append("Gains are over the FrozenBN (else BN) run of the same config.")
        if any(line.paper for line in self.lines):
            notes.append("Difference: AP minus the paper's.")
        return ["", " ".join(notes)] if notes else []


def make_table(runs: Iterable[Run]) -> Table:
    """
    Runs that differ in nothing but the seed become one line. Of several with one seed the first
    counts, and lines are in the order of their first runs, row by row, the baseline first.
    """
    finished, problems = _choose(runs)
    lines = []
    for group in _grouped(finished, lambda run: (row_of(run.config), _norm_details(run))):
        for dataset in group[0].evaluations:
            lines.append(_make_line(group, dataset))
    _tell_apart(lines)
    ordered = []
    for row in _grouped(lines, lambda line: (line.dataset, row_of(line.runs[0].config))):
        baseline = _find_baseline(row)
        for line in row:
            line.baseline = baseline
        ordered += sorted(row, key=lambda line: line is not line.baseline)
    return Table(ordered, problems)


def _choose(runs: Iterable[Run]) -> tuple[list[Run], list[tuple[str, str]]]:
    chosen: list[Run] = []
    problems = []
    first_with: dict[str, str] = {}
    for run in runs:
        seed = run.config.get("SEED", -1)
        key = repr((_comparable(row_of(run.config)), _comparable(_norm_details(run)), seed))
        if run.problem:
            problems.append((run.path, run.problem))
        elif seed >= 0 and key in first_with:
            problems.append((run.path, f"the same config and seed as {first_with[key]}"))
        else:
            first_with[key] = run.path
            chosen.append(run)
    return chosen, problems


def _norm_details(run: Run) -> dict[str, object]:
    return norms(run.config) | weights_of(run.config)


def _grouped(items: Iterable, key: Callable) -> list[list]:
    """Groups of items with equal keys, in the order of their first members."""
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(repr(_comparable(key(item))), []).append(item)
    return list(groups.values())


def _comparable(value):
    if isinstance(value, dict):
        return sorted((str(k), repr(v)) for k, v in value.items())
    return [_comparable(v) for v in value] if isinstance(value, tuple) else value


def _make_line(runs: list[Run], dataset: str) -> Line:
    config = runs[0].config
    values = {}
    for metric in _METRICS:
        of_runs = [run.final(dataset).get(metric, math.nan) for run in runs]
        if all(map(math.isfinite, of_runs)):
            values[metric] = Statistic.of(of_runs)
    label = f"{config_label(config)}, {dataset}"
    iterations = config["SOLVER.MAX_ITER"]
    paper = paper_figures(config, dataset)
    return Line(label, norm_label(config), dataset, iterations, runs, values, paper=paper)


def _tell_apart(lines: list[Line]) -> None:
    """Adds to labels that would stand for two rows, or two lines of a row, what differs."""
    for same in _grouped(lines, lambda line: (line.config, line.iterations)):
        configs = [row_of(line.runs[0].config) for line in same]
        for line, difference in zip(same, differences(configs), strict=True):
            line.config += f", {difference}" if difference else ""
    for same in _grouped(lines, lambda line: (line.config, line.iterations, line.norm)):
        details = [_norm_details(line.runs[0]) for line in same]
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


# ---- Columns: a name, and a line's cell in it -------------------------------------------------

_Column = tuple[str, Callable[[Line], object]]
_ALWAYS = ("config", "norm", "seeds", "iterations", "box AP", "gain")


def _metric_cell(metric: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        value = line.values.get(metric)
        if value is None:
            return ""
        spread = "" if value.deviation is None else f" ± {value.deviation:.2f}"
        return f"{value.mean:.2f}{spread}"

    return cell


def _gain_cell(metric: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        if line.baseline is None:
            return "none" if metric == _BOX else ""
        return "baseline" if line.baseline is line else _signed(line.gain(metric))

    return cell


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _paper_columns(metric: str, name: str) -> list[_Column]:
    def figure(line: Line) -> str:
        return f"{line.paper[metric]:.2f}" if metric in line.paper else ""

    difference = "difference" if metric == _BOX else "difference (mask)"
    return [
        (f"paper's {name}", figure),
        (difference, lambda line: _signed(line.beyond_paper(metric))),
    ]


_MARKDOWN_COLUMNS: list[_Column] = [
    ("config", lambda line: line.config),
    ("norm", lambda line: line.norm),
    ("seeds", lambda line: str(len(line.runs))),
    ("iterations", lambda line: str(line.iterations)),
    *((name, _metric_cell(metric)) for metric, name in _METRICS.items()),
    ("gain", _gain_cell(_BOX)),
    ("gain (mask)", lambda line: _signed(line.gain(_MASK))),
    *_paper_columns(_BOX, "box AP"),
    *_paper_columns(_MASK, "mask AP"),
]

_CSV_COLUMNS: list[_Column] = [
    *_MARKDOWN_COLUMNS[:2],
    ("dataset", lambda line: line.dataset),
    *_MARKDOWN_COLUMNS[2:4],
    *(
        column
        for metric, name in _METRICS.items()
        for column in (
            (name, lambda line, m=metric: line.values[m].mean if m in line.values else None),
            (
                f"{name} std",
                lambda line, m=metric: line.values[m].deviation if m in line.values else None,
            ),
        )
    ),
    ("gain", lambda line: line.gain(_BOX)),
    ("gain (mask)", lambda line: line.gain(_MASK)),
    ("gain over", lambda line: line.baseline.norm if line.baseline else None),
    ("paper's box AP", lambda line: line.paper.get(_BOX)),
    ("difference", lambda line: line.beyond_paper(_BOX)),
    ("paper's mask AP", lambda line: line.paper.get(_MASK)),
    ("difference (mask)", lambda line: line.beyond_paper(_MASK)),
]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    """Aligned, so that it reads in a terminal as it is; texts to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    left = [name in ("config", "norm") for name in header]

    def row(cells: Iterable[str]) -> str:
        padded = [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(cells, widths, left, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    ]
    return "\n".join([row(header), f"| {' | '.join(rule)} |", *map(row, rows)])
