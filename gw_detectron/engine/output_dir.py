"""OUTPUT_DIR before a run: it can be written to, has room, and holds no other run."""

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm

from ..errors import UsageError
from ..results.experiment import differences
from ..results.runs import flatten
from .checkpointer import remove_unfinished

logger = logging.getLogger("detectron2.gw")

# Keys of MODEL that are no part of it
_BESIDE_THE_MODEL = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.GW.DIAGNOSTICS_PERIOD")
_PROBE = bytes(2**20)
_NUM_CHECKPOINTS_TO_START = 3


def claim(cfg: CfgNode, resume: bool, eval_only: bool) -> None:
    """
    Makes OUTPUT_DIR, and before training removes what a run that was killed left half written.

    Raises:
        UsageError: it can't be written to; it holds a run, which training is not to resume; it
            holds one with another model or, to be resumed, with other images or another seed, or
            without the checkpoint that is its last.
    """
    folder = cfg.OUTPUT_DIR
    if "://" in folder:
        return
    if holds_run(folder):
        _require_same_run(cfg, eval_only)
        if not (eval_only or resume):
            raise UsageError(
                f"OUTPUT_DIR {folder} holds a run: add --resume to go on with it, choose another "
                "OUTPUT_DIR, or remove it"
            )
        if resume:
            _require_last_checkpoint(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROBE)
    except OSError as error:
        raise UsageError(f"OUTPUT_DIR {folder} can't be written to: {error.strerror}") from error
    if not eval_only:
        remove_unfinished(folder)


def holds_run(folder: str) -> bool:
    """Whether there is what another run would mix with: a checkpoint or metrics."""
    metrics = os.path.join(folder, "metrics.json")
    return os.path.isfile(os.path.join(folder, "last_checkpoint")) or (
        os.path.isfile(metrics) and os.path.getsize(metrics) > 0
    )


def _require_last_checkpoint(folder: str) -> None:
    path = Path(folder, "last_checkpoint")
    if path.is_file() and not Path(folder, path.read_text().strip()).is_file():
        raise UsageError(
            f"{path} names {path.read_text().strip()}, which is not there: write the name of "
            "another checkpoint into it, or remove it to begin anew"
        )


def _require_same_run(cfg: CfgNode, eval_only: bool) -> None:
    try:
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), encoding="utf-8") as f:
            config = yaml.safe_load(f)
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(config, dict):
        return
    there, here = (
        {k: v for k, v in flatten(c).items() if _tells_runs_apart(k, eval_only)}
        for c in (config, yaml.safe_load(cfg.dump()))
    )
    both = there.keys() & here.keys()  # other versions know other keys
    there, here = ({k: c[k] for k in c if k in both} for c in (there, here))
    if there != here:
        theirs, ours = differences([there, here])
        raise UsageError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run with {theirs}, not {ours}: choose another "
            "OUTPUT_DIR, or remove it"
        )


def _tells_runs_apart(key: str, eval_only: bool) -> bool:
    """The schedule doesn't: a run may be resumed with more iterations or a lower learning rate."""
    if key in ("SEED", "DATASETS.TRAIN"):
        return not eval_only
    is_model = key.startswith("MODEL.") and key not in _BESIDE_THE_MODEL
    return is_model and not key.endswith("_TEST")


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's default_setup; the config.yaml of a run that is evaluated stays as it is."""
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    is_kept = args.eval_only and holds_run(cfg.OUTPUT_DIR) and path.is_file()
    config = path.read_bytes() if is_kept else None
    default_setup(cfg, args)
    if config is not None and comm.is_main_process():
        path.write_bytes(config)


def require_room(trainer: DefaultTrainer) -> None:
    """
    Warns where OUTPUT_DIR has no room for all the checkpoints that are still to be written.

    Args:
        trainer: resumed already, if it is to be.

    Raises:
        UsageError: it has none for the first of them.
    """
    cfg = trainer.cfg
    if "://" in cfg.OUTPUT_DIR:
        return
    size = _checkpoint_size(trainer)
    start, end, period = trainer.start_iter, trainer.max_iter, cfg.SOLVER.CHECKPOINT_PERIOD
    number = end // period - start // period + 1 if start < end else 0
    free = shutil.disk_usage(cfg.OUTPUT_DIR).free
    state = f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {free / 1e6:.0f} MB are free, and a checkpoint takes "
    state += f"{size / 1e6:.0f} MB"
    if free < size * min(number, _NUM_CHECKPOINTS_TO_START):
        raise UsageError(f"{state}: choose another OUTPUT_DIR, or make room")
    if free < size * number:
        logger.warning(f"{state}: make room for {number}, or raise SOLVER.CHECKPOINT_PERIOD")


def _checkpoint_size(trainer: DefaultTrainer) -> int:
    """In bytes: the weights, and the momentum of those that are trained."""
    tensors: list[Any] = list(trainer.model.state_dict().values())
    for group in trainer.optimizer.param_groups:
        tensors += group["params"]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
