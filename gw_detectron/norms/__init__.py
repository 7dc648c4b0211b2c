"""The paper's theory as a tool: constraints, convergence and cost of whitening, a model's norms."""

from .constraints import constraints, largest_groups, limit, share_of_freedom
from .convergence import missing_variance, sufficient_iterations

__all__ = [
    "constraints",
    "largest_groups",
    "limit",
    "missing_variance",
    "share_of_freedom",
    "sufficient_iterations",
]
