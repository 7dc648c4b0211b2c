"""What diagnosed norms do, side by side: as a table with its legend, as CSV."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from tabulate import tabulate

from ..norms.diagnostics import STATISTICS, NormStatistics
from .diagnosis import Findings

__all__ = ["common_layers", "csv_report", "terminal_report"]

_LEGEND = """\
condition  largest / smallest eigenvalue of the covariance between the groups; above 1e13: the
           smallest is 0 but for rounding
rank       effective rank, exp of the entropy of the eigenvalues' shares: from 1 to the groups
share      of the variance that the first direction has
variance   mean of the groups
from I     |covariance - I| / sqrt(groups), of Frobenius norms
from root  |W - S^(-1/2)| / |S^(-1/2)|: what GW's iterations have left undone
Each of a sample, before and after the norm (its affine left out), then the mean over the samples,
of condition the geometric one."""


def terminal_report(findings: Findings) -> str:
    """The norms in a table, a line a detector, their medians, and what the columns mean."""
    layers: dict[str, list[tuple[str, NormStatistics]]] = {}
    for diagnosis in findings.diagnoses:
        for norm in diagnosis.norms:
            layers.setdefault(norm.name, []).append((diagnosis.label, norm))
    rows = []
    for name, of_runs in layers.items():
        for index, (label, norm) in enumerate(of_runs):
            rows.append([name if index == 0 else "", label, norm.kind, *_cells([norm])])
    common = common_layers(findings)
    for index, diagnosis in enumerate(findings.diagnoses):
        norms = [norm for norm in diagnosis.norms if norm.name in common]
        name = f"median of {len(common)}" if index == 0 else ""
        rows.append([name, diagnosis.label, "", *_cells(norms)])
    table = tabulate(
        rows,
        ["layer", "run", "norm", *(title for title, _ in _COLUMNS)],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left"] * 3 + ["right"] * len(_COLUMNS),
    )
    heading = (
        f"{findings.images} images of {findings.dataset}, {findings.groups} groups of channels "
        "in each norm (fewer channels: one each)\n"
        + "\n".join(f"  {diagnosis.label}: {diagnosis.weights}" for diagnosis in findings.diagnoses)
    )
    return "\n\n".join([heading, table, _LEGEND, *_warnings(findings)]) + "\n"


def common_layers(findings: Findings) -> list[str]:
    """The norms that all the detectors have, by name."""
    of_others = [{norm.name for norm in d.norms} for d in findings.diagnoses[1:]]
    first = [norm.name for norm in findings.diagnoses[0].norms]
    return [name for name in first if all(name in names for names in of_others)]


def _warnings(findings: Findings) -> list[str]:
    lines = []
    for diagnosis in findings.diagnoses:
        left_out = sum(norm.left_out for norm in diagnosis.norms)
        if left_out:
            norms = [norm.name for norm in diagnosis.norms if norm.left_out]
            lines.append(
                f"{diagnosis.label}: {left_out} samples are constant or not finite, and left out, "
                f"in {', '.join(norms[:5])}{', ...' if len(norms) > 5 else ''}"
            )
    return ["\n".join(lines)] if lines else []


_Value = Callable[[NormStatistics], float]

# Title, and what of a norm stands under it: a value, or one before and one after
_COLUMNS: list[tuple[str, tuple[_Value, ...]]] = [
    ("condition", (lambda n: n.before["condition"], lambda n: n.after["condition"])),
    ("rank", (lambda n: n.before["effective_rank"], lambda n: n.after["effective_rank"])),
    ("share", (lambda n: n.before["first_share"], lambda n: n.after["first_share"])),
    ("variance", (lambda n: n.before["variance"], lambda n: n.after["variance"])),
    ("from I", (lambda n: n.after["distance"],)),
    ("from root", (lambda n: n.root_error,)),
]


def _cells(norms: Sequence[NormStatistics]) -> list[str]:
    """The medians over the norms."""
    return [
        " → ".join(f"{_short(_median(map(value, norms))):>5}" for value in values)
        for _, values in _COLUMNS
    ]


def _median(values: Iterable[float]) -> float:
    """Of those that are not nan; nan if all are."""
    values = [value for value in values if not math.isnan(value)]
    return statistics.median(values) if values else math.nan


def _short(value: float) -> str:
    """In about five characters, three digits."""
    if math.isnan(value):
        return "-"
    if 1 <= value < 100:
        return f"{value:#.3g}"
    if 100 <= value < 99999:
        return f"{value:.0f}"
    return f"{value:.2f}" if 0.01 <= value < 1 else f"{value:.0e}"


def csv_report(findings: Findings) -> str:
    """A header and a line for each norm of each detector, a number a cell, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    places = [f"{statistic} {place}" for place in ("before", "after") for statistic in STATISTICS]
    writer.writerow(
        ["run", "weights", "layer", "norm", "channels", "groups", "values a group", "samples"]
        + ["left out", *places, "root error"]
    )
    for diagnosis in findings.diagnoses:
        for norm in diagnosis.norms:
            numbers = [place[name] for place in (norm.before, norm.after) for name in STATISTICS]
            writer.writerow(
                [diagnosis.label, diagnosis.weights, norm.name, norm.kind, norm.channels]
                + [norm.groups, norm.values, norm.samples, norm.left_out]
                + ["" if math.isnan(n) else n for n in (*numbers, norm.root_error)]
            )
    return out.getvalue()
