"""What each norm of a model takes, whitens and costs, and what to do about it."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from . import theory
from .probe import kind_of, watch_next_pass

__all__ = ["FINE_PART", "Shapes", "describe", "notes", "warn_over_limit"]

logger = logging.getLogger("detectron2.gw")

# A share of freedom of up to 1 / FINE_PART is fine: a rule of thumb. The paper's tightest layer has
# 17 %, with 64 groups on its box head's 256 x 7 x 7
FINE_PART = 4

_OVER = "over the limit"


class Shapes:
    """
    Collects the shapes of the samples that the norms of a model are given; see probe.watching.

    Attributes:
        of_norms: name -> (the norm, (C, *spatial) of every call), in the order of the first calls.
    """

    def __init__(self) -> None:
        self.of_norms: dict[str, tuple[nn.Module, list[tuple[int, ...]]]] = {}

    def look(self, name: str, norm: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(norm, nn.LayerNorm):  # its channels come last
            x = x.movedim(-1, 1)
        self.of_norms.setdefault(name, (norm, []))[1].append(tuple(x.shape[1:]))


def describe(
    name: str, norm: nn.Module, shapes: Sequence[tuple[int, ...]], regions: int | None = None
) -> dict[str, Any]:
    """
    A row of the table of norms; None where a norm has no such thing.

    Args:
        shapes: (C, *spatial) of the sample of every call, e.g. of five levels.
        regions: how many samples an image makes of it in training; None for 1, the image itself.

    Returns:
        The columns that `tools/analyze_config.py --help` explains, unrounded, and "rescale". The
        smallest sample counts, where the norm is tightest.
    """
    kind, samples, channels = kind_of(norm), regions or 1, shapes[0][0]
    smallest = min(shapes, key=math.prod)
    d = freedom = math.prod(smallest)
    positions = d // channels
    calls = f"{regions} of " if regions else f"1 of {len(shapes)}: " if len(shapes) > 1 else ""
    g = t = verdict = flops = size = None
    if kind in ("GN", "GW"):
        g = norm.num_groups
        number, m = theory.constraints(kind, d, g=g), d // g
        verdict = "fine" if FINE_PART * number <= d else "tight" if number <= d else _OVER
    elif kind == "LN":  # at every position a GN of one group
        number, m = theory.constraints("GN", channels, positions, g=1), channels
    elif kind == "FrozenBN":
        number, m = 0, None
    else:
        number, m = theory.constraints("BN", channels), positions * samples
        freedom = d * samples
    rescale = kind == "GW" and norm.rescale
    if kind == "GW":
        t = norm.iterations if norm.method == "itn" else None
        of_call = [theory.extra_flops(c, math.prod(s), g, t, rescale) for c, *s in shapes]
        flops = samples * sum(of_call)
        size = samples * len(shapes) * theory.extra_bytes(g, norm.method)

    def missing(share: float) -> float | None:
        if kind != "GW":
            return None
        return 0.0 if t is None else max(0.0, theory.missing_variance(share, t))

    fine_g = g and min(g, _fine_groups(kind, d, channels))
    fine_t = t if t is None or rescale else max(t, theory.sufficient_iterations(fine_g))
    suggestion = [f"g={fine_g}"] * (fine_g != g) + [f"T={fine_t}"] * (fine_t != t)
    return {
        "layer": name,
        "norm": kind,
        "C": channels,
        "size": calls + ("x".join(map(str, smallest[1:])) or "1"),
        "g": g,
        "T": t,
        "m": m,
        "constraints": number,
        "share": number / freedom,
        "limit": g and theory.limit(kind, d),
        "max g": g and theory.largest_groups(kind, d, channels),
        "+GFLOPs": flops and flops / 1e9,
        "+MB": size and size / 1e6,
        "1/10": missing(1 / 10),
        "1/g": g and missing(1 / g),
        "1/10g": g and missing(1 / (10 * g)),
        "verdict": verdict,
        "suggestion": " ".join(suggestion),
        "rescale": rescale,
    }


def _fine_groups(kind: str, d: int, channels: int) -> int:
    """The largest number of groups that divides the channels and is fine; 1 where none is."""
    return max(1, theory.largest_groups(kind, d // FINE_PART, channels))


def notes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What needs saying beyond the table of :func:`describe`'s rows, a paragraph each."""
    rows = list(rows)
    small = Counter(
        (row["g"], row["T"], row["1/g"], row["1/10g"])
        for row in rows
        if row["T"] is not None and not row["rescale"] and row["1/g"] > theory.TOLERATED
    )
    return _over_limit(rows) + [
        f"Small output: with {g} groups, T = {t} leaves {of_white:.0%} of the variance missing "
        f"even if the input is white, and {of_weak:.0%} in a direction with 1/{10 * g} of it "
        f"({number} layers). Weights pre-trained with GW have learned that scale: keep their g and "
        f"T. From scratch training suffers: use at most {theory.whitened_groups(t)} groups for T = "
        f"{t}, or rescale=true. More iterations repair it too, but each amplifies weak directions, "
        "and their gradients, 1.5 times more."
        for (g, t, of_white, of_weak), number in small.items()
    ]


def _over_limit(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One line on the layers that are over the limit, which are named, and the way out."""
    over = [row for row in rows if row["verdict"] == _OVER]
    if not over:
        return []
    named = [
        f"{row['layer']} ({row['norm']}, num_groups {row['g']} on {row['g'] * row['m']} values, "
        f"at most {row['max g']})"
        for row in over[:5]
    ]
    more = f" and {len(over) - 5} more" if len(over) > 5 else ""
    of_gw = [row for row in over if row["norm"] == "GW"]
    groups = [_fine_groups("GW", row["g"] * row["m"], row["C"]) for row in of_gw]
    fewer = f'fewer groups, "GW(num_groups={min(groups)})", or ' if groups else ""
    return [
        "Over the limit, with more constraints than values, so that the output has no freedom "
        f"left: {', '.join(named)}{more}. Use {fewer}another norm there."
    ]


def warn_over_limit(model: nn.Module) -> None:
    """
    At the model's next forward pass, looks at the sizes that its norms are given and logs one
    warning if GN or GW layers are over their limit. After that nothing of it is left in the model.
    """
    shapes = Shapes()

    def warn() -> None:
        for line in _over_limit(describe(n, *found) for n, found in shapes.of_norms.items()):
            logger.warning(line)

    watch_next_pass(model, shapes.look, warn)
