"""
What Group Whitening costs beyond group norm, for one sample and one call.

A multiply-add is one FLOP, as fvcore counts. What both norms do (means, variances, scale and shift)
cancels; both read the input twice and write the output once where their passes are fused.
"""

__all__ = ["extra_bytes", "extra_flops"]

_BYTES = 4  # float32, whatever the input's type


def extra_flops(
    channels: int,
    positions: int,
    num_groups: int,
    iterations: int | None,
    rescale: bool = False,
) -> int:
    """
    Of the forward pass: 2 g C S for X X^T and W X, and for W = Sigma^(-1/2) 3 (T - 1) g^3, the
    iteration's products, or 9/2 g^3 for an eigendecomposition (9 g^3 operations in Golub and Van
    Loan's count) and g^3 for U Lambda^(-1/2) U^T. Rescaling adds g^3.

    Args:
        channels, positions: C and S = prod(spatial).
        iterations: T; None for the eigendecomposition (method "zca").
    """
    cube = num_groups**3
    root = 11 * cube // 2 if iterations is None else 3 * max(0, iterations - 1) * cube
    return 2 * num_groups * channels * positions + root + rescale * cube


def extra_bytes(num_groups: int, method: str) -> int:
    """
    Kept in training from the forward pass to the backward: GW keeps means, Sigma and W, for "zca"
    also basis and eigenvalues; GN keeps means and deviations. Both keep the input.
    """
    g = num_groups
    kept = g + 2 * g * g + (g * g + g if method == "zca" else 0)
    return _BYTES * (kept - 2 * g)
