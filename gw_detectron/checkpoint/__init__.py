"""
Pre-trained weights: read from PyTorch's files, converted to Detectron2's names, found by configs.

Importing this package registers the prefix `gw://` with Detectron2's PathManager.
"""

from .checkpointer import WeightsCheckpointer
from .convert import convert_file
from .resnet import ResNetLayout, check, recognise, rename
from .torch_file import read_state_dict
from .weights import find_weights, register_weights, require_weights

register_weights()

__all__ = [
    "ResNetLayout",
    "WeightsCheckpointer",
    "check",
    "convert_file",
    "find_weights",
    "read_state_dict",
    "recognise",
    "register_weights",
    "rename",
    "require_weights",
]
