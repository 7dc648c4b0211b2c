"""What the norms of a model do: the paper's theory, advice on a config, diagnostics of features."""

from .theory import (
    constraints,
    largest_groups,
    limit,
    missing_variance,
    share_of_freedom,
    sufficient_iterations,
)

__all__ = [
    "constraints",
    "largest_groups",
    "limit",
    "missing_variance",
    "share_of_freedom",
    "sufficient_iterations",
]
