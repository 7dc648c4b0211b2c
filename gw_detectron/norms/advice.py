"""What to do about a norm's number of groups and iterations, and why."""

from collections.abc import Iterable

from .constraints import largest_groups
from .convergence import (
    TOLERATED,
    missing_variance,
    sufficient_iterations,
    whitened_groups,
)
from .layers import NormLayer

__all__ = ["FINE_PART", "notes", "suggested_groups", "suggested_iterations", "verdict"]

# A share of freedom of up to 1 / FINE_PART is fine: a rule of thumb. The paper's tightest layer has
# 17 %, with 64 groups on its box head's 256 x 7 x 7
FINE_PART = 4


def verdict(layer: NormLayer) -> str | None:
    """
    Of GN and GW by their share of freedom: "fine" up to a quarter, "tight" up to the whole, "over
    the limit" beyond. None of other norms.
    """
    if not layer.has_groups:
        return None
    if layer.is_over_limit:
        return "over the limit"
    return "tight" if FINE_PART * layer.constraints > layer.values else "fine"


def suggested_groups(layer: NormLayer) -> int | None:
    """The layer's own g where it is fine, else the largest below that divides C and is fine."""
    if verdict(layer) in ("fine", None):
        return layer.num_groups
    return max(1, largest_groups(layer.kind, layer.values // FINE_PART, layer.channels))


def suggested_iterations(layer: NormLayer) -> int | None:
    """
    T that suffices for :func:`suggested_groups`, not below the layer's own. The layer's own where
    the output is rescaled; None without Newton's iteration.
    """
    if layer.iterations is None or layer.norm.rescale:
        return layer.iterations
    return max(layer.iterations, sufficient_iterations(suggested_groups(layer)))


def notes(layers: Iterable[NormLayer]) -> list[str]:
    """What needs saying beyond the table, a paragraph each; of nothing where all is well."""
    layers = list(layers)
    over = [layer for layer in layers if layer.is_over_limit]
    paragraphs = [over_limit(over)] if over else []
    small: dict[tuple[int, int], int] = {}
    for layer in layers:
        if layer.iterations is not None and not layer.norm.rescale:
            g, t = layer.num_groups, layer.iterations
            if missing_variance(1 / g, t) > TOLERATED:
                small[g, t] = small.get((g, t), 0) + 1
    paragraphs += [_small_output(*options, number) for options, number in small.items()]
    return paragraphs


def over_limit(layers: list[NormLayer]) -> str:
    """One line on layers that are over the limit, which are named, and the way out."""
    named = [
        f"{layer.name} ({layer.kind}, num_groups {layer.num_groups} on {layer.values} values, "
        f"at most {layer.largest_groups})"
        for layer in layers[:5]
    ]
    more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
    groups = [suggested_groups(layer) for layer in layers if layer.kind == "GW"]
    fewer = f'fewer groups, "GW(num_groups={min(groups)})", or ' if groups else ""
    return (
        "Over the limit, with more constraints than values, so that the output has no freedom "
        f"left: {', '.join(named)}{more}. Use {fewer}another norm there."
    )


def _small_output(num_groups: int, iterations: int, number: int) -> str:
    of_white = missing_variance(1 / num_groups, iterations)
    of_weak = missing_variance(1 / (10 * num_groups), iterations)
    return (
        f"Small output: with {num_groups} groups, T = {iterations} leaves {of_white:.0%} of the "
        f"variance missing even if the input is white, and {of_weak:.0%} in a direction with "
        f"1/{10 * num_groups} of it ({number} layers). Weights pre-trained with GW have learned "
        "that scale: keep their g and T. From scratch training suffers: use at most "
        f"{whitened_groups(iterations)} groups for T = {iterations}, or rescale=true. More "
        "iterations repair it too, but each amplifies weak directions, and their gradients, 1.5 "
        "times more."
    )
