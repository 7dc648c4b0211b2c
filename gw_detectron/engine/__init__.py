"""Training and evaluation as Detectron2 does it, from a command line to the results on disk."""

from .launch import run
from .trainer import Trainer
from .training import load_config, main

__all__ = ["Trainer", "load_config", "main", "run"]
