"""What the norms of a model take, whiten and cost: as a table with totals and advice, as CSV."""

import csv
import math
import os
import textwrap
from collections import Counter
from collections.abc import Callable

from tabulate import tabulate

from ..errors import UsageError
from .advice import notes, suggested_groups, suggested_iterations, verdict
from .convergence import missing_variance
from .layers import NormLayer
from .trace import Trace

__all__ = ["save_csv", "terminal_report"]

_COLORS = {"tight": "\033[33m", "over the limit": "\033[31m"}
_RESET = "\033[0m"


def terminal_report(trace: Trace, in_color: bool) -> str:
    """
    The norms in a table, totals, and notes on what should be changed.

    Args:
        in_color: mark tight layers yellow and those over the limit red.
    """
    rows = [[text(layer) for _, text in _TERMINAL_COLUMNS] for layer in trace.layers]
    if in_color:
        rows = [[_painted(cell) for cell in row] for row in rows]
    names = [name for name, _ in _TERMINAL_COLUMNS]
    table = tabulate(
        rows,
        names,
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left" if name in _LEFT else "right" for name in names],
    )
    paragraphs = [textwrap.fill(p, 100, break_on_hyphens=False) for p in notes(trace.layers)]
    return "\n\n".join([table, _totals(trace), *paragraphs]) + "\n"


def save_csv(trace: Trace, path: str) -> None:
    """
    Writes a header and a line a norm, a number a cell, unrounded; empty where there is none.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([name for name, _ in _CSV_COLUMNS])
            writer.writerows([value(layer) for _, value in _CSV_COLUMNS] for layer in trace.layers)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _totals(trace: Trace) -> str:
    kinds = Counter(layer.kind for layer in trace.layers)
    verdicts = Counter(map(verdict, trace.layers))
    of_kinds = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    of_verdicts = ", ".join(
        f"{verdicts[name]} {name}" for name in ("fine", "tight", "over the limit")
    )
    lines = [f"{len(trace.layers)} norms: {of_kinds}. GN and GW: {of_verdicts}."]
    if kinds["GW"]:
        flops = sum(layer.samples * layer.extra_flops for layer in trace.layers)
        size = sum(layer.samples * layer.extra_bytes for layer in trace.layers)
        lines.append(
            f"GW instead of GN, an image in training: {flops / 1e9:+.1f} GFLOPs forward to the "
            f"{trace.flops / 1e9:.1f} of convolutions and linear layers "
            f"({flops / trace.flops:+.1%}), {size / 1e6:+.1f} MB."
        )
    return "\n".join(lines)


def _painted(cell: str) -> str:
    return f"{_COLORS[cell]}{cell}{_RESET}" if cell in _COLORS else cell


# ---- Columns ---------------------------------------------------------------------------------


def _missing(layer: NormLayer, shares_of_g: Callable[[int], float]) -> float | None:
    """What GW leaves missing in a direction; 0 by eigendecomposition, None for other norms."""
    if layer.kind != "GW":
        return None
    if layer.iterations is None:
        return 0.0
    return max(0.0, missing_variance(shares_of_g(layer.num_groups), layer.iterations))


# Title in the terminal, name in CSV, and the direction's share of the trace
_DIRECTIONS: list[tuple[str, str, Callable[[int], float]]] = [
    ("1/10", "missing at 1/10", lambda g: 1 / 10),
    ("1/g", "missing at 1/g", lambda g: 1 / g),
    ("1/10g", "missing at 1/(10 g)", lambda g: 1 / (10 * g)),
]


def _dash(value: object) -> str:
    return "-" if value is None else str(value)


def _percent(value: float | None) -> str:
    """Two digits below 10 %, whole above."""
    if value is None:
        return "-"
    return f"{100 * value:.2g}%" if value < 0.095 else f"{value:.0%}"


def _size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size)) or "1"


def _sizes(layer: NormLayer) -> str:
    """The smallest size, and how often: of how many regions, or as one of how many calls."""
    if layer.regions is not None:
        return f"{layer.regions} of {_size(layer.smallest)}"
    calls = f"1 of {len(layer.sizes)}: " if len(layer.sizes) > 1 else ""
    return calls + _size(layer.smallest)


def _cost(value: float, unit: float) -> str:
    return f"{value / unit:.2f}" if value else "-"


def _suggestion(layer: NormLayer) -> str:
    """What differs from the layer."""
    g, t = suggested_groups(layer), suggested_iterations(layer)
    changes = [f"g={g}"] * (g != layer.num_groups) + [f"T={t}"] * (t != layer.iterations)
    return " ".join(changes)


_LEFT = ("layer", "norm", "verdict", "suggestion")

_TERMINAL_COLUMNS: list[tuple[str, Callable[[NormLayer], str]]] = [
    ("layer", lambda layer: layer.name),
    ("norm", lambda layer: layer.kind),
    ("C", lambda layer: str(layer.channels)),
    ("size", _sizes),
    ("g", lambda layer: _dash(layer.num_groups)),
    ("T", lambda layer: _dash(layer.iterations)),
    ("m", lambda layer: _dash(layer.group_values)),
    ("constraints", lambda layer: str(layer.constraints)),
    ("share", lambda layer: _percent(layer.share)),
    ("limit", lambda layer: "-" if layer.limit is None else str(math.floor(layer.limit))),
    ("max g", lambda layer: _dash(layer.largest_groups)),
    ("+GFLOPs", lambda layer: _cost(layer.samples * layer.extra_flops, 1e9)),
    ("+MB", lambda layer: _cost(layer.samples * layer.extra_bytes, 1e6)),
    *(
        (title, lambda layer, share=share: _percent(_missing(layer, share)))
        for title, _, share in _DIRECTIONS
    ),
    ("verdict", lambda layer: _dash(verdict(layer))),
    ("suggestion", _suggestion),
]

_CSV_COLUMNS: list[tuple[str, Callable[[NormLayer], object]]] = [
    ("layer", lambda layer: layer.name),
    ("norm", lambda layer: layer.kind),
    ("channels", lambda layer: layer.channels),
    ("sizes", lambda layer: " ".join(map(_size, layer.sizes))),
    ("regions an image", lambda layer: layer.regions),
    ("groups", lambda layer: layer.num_groups),
    ("iterations", lambda layer: layer.iterations),
    ("values a group", lambda layer: layer.group_values),
    ("values", lambda layer: layer.values),
    ("constraints", lambda layer: layer.constraints),
    ("share", lambda layer: layer.share),
    ("limit", lambda layer: layer.limit),
    ("largest groups", lambda layer: layer.largest_groups),
    ("extra flops a sample", lambda layer: layer.extra_flops),
    ("extra flops an image", lambda layer: layer.samples * layer.extra_flops),
    ("extra bytes a sample", lambda layer: layer.extra_bytes),
    ("extra bytes an image", lambda layer: layer.samples * layer.extra_bytes),
    *((name, lambda layer, share=share: _missing(layer, share)) for _, name, share in _DIRECTIONS),
    ("verdict", verdict),
    ("suggested groups", suggested_groups),
    ("suggested iterations", suggested_iterations),
]
