"""Norms compared by training: the same recipe, data order and schedule for each, seed by seed."""

from .comparison import Comparison, prepare
from .entries import Entry, parse_entries

__all__ = ["Comparison", "Entry", "parse_entries", "prepare"]
