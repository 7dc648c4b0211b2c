"""
Pre-trained weights: read from files, converted to Detectron2's names, found by configs.

Importing this package registers the prefix `gw://` with Detectron2's PathManager.
"""

from .checkpointer import WeightsCheckpointer, read_state_dict
from .convert import convert_file
from .weights import find_weights, require_weights

__all__ = [
    "WeightsCheckpointer",
    "convert_file",
    "find_weights",
    "read_state_dict",
    "require_weights",
]
