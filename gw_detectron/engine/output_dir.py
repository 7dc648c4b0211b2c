"""OUTPUT_DIR before a run: it can be written to, and holds no other run."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from ..checkpoint.weights import require_scheme
from ..config import differences, flatten, read_config_file
from ..errors import UsageError
from ..files import locked, remove_unfinished
from .processes import checked_by_main_process

# Keys of MODEL that are no part of it
_BESIDE_THE_MODEL = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.GW.DIAGNOSTICS_PERIOD")


@contextlib.contextmanager
def claimed(cfg: CfgNode, args: argparse.Namespace) -> Iterator[None]:
    """
    Around a run, in each of its processes: OUTPUT_DIR is as :func:`claim` and Detectron2's
    default_setup leave it, and no other process trains in it.

    Args:
        args: of the tool: config_file, resume, eval_only.

    Raises:
        UsageError: as :func:`claim`; another process trains there.
    """
    folder = cfg.OUTPUT_DIR

    def enter() -> None:
        claim(cfg, args.resume, args.eval_only, args.config_file)
        if not args.eval_only and "://" not in folder:
            lock.enter_context(locked(folder, "OUTPUT_DIR"))
            remove_unfinished(folder)

    with contextlib.ExitStack() as lock:
        checked_by_main_process(enter)
        config = Path(folder, "config.yaml")
        of_run = config.read_bytes() if _is_evaluated(folder, args) and config.is_file() else None
        default_setup(cfg, args)
        if of_run and comm.is_main_process():  # a run that is evaluated keeps its config
            config.write_bytes(of_run)
        yield


def _is_evaluated(folder: str, args: argparse.Namespace) -> bool:
    return args.eval_only and holds_run(folder)


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
                f"OUTPUT_DIR {folder} holds a run: add --resume to resume it, choose another "
                "OUTPUT_DIR, or remove it"
            )
        if resume:
            _require_last_checkpoint(folder)
    elif config_file:
        _require_other_file(config_file, cfg)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
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
    name = path.read_text(errors="replace").strip() if path.is_file() else ""
    if name and not Path(folder, name).is_file():
        raise UsageError(
            f"{path} names {name}, which is not there: write the name of "
            "another checkpoint into it, or remove it to begin anew"
        )


def _require_other_file(config_file: str, cfg: CfgNode) -> None:
    """Accepts the whole config that a run has left which never began."""
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    if not path.is_file() or not os.path.exists(config_file) or not path.samefile(config_file):
        return
    if not read_config_file(config_file).keys() >= cfg.keys():
        raise UsageError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: a run keeps its whole config there as config.yaml, and "
            f"would overwrite --config-file {config_file}: rename it, or choose another OUTPUT_DIR"
        )


def _require_same_run(cfg: CfgNode, eval_only: bool) -> None:
    try:
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(config, dict):
        return
    there, here = flatten(config), flatten(yaml.safe_load(cfg.dump()))
    keys = [k for k in there.keys() & here.keys() if _tells_runs_apart(k, eval_only)]
    there, here = ({k: c[k] for k in sorted(keys)} for c in (there, here))
    for values in (there, here):  # weights are matched by the classes' names, not their order
        if "MODEL.GW.CLASSES" in values:
            values["MODEL.GW.CLASSES"] = sorted(values["MODEL.GW.CLASSES"])
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
