"""Command lines of pre-training that take seconds on a CPU."""

import argparse
from pathlib import Path

from pretrain_imagenet import argument_parser

CONFIGS = Path(__file__).parents[3] / "configs" / "ImageNet-Classification"
TINY = [
    "SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.01", "DATALOADER.NUM_WORKERS", "0",
    "PRETRAINING.SIZE_TRAIN", "32", "PRETRAINING.RESIZE_TEST", "36", "PRETRAINING.SIZE_TEST", "32",
    "PRETRAINING.EPOCHS", "2", "PRETRAINING.STEPS", "()",
    "PRETRAINING.CHECKPOINT_EPOCHS", "99", "PRETRAINING.EVAL_EPOCHS", "0", "SEED", "1",
]  # fmt: skip


def command(data, output, *options, config="R_18_gw", opts=()) -> list[str]:
    """Three iterations an epoch on tests' images; opts win over :data:`TINY`."""
    return [
        "--config-file", str(CONFIGS / f"{config}.yaml"), "--data", str(data), *options,
        "OUTPUT_DIR", str(output), *TINY, *map(str, opts),
    ]  # fmt: skip


def arguments(*args, **kwargs) -> argparse.Namespace:
    return argument_parser().parse_args(command(*args, **kwargs))


def remove_checkpoints(folder: Path) -> None:
    for path in folder.rglob("*.pth"):
        path.unlink()
