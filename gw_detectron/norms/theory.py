"""
What a norm takes from the features, how far T iterations whiten, and what Group Whitening costs.

Normalising imposes equations on the output: means that are 0, variances that are 1, covariances
that are 0. Group Whitening, CVPR 2021, section 4, counts them, the constraint number of a norm. As
many equations as there are values leave the features no freedom, which bounds the number of groups.
"""

import math
from itertools import count

# What may be missing of unit variance where the iteration is to count as complete
TOLERATED = 0.1


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
        g: the number of groups, of GN and GW.

    Raises:
        ValueError: on another norm.
    """
    if norm == "BN":
        return 2 * d
    if norm == "BW":
        return d * (d + 3) // 2
    if norm == "GN":
        return 2 * g * m
    if norm == "GW":
        return g * (g + 3) // 2 * m
    raise ValueError(f"the constraints of {norm} are not known; of BN, BW, GN, GW they are")


def share_of_freedom(norm: str, d: int, m: int = 1, g: int | None = None) -> float:
    """The part of the d * m values that the equations determine; above 1 they cannot all hold."""
    return constraints(norm, d, m, g) / (d * m)


def limit(norm: str, d: int) -> float:
    """
    The g, a real number, at which "GN" or "GW" has as many constraints as a sample has values
    (section 4). :func:`largest_groups` is exact.
    """
    return {"GN": d / 2, "GW": (math.sqrt(8 * d + 9) - 3) / 2}[norm]


def largest_groups(norm: str, d: int, channels: int | None = None) -> int:
    """
    The largest whole g within :func:`limit`, exactly; with channels, the largest that divides them.
    0 where even one group is too many.
    """
    # isqrt rounds down, and so the rounded result is that of the real formula
    largest = {"GN": d // 2, "GW": (math.isqrt(8 * d + 9) - 3) // 2}[norm]
    return largest if channels is None else largest_divisor(channels, largest)


def largest_divisor(channels: int, at_most: int) -> int:
    """0 where at_most is 0."""
    return next((g for g in range(min(at_most, channels), 0, -1) if channels % g == 0), 0)


def missing_variance(share: float, iterations: int) -> float:
    """
    What a direction still lacks of unit variance after T steps of Newton's iteration.

    Every P_k is a polynomial in S = Sigma / tr(Sigma), so that each direction (eigenvector) goes
    its own way, given by its share l of the trace: p_0 = 1, p_{k+1} = (3 p_k - p_k^3 l) / 2, and it
    comes out with the variance p_T^2 l. See section 3 and docs/derivation.md.

    Args:
        share: l, from 0 to 1. White input has 1 / g everywhere.
        iterations: T.
    """
    p = 1.0
    for _ in range(iterations):
        p = (3 * p - p**3 * share) / 2
    return 1 - p * p * share


def sufficient_iterations(num_groups: int) -> int:
    """The smallest T that leaves at most TOLERATED of the variance of white input missing."""
    return next(t for t in count() if missing_variance(1 / num_groups, t) <= TOLERATED)


def whitened_groups(iterations: int) -> int:
    """The largest g for which T = `iterations` is sufficient."""
    return next(g for g in count(1) if missing_variance(1 / (g + 1), iterations) > TOLERATED)


def extra_flops(
    channels: int, positions: int, num_groups: int, iterations: int | None, rescale: bool = False
) -> int:
    """
    Multiply-adds of a sample's forward pass that GW has beyond GN: 2 g C S for X X^T and W X, and
    for W = Sigma^(-1/2) 3 (T - 1) g^3, the iteration's products, or 9/2 g^3 for an
    eigendecomposition (9 g^3 operations in Golub and Van Loan's count) and g^3 for
    U Lambda^(-1/2) U^T. Rescaling adds g^3. Means, variances, scale and shift both norms have.

    Args:
        channels, positions: C and S = prod(spatial).
        iterations: T; None for the eigendecomposition (method "zca").
    """
    cube = num_groups**3
    root = 11 * cube // 2 if iterations is None else 3 * max(0, iterations - 1) * cube
    return 2 * num_groups * channels * positions + root + rescale * cube


def extra_bytes(num_groups: int, method: str) -> int:
    """
    Kept in training from a sample's forward pass to the backward, in float32: GW keeps means, Sigma
    and W, for "zca" also basis and eigenvalues; GN means and deviations. Both keep the input.
    """
    g = num_groups
    kept = g + 2 * g * g + (g * g + g if method == "zca" else 0)
    return 4 * (kept - 2 * g)
