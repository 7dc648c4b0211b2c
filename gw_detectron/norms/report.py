"""What the norms of a model take, whiten and cost: as a table with totals and advice, CSV, plot."""

import math
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from tabulate import tabulate

from ..errors import UsageError
from .advice import FINE_PART, notes

__all__ = ["save_csv", "save_share_plot", "terminal_report"]

_COLORS = {"tight": "\033[33m", "over the limit": "\033[31m"}
_RESET = "\033[0m"
_LEFT = ("layer", "norm", "verdict", "suggestion")


def _percent(value: float) -> str:
    """Two digits below 10 %, whole above."""
    return f"{100 * value:.2g}%" if value < 0.095 else f"{value:.0%}"


# How a column's values are written, unless as they are
_TEXT = {
    **dict.fromkeys(("share", "1/10", "1/g", "1/10g"), _percent),
    **dict.fromkeys(("+GFLOPs", "+MB"), "{:.2f}".format),
    "limit": math.floor,
}


def terminal_report(rows: Sequence[dict[str, Any]], flops: int, in_color: bool) -> str:
    """
    The norms in a table, totals, and notes on what should be changed.

    Args:
        rows, flops: from :func:`analyze`.
        in_color: mark tight layers yellow and those over the limit red.
    """

    def text(column: str, value: Any) -> Any:
        if in_color and value in _COLORS:
            return f"{_COLORS[value]}{value}{_RESET}"
        return value if value is None else _TEXT.get(column, str)(value)

    columns = [column for column in rows[0] if column != "rescale"]
    table = tabulate(
        [[text(column, row[column]) for column in columns] for row in rows],
        columns,
        tablefmt="simple",
        disable_numparse=True,
        missingval="-",
        colalign=["left" if column in _LEFT else "right" for column in columns],
    )
    paragraphs = [textwrap.fill(p, 100, break_on_hyphens=False) for p in notes(rows)]
    return "\n\n".join([table, _totals(rows, flops), *paragraphs]) + "\n"


def _totals(rows: Sequence[dict[str, Any]], flops: int) -> str:
    kinds, verdicts = (Counter(row[column] for row in rows) for column in ("norm", "verdict"))
    of_kinds = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    of_verdicts = ", ".join(f"{verdicts[v]} {v}" for v in ("fine", "tight", "over the limit"))
    text = f"{len(rows)} norms: {of_kinds}. GN and GW: {of_verdicts}."
    if "GW" in kinds:
        gflops, mb = (sum(row[column] or 0 for row in rows) for column in ("+GFLOPs", "+MB"))
        text += (
            f"\nGW instead of GN, an image in training: {gflops:+.1f} GFLOPs forward to the "
            f"{flops / 1e9:.1f} of convolutions and linear layers ({1e9 * gflops / flops:+.1%}), "
            f"{mb:+.1f} MB."
        )
    return text


def save_csv(rows: Sequence[dict[str, Any]], path: str) -> None:
    """
    Writes a header and a line a norm, a number a cell, unrounded; empty where there is none.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        pd.DataFrame(rows, dtype=object).to_csv(path, index=False)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def save_share_plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """
    Saves a picture of the shares of freedom, a row a norm, in the order in which they run, those
    without constraints (FrozenBN) left out.

    Args:
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.

    Raises:
        UsageError: no norm has constraints.
    """
    table = pd.DataFrame([row for row in rows if row["constraints"]])
    if table.empty:
        raise UsageError(f"{path}: no norm imposes constraints, so there is nothing to draw")
    with style.context("seaborn-v0_8-colorblind"):
        figure = Figure((8, 1.3 + 0.17 * len(table)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for marker, (kind, of_kind) in zip("os^vD", table.groupby("norm"), strict=False):
            axes.plot(of_kind["share"], of_kind.index, marker, markersize=5, label=kind)
        axes.axvspan(1 / FINE_PART, 1, color="C4", alpha=0.25, label="tight", linewidth=0)
        axes.axvline(1, color="black", label="limit")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.set_xlim(right=max(2.0, 2 * table["share"].max()))
        axes.set_xlabel("share of freedom: constraints / values")
        axes.set_yticks(table.index, table["layer"], fontsize=7)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=8, frameon=False)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path, dpi=120)
