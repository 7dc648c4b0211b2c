"""Training and evaluation as Detectron2 does it, from a command line to the results on disk."""

from .command_line import (
    add_dataset_argument,
    add_trust_argument,
    argument_parser,
    evaluate,
    load_config,
    main,
    report,
    train,
)
from .launch import run
from .trainer import Trainer

__all__ = [
    "Trainer",
    "add_dataset_argument",
    "add_trust_argument",
    "argument_parser",
    "evaluate",
    "load_config",
    "main",
    "report",
    "run",
    "train",
]
