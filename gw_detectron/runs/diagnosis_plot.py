"""What diagnosed norms do, by depth: a panel a statistic, a colour a detector."""

import math
from collections.abc import Callable
from itertools import cycle

from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..norms.diagnostics import NormStatistics
from .diagnosis import Findings

__all__ = ["save_depth_plot"]

_Value = Callable[[NormStatistics], float]

# Title, value before the norm (None: of no interest), value after it, whether on a log scale
_PANELS: list[tuple[str, _Value | None, _Value, bool]] = [
    ("condition number", lambda n: n.before["condition"], lambda n: n.after["condition"], True),
    (
        "effective rank",
        lambda n: n.before["effective_rank"],
        lambda n: n.after["effective_rank"],
        False,
    ),
    (
        "share of the first direction",
        lambda n: n.before["first_share"],
        lambda n: n.after["first_share"],
        False,
    ),
    ("mean variance after the norm", None, lambda n: n.after["variance"], False),
    ("distance from I after the norm", None, lambda n: n.after["distance"], False),
    ("distance of W from $\\Sigma^{-1/2}$", None, lambda n: n.root_error, False),
]
_BEFORE = ":"
_STYLES = cycler(marker=".x^") * style.library["seaborn-v0_8-colorblind"]["axes.prop_cycle"]
_COLUMNS = 3
_PANEL_SIZE = (4.6, 2.6)  # inches
_MOST_NAMES = 60  # that are legible under a panel


def save_depth_plot(findings: Findings, path: str) -> None:
    """
    Saves a picture with the norms of all detectors from left to right, in the order in which an
    image meets them.

    Args:
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.
    """
    names = list(dict.fromkeys(norm.name for d in findings.diagnoses for norm in d.norms))
    panels = [panel for panel in _PANELS if _has_values(findings, panel[2])]
    num_rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(
        (_COLUMNS * _PANEL_SIZE[0], num_rows * _PANEL_SIZE[1] + 2), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, _COLUMNS, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, findings, names, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _name_layers(grid.flat[max(0, len(panels) - _COLUMNS) : len(panels)], names)
    handles, _ = grid.flat[0].get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle=_BEFORE, color="black", label="before the norm"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=80)


def _has_values(findings: Findings, value: _Value) -> bool:
    return any(not math.isnan(value(norm)) for d in findings.diagnoses for norm in d.norms)


def _draw(
    axes: Axes, findings: Findings, names: list[str], panel: tuple[str, _Value | None, _Value, bool]
) -> None:
    title, before, after, is_log = panel
    axes.set_title(title, fontsize="medium")
    for diagnosis, shown in zip(findings.diagnoses, cycle(_STYLES), strict=False):
        norms = {norm.name: norm for norm in diagnosis.norms}
        axes.plot(_along(names, norms, after), **shown, markersize=5, label=diagnosis.label)
        if before:
            axes.plot(_along(names, norms, before), _BEFORE, color=shown["color"])
    if is_log:
        axes.set_yscale("log")
    axes.set_xticks(range(len(names)), [])
    axes.grid(alpha=0.3)


def _along(names: list[str], norms: dict[str, NormStatistics], value: _Value) -> list[float]:
    """nan where there is no such norm, which leaves a gap."""
    return [value(norms[name]) if name in norms else math.nan for name in names]


def _name_layers(panels: list[Axes], names: list[str]) -> None:
    step = math.ceil(len(names) / _MOST_NAMES)
    short = [name.replace("backbone.", "").replace("bottom_up.", "") for name in names[::step]]
    for axes in panels:
        axes.set_xticks(range(0, len(names), step), short, rotation=90, fontsize=6)
