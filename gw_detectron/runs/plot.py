"""Curves of runs: AP and training loss against iterations, a line a norm, a band over seeds."""

import os
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..errors import UsageError
from .table import Line

__all__ = ["require_plottable", "save_plot"]

_STYLES = (
    cycler(linestyle=["-", "--", ":", "-."])
    * style.library["seaborn-v0_8-colorblind"]["axes.prop_cycle"]
)
_NAMES = {"bbox/AP": "box AP", "segm/AP": "mask AP"}


def require_plottable(path: str) -> None:
    """Raises UsageError if save_plot could not write a picture of that name."""
    ending = os.path.splitext(path)[1].lstrip(".").lower()
    formats = FigureCanvasAgg.get_supported_filetypes()
    if ending not in formats:
        raise UsageError(f"{path}: a plot's file ends in one of .{', .'.join(sorted(formats))}")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory where a plot's file is expected")


def save_plot(lines: Sequence[Line], path: str) -> None:
    """
    Saves a picture with a row of panels for each config and dataset: box AP, mask AP where there
    is any, and the training loss. A band is one standard deviation over the seeds to either side.
    Where no run of a row was evaluated on the way, its AP panel shows the values at the end.

    Args:
        lines: from `make_table`; at least one.
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.
    """
    rows: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        rows.setdefault((line.config, line.dataset, line.iterations), []).append(line)
    metrics = [metric for metric in _NAMES if any(metric in line.aps for line in lines)]
    styles = dict(zip(dict.fromkeys(line.norm for line in lines), cycle(_STYLES), strict=False))

    size = (5.5 * (len(metrics) + 1), 3.8 * len(rows) + 0.24 * (len(styles) + 1))  # inches
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(metrics) + 1, squeeze=False)
    for panels, (config, _, iterations), row in zip(grid, rows, rows.values(), strict=True):
        panels[0].set_title(
            f"{config}: {iterations} iterations", loc="left", fontsize="medium", fontweight="bold"
        )
        for panel, metric in zip(panels, metrics, strict=False):
            _draw_ap(panel, [line for line in row if metric in line.aps], metric, styles)
        _draw_loss(panels[-1], row, styles)
    handles = {line.get_label(): line for panel in grid.flat for line in panel.get_lines()}
    figure.legend(
        handles=[handles[norm] for norm in styles if norm in handles],
        loc="outside lower center",
        frameon=False,
    )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_ap(panel: Axes, lines: list[Line], metric: str, styles: dict[str, Any]) -> None:
    if not lines:
        panel.set_axis_off()
    elif any(len(run.evaluations[line.dataset]) > 1 for line in lines for run in line.runs):
        for line in lines:
            of_runs = [run.evaluations[line.dataset] for run in line.runs]
            curves = [pd.Series({i: aps.get(metric) for i, aps in e.items()}) for e in of_runs]
            _draw_curve(panel, line, curves, marker="o", **styles[line.norm])
        _label_iterations(panel, _NAMES[metric], lines[0].iterations)
    else:
        _draw_final(panel, lines, metric, styles)


def _draw_final(panel: Axes, lines: list[Line], metric: str, styles: dict[str, Any]) -> None:
    """A dot a norm, with one standard deviation: curves of one point would overlap."""
    for height, line in enumerate(reversed(lines)):
        color, mean, spread = styles[line.norm]["color"], *line.aps[metric].agg(["mean", "std"])
        panel.errorbar(mean, height, xerr=spread, fmt="o", color=color, capsize=4)
        place = {"textcoords": "offset points", "ha": "center"}
        panel.annotate(f"{mean:.1f}", (mean, height), (0, 7), **place)
    panel.set_ylim(-0.6, len(lines) - 0.4)
    names = [line.norm if metric == "bbox/AP" else "" for line in reversed(lines)]
    panel.set_yticks(range(len(lines)), names, fontsize="small")
    panel.margins(x=0.15)
    panel.set_xlabel(f"{_NAMES[metric]} at the end")
    panel.grid(axis="x", alpha=0.3)


def _draw_loss(panel: Axes, lines: list[Line], styles: dict[str, Any]) -> None:
    """Smoothed by a centred mean over a fortieth of the points, over fewer towards the ends."""
    highest = 0.0
    for line in lines:
        curves = [pd.Series(run.losses) for run in line.runs]
        curves = [c.rolling(2 * (len(c) // 80) + 1, center=True, min_periods=1) for c in curves]
        mean = _draw_curve(panel, line, [c.mean() for c in curves], **styles[line.norm])
        highest = max(highest, mean.iloc[len(mean) // 10 :].max())
    if highest > 0:
        panel.set_ylim(top=1.1 * highest)  # the first losses would leave no room for the others
    _label_iterations(panel, "training loss, smoothed", lines[0].iterations)


def _draw_curve(panel: Axes, line: Line, curves: Sequence[pd.Series], **shown: Any) -> pd.Series:
    """
    Draws the mean over the runs where all have values, and returns it. A resumed run has its points
    elsewhere than the others, so that what lies between is interpolated.
    """
    aligned = pd.concat([curve[np.isfinite(curve.astype(float))] for curve in curves], axis=1)
    aligned = aligned.sort_index().interpolate(method="index", limit_area="inside").dropna()
    mean = aligned.mean(axis=1)
    shown = {"marker": "o" if len(mean) == 1 else ""} | shown
    panel.plot(mean.index, mean, markersize=4, label=line.norm, **shown)
    if aligned.shape[1] > 1:
        spread = aligned.std(axis=1)
        low, high = mean - spread, mean + spread
        panel.fill_between(mean.index, low, high, color=shown["color"], alpha=0.18, linewidth=0)
    return mean


def _label_iterations(panel: Axes, name: str, iterations: int) -> None:
    panel.set_xlabel("iteration")
    panel.set_xlim(0, 1.02 * iterations)
    panel.set_ylabel(name)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(alpha=0.3)
