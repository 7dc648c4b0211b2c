"""The share of freedom that a model's norms take, by depth."""

import os
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..errors import UsageError
from .advice import FINE_PART
from .layers import NormLayer

__all__ = ["save_share_plot"]

# Distinct to colour-blind eyes too
_STYLES = {
    "GW": ("#D55E00", "o"),
    "GN": ("#0072B2", "s"),
    "BN": ("#009E73", "^"),
    "SyncBN": ("#009E73", "v"),
    "LN": ("#CC79A7", "D"),
}
_ROW, _MARGINS, _WIDTH = 0.17, 1.3, 8.0  # inches


def save_share_plot(layers: Sequence[NormLayer], path: str) -> None:
    """
    Saves a picture with a row a norm, in the order in which they run, those without constraints
    (FrozenBN) left out.

    Args:
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.

    Raises:
        UsageError: no norm has constraints.
    """
    layers = [layer for layer in layers if layer.constraints]
    if not layers:
        raise UsageError(f"{path}: no norm imposes constraints, so there is nothing to draw")
    figure = Figure((_WIDTH, _MARGINS + _ROW * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, (color, marker) in _STYLES.items():
        points = [(layer.share, row) for row, layer in enumerate(layers) if layer.kind == kind]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=color, markersize=5, label=kind)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.axvspan(1 / FINE_PART, 1, color="#E69F00", alpha=0.25, label="tight", linewidth=0)
    axes.axvline(1, color="black", label="limit")
    axes.set_xlim(right=max(2.0, *(2 * layer.share for layer in layers)))
    axes.set_xlabel("share of freedom: constraints / values")
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=8, frameon=False)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=120)
