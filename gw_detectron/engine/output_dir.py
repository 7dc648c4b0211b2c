"""OUTPUT_DIR before a run: it can be written to, has room, and holds no other run."""

import argparse
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm

from ..checkpoint.weights import require_scheme
from ..config import flatten, read_config_file
from ..errors import UsageError
from ..files import locked, remove_unfinished
from ..runs.experiment import differences
from .launch import checked_by_main_process

logger = logging.getLogger("detectron2.gw")

# Keys of MODEL that are no part of it
_BESIDE_THE_MODEL = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.GW.DIAGNOSTICS_PERIOD")
_PROBE = bytes(2**20)
_NUM_CHECKPOINTS_TO_START = 3


@contextlib.contextmanager
def claimed(cfg: CfgNode, resume: bool, eval_only: bool, config_file: str = "") -> Iterator[None]:
    """
    Around a run, in each of its processes: OUTPUT_DIR is there, as :func:`claim` leaves it, and no
    other process trains in it.

    Raises:
        UsageError: as :func:`claim`; another process trains there.
    """

    def enter() -> None:
        claim(cfg, resume, eval_only, config_file)
        if not eval_only and "://" not in cfg.OUTPUT_DIR:
            lock.enter_context(locked(cfg.OUTPUT_DIR, "OUTPUT_DIR"))
            remove_unfinished(cfg.OUTPUT_DIR)

    with contextlib.ExitStack() as lock:
        checked_by_main_process(enter)
        yield


def claim(cfg: CfgNode, resume: bool, eval_only: bool, config_file: str = "") -> None:
    """
    Makes OUTPUT_DIR.

    Args:
        config_file: what cfg was read from; it is not overwritten by the whole cfg.

    Raises:
        UsageError: it can't be written to; it holds a run, which training is not to resume; it
            holds one with another model or, to be resumed, with other images or another seed, or
            without the checkpoint that is its last.
    """
    folder = cfg.OUTPUT_DIR
    if "://" in folder:
        return require_scheme("OUTPUT_DIR", folder)
    if not folder:
        raise UsageError("OUTPUT_DIR is empty: name the folder of the run, or . for this one")
    if holds_run(folder):
        _require_same_run(cfg, eval_only)
        if not (eval_only or resume):
            raise UsageError(
                f"OUTPUT_DIR {folder} holds a run: add --resume to go on with it, choose another "
                "OUTPUT_DIR, or remove it"
            )
        if resume:
            _require_last_checkpoint(folder)
    elif config_file:
        _require_other_file(config_file, cfg)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROBE)
    except OSError as error:
        raise UsageError(f"OUTPUT_DIR {folder} can't be written to: {error.strerror}") from error


def holds_run(folder: str) -> bool:
    """Whether there is what another run would mix with: a checkpoint, a model or metrics."""
    metrics = Path(folder, "metrics.json")
    return (
        Path(folder, "last_checkpoint").is_file()
        or any(Path(folder).glob("model_*.pth"))
        or (metrics.is_file() and metrics.stat().st_size > 0)
    )


def _require_last_checkpoint(folder: str) -> None:
    path = Path(folder, "last_checkpoint")
    if not path.is_file():
        return
    name = path.read_text(errors="replace").strip()
    if not Path(folder, name).is_file():
        raise UsageError(
            f"{path} names {name}, which is not there: write the name of "
            "another checkpoint into it, or remove it to begin anew"
        )


def _require_other_file(config_file: str, cfg: CfgNode) -> None:
    """Lets pass what a run that never began has left, which has every key."""
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    if not path.is_file() or not os.path.exists(config_file) or not path.samefile(config_file):
        return
    written = read_config_file(config_file, trust=True)
    if not written.keys() >= cfg.keys():
        raise UsageError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: a run keeps its whole config there as config.yaml, and "
            f"would overwrite --config-file {config_file}: rename it, or choose another OUTPUT_DIR"
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
