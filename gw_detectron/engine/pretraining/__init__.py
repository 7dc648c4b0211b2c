"""
Backbones trained as image classifiers: the weights that detectors start from.

For those who have no file of the paper's authors, or want another norm, width or data.
"""

from . import classifier  # noqa: F401  registers on import
from .config import add_pretraining_config
from .engine import argument_parser, load_config, main

__all__ = ["add_pretraining_config", "argument_parser", "load_config", "main"]
