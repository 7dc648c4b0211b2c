"""What a config says, checked before anything is built or written."""

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils.registry import Registry
from PIL import Image

from ..errors import UsageError

# What Detectron2 compares with, and takes anything else for one of them or fails far away
_CHOICES = {
    "INPUT.FORMAT": ("BGR", "YUV-BT.601", *Image.MODES),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
}
# Keys with whole numbers -> the least that means something
_LEAST = {
    "INPUT.MIN_SIZE_TRAIN": 0,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "INPUT.MAX_SIZE_TEST": 1,
}
_LEAST_IN_TRAINING = {"SOLVER.MAX_ITER": 1, "SOLVER.CHECKPOINT_PERIOD": 1}
_GREATEST_SEED = 2**32 - 1  # that NumPy takes


def check_config(cfg: CfgNode, eval_only: bool = False) -> None:
    """
    Finds what Detectron2 would find late, or never: it fails with a traceback, divides by zero or
    trains on nothing. What does fail while it is built is left to :func:`failures.building`.

    Raises:
        UsageError: names the key, its value and what it may be.
    """
    _require_one_of(
        "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, _names(META_ARCH_REGISTRY)
    )
    _require_one_of("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, _names(BACKBONE_REGISTRY))
    for key, choices in _CHOICES.items():
        _require_one_of(key, _value(cfg, key), choices)
    for key, least in (_LEAST if eval_only else _LEAST | _LEAST_IN_TRAINING).items():
        _require_at_least(key, _value(cfg, key), least)
    if cfg.SEED > _GREATEST_SEED:
        raise UsageError(f"SEED {cfg.SEED}: it must be at most {_GREATEST_SEED}")
    for key, value in _leaves(cfg.SOLVER, "SOLVER."):
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key} {value}: a finite number is expected")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UsageError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: {error}") from error
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UsageError(
            "DATASETS.TRAIN is empty: there is nothing to train on; add DATASETS.TRAIN "
            "\"('NAME',)\", or --eval-only to evaluate"
        )
    if eval_only and not cfg.DATASETS.TEST:
        raise UsageError(
            "DATASETS.TEST is empty: there is nothing to evaluate; add DATASETS.TEST \"('NAME',)\""
        )
    _check_augmentation(cfg)


def _require_one_of(key: str, value: str, names: Sequence[str]) -> None:
    if value in names:
        return
    nearest = difflib.get_close_matches(value, names, n=3, cutoff=0)
    raise UsageError(f"{key} {value} is not known; the nearest are {', '.join(nearest)}")


def _names(registry: Registry) -> tuple[str, ...]:
    return tuple(name for name, _ in registry)


def _require_at_least(key: str, value: int | Sequence[int], least: int) -> None:
    values = (value,) if isinstance(value, int) else value
    if not values:
        raise UsageError(f"{key} is empty: a number is expected")
    if min(values) < least:
        raise UsageError(f"{key} {value}: it must be at least {least}")


def _check_augmentation(cfg: CfgNode) -> None:
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.TEST.AUG.ENABLED and not issubclass(META_ARCH_REGISTRY.get(name), GeneralizedRCNN):
        raise UsageError(
            f"TEST.AUG.ENABLED: Detectron2's test-time augmentation is for R-CNNs, not for {name}"
        )


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _leaves(cfg: CfgNode, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
