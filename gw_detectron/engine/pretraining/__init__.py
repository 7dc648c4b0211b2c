"""
Backbones trained as image classifiers: the weights that detectors start from.

For those who have no file of the paper's authors, or want another norm, width or data.
"""

from .classification import main, setup
from .config import add_pretraining_config

__all__ = ["add_pretraining_config", "setup", "main"]
