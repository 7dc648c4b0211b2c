"""What a config says, checked before anything is built or written."""

import argparse
import difflib
import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils import comm
from PIL import Image

from ..config import choose_device, flatten
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


def check_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """
    Finds what Detectron2 would find late, or never: it fails with a traceback, divides by zero or
    trains on nothing. MODEL.DEVICE becomes the CPU where there is no GPU.

    Args:
        args: with eval_only, num_gpus and num_machines.

    Raises:
        UsageError: names the key, its value and what it may be.
    """
    values = flatten(cfg)
    registered = {
        "MODEL.META_ARCHITECTURE": [name for name, _ in META_ARCH_REGISTRY],
        "MODEL.BACKBONE.NAME": [name for name, _ in BACKBONE_REGISTRY],
    }
    for key, choices in (registered | _CHOICES).items():
        if values[key] not in choices:
            nearest = difflib.get_close_matches(values[key], choices, n=3, cutoff=0)
            raise UsageError(
                f"{key} {values[key]} is not known; the nearest are {', '.join(nearest)}"
            )
    for key, least in (_LEAST if args.eval_only else _LEAST | _LEAST_IN_TRAINING).items():
        _require_at_least(key, values[key], least)
    if cfg.SEED > _GREATEST_SEED:
        raise UsageError(f"SEED {cfg.SEED}: it must be at most {_GREATEST_SEED}")
    for key, value in values.items():
        if key.startswith("SOLVER.") and isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key} {value}: a finite number is expected")
    _check_datasets(cfg, args.eval_only)
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.TEST.AUG.ENABLED and not issubclass(META_ARCH_REGISTRY.get(name), GeneralizedRCNN):
        raise UsageError(
            f"TEST.AUG.ENABLED: Detectron2's test-time augmentation is for R-CNNs, not for {name}"
        )
    _check_processes(cfg, args)


def _require_at_least(key: str, value: int | Sequence[int], least: int) -> None:
    values = (value,) if isinstance(value, int) else value
    if not values:
        raise UsageError(f"{key} is empty: a number is expected")
    if min(values) < least:
        raise UsageError(f"{key} {value}: it must be at least {least}")


def _check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UsageError(
            "DATASETS.TRAIN is empty: there is nothing to train on; add DATASETS.TRAIN "
            "\"('NAME',)\", or --eval-only to evaluate"
        )
    if eval_only and not cfg.DATASETS.TEST:
        raise UsageError(
            "DATASETS.TEST is empty: there is nothing to evaluate; add DATASETS.TEST \"('NAME',)\""
        )


def _check_processes(cfg: CfgNode, args: argparse.Namespace) -> None:
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UsageError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: {error}") from error
    num_processes = max(comm.get_world_size(), args.num_gpus * args.num_machines)
    if choose_device(cfg, num_processes):
        print("No GPU on this machine: running on the CPU.", flush=True)
    batch = cfg.SOLVER.IMS_PER_BATCH
    is_scaled = cfg.SOLVER.REFERENCE_WORLD_SIZE not in (0, num_processes)
    if not args.eval_only and (batch < 1 or (batch % num_processes and not is_scaled)):
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {batch} can't be shared out among {num_processes} processes"
        )
