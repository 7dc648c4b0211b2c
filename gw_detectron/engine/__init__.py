"""Training and evaluation as Detectron2 does it, from a command line to the results on disk."""

from .detection import load_config, main
from .launch import run
from .trainer import Trainer

__all__ = ["Trainer", "load_config", "main", "run"]
