"""
How much a norm takes from the features that it normalises.

Normalising imposes equations on the output: means that are 0, variances that are 1, covariances
that are 0. Group Whitening, CVPR 2021, section 4, counts them, the constraint number of a norm. As
many equations as there are values leave the features no freedom, which bounds the number of groups.
"""

import math

__all__ = ["constraints", "largest_groups", "limit", "share_of_freedom"]

NORMS = ("BN", "BW", "GN", "GW")


def constraints(norm: str, d: int, m: int = 1, g: int | None = None) -> int:
    """
    The equations that a norm imposes on a mini-batch of m samples with d values each (section 4):

        BN   2 d             mean and variance of each of d features over the m samples
        BW   d (d + 3) / 2   batch whitening: d means, d (d + 1) / 2 covariances over the m samples
        GN   2 g m           mean and variance of each group of each sample
        GW   g (g + 3) / 2 m   g means, g (g + 1) / 2 covariances between groups of each sample

    For features of shape (N, C, *spatial), BN and BW have d = C and m = N * prod(spatial), GN and
    GW have d = C * prod(spatial) and m = N.

    Args:
        norm: one of NORMS.
        g: the number of groups; of GN and GW only.

    Raises:
        ValueError: on another norm, or without g where it is needed.
    """
    if norm not in NORMS:
        raise ValueError(f"constraints of {norm} are not known; of {', '.join(NORMS)} they are")
    if norm == "BN":
        return 2 * d
    if norm == "BW":
        return d * (d + 3) // 2
    if g is None:
        raise ValueError(f"the constraints of {norm} depend on the number of groups g")
    return (2 * g if norm == "GN" else g * (g + 3) // 2) * m


def share_of_freedom(norm: str, d: int, m: int = 1, g: int | None = None) -> float:
    """The part of the d * m values that the equations determine; above 1 they cannot all hold."""
    return constraints(norm, d, m, g) / (d * m)


def limit(norm: str, d: int) -> float:
    """
    The g, a real number, at which GN or GW has as many constraints as a sample has values
    (section 4): GN d / 2, GW (sqrt(8 d + 9) - 3) / 2. :func:`largest_groups` is exact.
    """
    _require_groups(norm)
    return d / 2 if norm == "GN" else (math.sqrt(8 * d + 9) - 3) / 2


def largest_groups(norm: str, d: int, channels: int | None = None) -> int:
    """
    The largest whole g within :func:`limit`, exactly; with channels, the largest that divides them.
    0 where even one group is too many.
    """
    _require_groups(norm)
    # isqrt rounds down, and so the rounded result is that of the real formula
    largest = d // 2 if norm == "GN" else (math.isqrt(8 * d + 9) - 3) // 2
    if channels is None:
        return largest
    return next((g for g in range(min(largest, channels), 0, -1) if channels % g == 0), 0)


def _require_groups(norm: str) -> None:
    if norm not in ("GN", "GW"):
        raise ValueError(f"{norm} has no groups; GN and GW have")
