"""Curves of runs: AP and training loss against iterations, a line a norm, a band over seeds."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ..errors import UsageError
from .run import Run
from .table import Line

__all__ = ["require_plottable", "save_plot"]

# Distinct to colour-blind eyes too, and on grey paper
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_DASHES = ("-", "--", ":", "-.")
_PANEL_SIZE = (5.5, 3.8)  # inches
_LEAST_AP_RANGE = 2.0  # or a hundredth of AP would look like a difference
_LABEL_HEIGHT = 0.24  # inches a norm, under the panels


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
    metrics = ["bbox/AP"] + ["segm/AP"] * any("segm/AP" in line.values for line in lines)
    styles = _styles([line.norm for line in lines])

    width, height = _PANEL_SIZE
    legend_height = _LABEL_HEIGHT * (len(styles) + 1)
    figure = Figure((width * (len(metrics) + 1), height * len(rows) + legend_height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1))
    bottom, top = figure.subfigures(2, 1, height_ratios=(height * len(rows), legend_height))
    panels = bottom.subplots(len(rows), len(metrics) + 1, squeeze=False)
    for row_panels, (config, _, iterations), row in zip(panels, rows, rows.values(), strict=True):
        for panel, metric in zip(row_panels, metrics, strict=False):
            of_metric = [line for line in row if metric in line.values]
            if of_metric:
                _draw_ap(panel, of_metric, metric, styles)
            else:
                panel.set_axis_off()
        _draw_loss(row_panels[-1], row, styles)
        row_panels[0].set_title(
            f"{config}: {iterations} iterations", loc="left", fontsize="medium", fontweight="bold"
        )
    handles = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    known = [handles[norm] for norm in styles if norm in handles]
    top.legend(known, [h.get_label() for h in known], loc="upper center", frameon=False)

    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=120)


def _styles(norms: Sequence[str]) -> dict[str, dict[str, str]]:
    return {
        norm: {
            "color": _COLORS[index % len(_COLORS)],
            "linestyle": _DASHES[index // len(_COLORS) % len(_DASHES)],
        }
        for index, norm in enumerate(dict.fromkeys(norms))
    }


# ---- Panels ----------------------------------------------------------------------------------


def _draw_ap(
    panel: Axes, lines: Sequence[Line], metric: str, styles: dict[str, dict[str, str]]
) -> None:
    name = "box AP" if metric == "bbox/AP" else "mask AP"

    def ap_of(line: Line) -> Callable[[Run], dict[int, float]]:
        return lambda run: {
            iteration: values.get(metric, np.nan)
            for iteration, values in run.evaluations[line.dataset].items()
        }

    if any(len(run.evaluations[line.dataset]) > 1 for line in lines for run in line.runs):
        for line in lines:
            _draw_curve(panel, line, ap_of(line), styles[line.norm], marker="o")
        _label_iterations(panel, name, lines[0].iterations)
    else:
        _draw_final(panel, lines, metric, styles)
        panel.set_xlabel(f"{name} at the end")


def _draw_final(
    panel: Axes, lines: Sequence[Line], metric: str, styles: dict[str, dict[str, str]]
) -> None:
    """A dot a norm, the seeds as small ones around it: curves of one point would overlap."""
    for height, line in enumerate(reversed(lines)):
        color = styles[line.norm]["color"]
        value = line.values[metric]
        seeds = [run.final(line.dataset)[metric] for run in line.runs]
        panel.errorbar(value.mean, height, xerr=value.deviation, fmt="o", color=color, capsize=4)
        if len(seeds) > 1:
            panel.plot(seeds, [height] * len(seeds), "|", color=color, alpha=0.6)
        text = f"{value.mean:.1f}"
        panel.annotate(text, (value.mean, height), (0, 7), textcoords="offset points", ha="center")
    panel.set_yticks(range(len(lines)), [_wrapped(line.norm) for line in reversed(lines)])
    panel.set_ylim(-0.6, len(lines) - 0.4)
    panel.margins(x=0.15)
    low, high = panel.get_xlim()
    widen = max(0.0, _LEAST_AP_RANGE - (high - low)) / 2
    panel.set_xlim(low - widen, high + widen)
    panel.grid(axis="x", alpha=0.3)


def _wrapped(norm: str) -> str:
    """Long norms break where they name another part of the model."""
    return norm if len(norm) <= 24 else norm.replace(" over ", "\nover ").replace("), ", "),\n")


def _draw_loss(panel: Axes, lines: Sequence[Line], styles: dict[str, dict[str, str]]) -> None:
    highest = 0.0
    for line in lines:
        mean = _draw_curve(panel, line, lambda run: _smoothed(run.losses), styles[line.norm])
        if len(mean):
            highest = max(highest, mean[len(mean) // 10 :].max())
    if highest > 0:
        panel.set_ylim(top=1.1 * highest)  # the first losses would leave no room for the others
    _label_iterations(panel, "training loss, smoothed", lines[0].iterations)


def _draw_curve(
    panel: Axes,
    line: Line,
    curve_of: Callable[[Run], dict[int, float]],
    style: dict[str, str],
    marker: str = "",
) -> np.ndarray:
    """Returns the mean over the runs, a value an iteration."""
    iterations, values = _aligned([curve_of(run) for run in line.runs])
    if not len(iterations):
        return iterations
    mean = values.mean(axis=0)
    marker = marker or ("o" if len(iterations) == 1 else "")
    panel.plot(iterations, mean, marker=marker, markersize=4, label=line.norm, **style)
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        panel.fill_between(
            iterations, mean - spread, mean + spread, color=style["color"], alpha=0.18, linewidth=0
        )
    return mean


def _label_iterations(panel: Axes, name: str, iterations: int) -> None:
    panel.set_xlabel("iteration")
    panel.set_xlim(0, 1.02 * iterations)
    panel.set_ylabel(name)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(alpha=0.3)


# ---- Curves ----------------------------------------------------------------------------------


def _aligned(curves: Sequence[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """
    Curves at common iterations: where all of them are defined, at any one's points. A resumed run
    has its points elsewhere than the others, so that what lies between is interpolated.

    Returns:
        (K,) iterations and (len(curves), K) values; K = 0 if some curve has no finite point.
    """
    finite = [{i: v for i, v in sorted(c.items()) if np.isfinite(v)} for c in curves]
    if not all(finite):
        return np.empty(0), np.empty((len(curves), 0))
    start, end = max(min(c) for c in finite), min(max(c) for c in finite)
    grid = np.array(sorted({i for c in finite for i in c if start <= i <= end}))
    return grid, np.array([np.interp(grid, list(c), list(c.values())) for c in finite])


def _smoothed(losses: dict[int, float]) -> dict[int, float]:
    """A centred mean over a fortieth of the points, over fewer towards the ends."""
    values = np.array(list(losses.values()))
    reach = len(values) // 80
    return {
        iteration: float(values[max(0, at - reach) : at + reach + 1].mean())
        for at, iteration in enumerate(losses)
    }
