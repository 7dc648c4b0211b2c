"""Curves of runs: AP and training loss against iterations, a line a norm, its seeds' spread."""

import os
from collections.abc import Sequence

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UsageError
from .run import METRICS
from .table import Line

__all__ = ["save_plot"]

_DRAWN = ("bbox/AP", "segm/AP")


def save_plot(lines: Sequence[Line], path: str) -> None:
    """
    Saves a picture with a row of panels for each config and dataset: box AP, mask AP where there
    is any, and the training loss. Bars and bands are one standard deviation over the seeds to
    either side; where the seeds' iterations differ, those that all have are shown.

    Args:
        lines: from `make_table`; at least one.
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.

    Raises:
        UsageError: matplotlib doesn't write such a picture.
    """
    rows: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        rows.setdefault((line.config, line.iterations), []).append(line)
    metrics = [metric for metric in _DRAWN if any(metric in line.aps for line in lines)]
    names = [*map(METRICS.get, metrics), "training loss, smoothed"]
    colors = {norm: f"C{i}" for i, norm in enumerate(dict.fromkeys(line.norm for line in lines))}
    with style.context("tableau-colorblind10"):
        size = (5.5 * len(names), 3.8 * len(rows))  # inches
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(len(rows), len(names), squeeze=False)
        for panels, (config, iterations), row in zip(grid, rows, rows.values(), strict=True):
            panels[0].set_title(f"{config}: {iterations} iterations", loc="left", weight="bold")
            lengths = {len(run.evaluations[line.dataset]) for line in row for run in line.runs}
            for line in row:
                for panel, metric in zip(panels, metrics, strict=False):
                    if metric in line.aps:
                        _draw_ap(panel, line, metric, colors[line.norm], at_end=lengths == {1})
                _draw_loss(panels[-1], line, colors[line.norm])
            for panel, name in zip(panels, names, strict=True):
                panel.set(ylabel=name)
                panel.grid(alpha=0.3)
            panels[-1].legend(fontsize="small")
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            figure.savefig(path, dpi=120)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error


def _draw_ap(panel: Axes, line: Line, metric: str, color: str, at_end: bool) -> None:
    """Against iterations, or where all runs were evaluated at the end alone, against norms."""
    evaluations = [run.evaluations[line.dataset] for run in line.runs]
    aps = [pd.Series({i: aps[metric] for i, aps in of_run.items()}) for of_run in evaluations]
    aps = pd.concat(aps, axis=1).dropna().sort_index()
    spread = aps.std(axis=1) if len(line.runs) > 1 else None
    x = [line.norm.replace(", ", "\n")] if at_end else aps.index
    panel.errorbar(x, aps.mean(axis=1), spread, color=color, fmt="o-", ms=4, capsize=3)
    panel.set_xlabel("at the end" if at_end else "iteration")
    panel.margins(x=0.3 if at_end else 0.02)
    if at_end:
        panel.tick_params("x", labelsize="x-small", labelrotation=20)


def _draw_loss(panel: Axes, line: Line, color: str) -> None:
    """
    Smoothed by a centred mean over a fortieth of the points, over fewer towards the ends; without
    the first tenth, which would leave no room for the others.
    """
    losses = pd.concat([pd.Series(run.losses) for run in line.runs], axis=1).dropna()
    losses = losses.rolling(2 * (len(losses) // 80) + 1, center=True, min_periods=1).mean()
    losses = losses.iloc[len(losses) // 10 :]
    mean, spread = losses.mean(axis=1), losses.std(axis=1)
    panel.plot(mean.index, mean, color=color, label=line.norm)
    panel.fill_between(mean.index, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
    panel.set_xlabel("iteration")
