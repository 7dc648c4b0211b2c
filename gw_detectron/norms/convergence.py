"""
How far T steps of Newton's iteration whiten.

Every P_k is a polynomial in S = Sigma / tr(Sigma), so that each direction (eigenvector) goes its
own way, given by its share l of the trace: p_0 = 1, p_{k+1} = (3 p_k - p_k^3 l) / 2, and it comes
out with the variance p_T^2 l, 1 when it has converged. Each step multiplies a small share's p by
about 1.5. The iteration is that of Group Whitening, CVPR 2021, section 3; see docs/derivation.md.
"""

from itertools import count

__all__ = ["missing_variance", "sufficient_iterations", "whitened_groups"]

# What may be missing where the iteration is to count as complete
TOLERATED = 0.1


def missing_variance(share: float, iterations: int) -> float:
    """
    1 - p_T^2 l: what a direction still lacks of unit variance.

    Args:
        share: l, the direction's part of the trace, from 0 to 1. White input has 1 / g everywhere.
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
