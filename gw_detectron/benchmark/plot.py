"""Ratios as bars, to either side of what they are relative to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

__all__ = ["Panel", "save_bars"]

# Distinct to colour-blind eyes too, and on grey paper
_COLORS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")
_PANEL_WIDTH, _BAR_HEIGHT, _MARGINS = 4.0, 0.13, 1.4  # inches
_SHORTEST = 1 / 64  # what is less, such as what FrozenBN saves, would leave no room for the others
_LEAST_RATIO = 1.25  # on the axis, or a hundredth would look like a difference


@dataclass(frozen=True)
class Panel:
    """
    Attributes:
        title: what is compared.
        names: of what is compared, the first being what the others are drawn relative to.
        groups: (label, an amount for each name, None where it is not known).
    """

    title: str
    names: Sequence[str]
    groups: Sequence[tuple[str, Sequence[float | None]]]


def save_bars(panels: Sequence[Panel], file: str | BinaryIO) -> None:
    """
    Saves a PNG with the panels in a row: a bar for every name but the first in each group, on a
    logarithmic axis, from 1 to the left where it takes less and to the right where more, with its
    number at the end.

    Args:
        panels: at least one, all with the same names and groups.
    """
    bars = len(panels[0].groups) * len(panels[0].names)
    figure = Figure((_PANEL_WIDTH * len(panels), _MARGINS + _BAR_HEIGHT * bars), dpi=120)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw(axes, panel)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, format="png")


def _draw(axes: Axes, panel: Panel) -> None:
    reference, *names = panel.names
    thickness = 1 / (len(names) + 1)
    for index, name in enumerate(names):
        ratios = [_ratio(amounts[index + 1], amounts[0]) for _, amounts in panel.groups]
        shift = (index - (len(names) - 1) / 2) * thickness
        bars = axes.barh(
            [number + shift for number in range(len(ratios))],
            [0 if math.isnan(ratio) else max(ratio, _SHORTEST) - 1 for ratio in ratios],
            thickness,
            left=1,
            label=name,
            color=_COLORS[index % len(_COLORS)],
        )
        labels = ["not measured" if math.isnan(ratio) else f"{ratio:.3g}" for ratio in ratios]
        axes.bar_label(bars, labels, padding=2, fontsize=6)
    axes.set_title(panel.title, loc="left", fontsize="medium", fontweight="bold")
    axes.set_xlabel(f"times {reference}")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 1 / _LEAST_RATIO), max(high, _LEAST_RATIO))
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize="small")
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(panel.groups)), [label for label, _ in panel.groups])
    axes.set_ylim(len(panel.groups) - 0.5, -0.5)


def _ratio(amount: float | None, reference: float | None) -> float:
    """NaN where either is not known."""
    return math.nan if amount is None or not reference else amount / reference
