"""What each norm of a model takes, whitens and costs, and what to do about it."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import theory
from .probe import kind_of, watch_next_pass

logger = logging.getLogger("detectron2.gw")

COLUMNS = (
    "layer", "norm", "C", "size", "g", "T", "m", "constraints", "share", "limit", "max g",
    "+GFLOPs", "+MB", "1/10", "1/g", "1/10g", "verdict", "suggestion",
)  # fmt: skip

# A share of freedom of up to 1 / _FINE_PART is fine: a rule of thumb. The paper's tightest layer
# has 17 %, with 64 groups on its box head's 256 x 7 x 7
_FINE_PART = 4


def sample_shape(norm: nn.Module, x: Tensor) -> tuple[int, ...]:
    """(C, *spatial) of each sample of a norm's input."""
    if isinstance(norm, nn.LayerNorm):  # its channels come last
        x = x.movedim(-1, 1)
    return tuple(x.shape[1:])


def describe(
    name: str, norm: nn.Module, shapes: Sequence[tuple[int, ...]], regions: int = 1
) -> dict[str, Any]:
    """
    A row of the table of norms.

    Args:
        shapes: (C, *spatial) of the sample of every call, e.g. of five levels.
        regions: how many samples an image makes of it in training.

    Returns:
        COLUMNS, which `tools/analyze_config.py --help` explains, unrounded; None where a norm has
        no such thing. The smallest sample counts, where the norm is tightest.
    """
    kind, channels = kind_of(norm), shapes[0][0]
    smallest = min(shapes, key=math.prod)
    d = freedom = math.prod(smallest)
    size = "x".join(map(str, smallest[1:])) or "1"
    if regions > 1:
        size = f"{regions} of {size}"
    elif len(shapes) > 1:
        size = f"1 of {len(shapes)}: {size}"
    row = dict.fromkeys(COLUMNS) | {"layer": name, "norm": kind, "C": channels, "size": size}
    suggestion = []
    if kind in ("GN", "GW"):
        g = norm.num_groups
        number, m = theory.constraints(kind, d, g=g), d // g
        fine_g = min(g, max(1, theory.largest_groups(kind, d // _FINE_PART, channels)))
        if fine_g < g:
            suggestion.append(f"g={fine_g}")
        row |= {
            "g": g,
            "limit": theory.limit(kind, d),
            "max g": theory.largest_groups(kind, d, channels),
            "verdict": "fine" if fine_g == g else "tight" if number <= d else "over the limit",
        }
    elif kind == "LN":  # at every position a GN of one group
        number, m = theory.constraints("GN", channels, d // channels, g=1), channels
    elif kind == "FrozenBN":
        number, m = 0, None
    else:
        freedom = d * regions
        number, m = theory.constraints("BN", channels), freedom // channels
    if kind == "GW":
        t = norm.iterations if norm.method == "itn" else None
        if t is not None and not norm.rescale and t < theory.sufficient_iterations(fine_g):
            suggestion.append(f"T={theory.sufficient_iterations(fine_g)}")
        flops = [theory.extra_flops(c, math.prod(s), g, t, norm.rescale) for c, *s in shapes]
        row |= {
            "T": t,
            "+GFLOPs": regions * sum(flops) / 1e9,
            "+MB": regions * len(shapes) * theory.extra_bytes(g, norm.method) / 1e6,
        }
        for column, share in (("1/10", 1 / 10), ("1/g", 1 / g), ("1/10g", 1 / (10 * g))):
            row[column] = 0.0 if t is None else max(0.0, theory.missing_variance(share, t))
    return row | {
        "m": m,
        "constraints": number,
        "share": number / freedom,
        "suggestion": " ".join(suggestion),
    }


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What needs saying beyond the table of :func:`describe`'s rows, a paragraph each."""
    small = Counter((row["g"], row["T"]) for row in rows if "T=" in row["suggestion"])
    return _over_limit(rows) + [
        f"Small output: with {g} groups, T = {t} leaves {theory.missing_variance(1 / g, t):.0%} of "
        f"the variance missing even if the input is white ({number} layers). Weights pre-trained "
        "with GW have learned that scale: keep their g and T. From scratch training suffers: use "
        f"at most {theory.whitened_groups(t)} groups for T = {t}, rescale=true, or more iterations."
        for (g, t), number in small.items()
    ]


def _over_limit(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line that names the layers over the limit and the way out; none where there are none."""
    named = [
        f"{row['layer']} ({row['norm']}, num_groups {row['g']} on {row['g'] * row['m']} values, "
        f"at most {row['max g']})"
        for row in rows
        if row["verdict"] == "over the limit"
    ]
    return named and [
        "Over the limit, with more constraints than values, so that the output has no freedom "
        f"left: {', '.join(named[:5])}{' and more' if len(named) > 5 else ''}. Use fewer groups or "
        "another norm there."
    ]


def warn_over_limit(model: nn.Module) -> None:
    """
    At the model's next forward pass, looks at the sizes that its norms are given and logs one
    warning if GN or GW layers are over their limit. After that nothing of it is left in the model.
    """
    shapes = defaultdict(list)

    def look(name: str, norm: nn.Module, x: Tensor, _: Tensor) -> None:
        shapes[name, norm].append(sample_shape(norm, x))

    def warn() -> None:
        for line in _over_limit([describe(*of, found) for of, found in shapes.items()]):
            logger.warning(line)

    watch_next_pass(model, look, warn)
