"""Training and evaluation as Detectron2 does it, from a command line to the results on disk."""

from .processes import run
from .trainer import Trainer
from .training import main, setup

__all__ = ["Trainer", "setup", "main", "run"]
