"""What a training run has left in its directory: its config, losses, evaluations and detections."""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import flatten, read_config_file
from ..errors import UsageError
from .config_norms import norm_label

__all__ = ["METRICS", "Run", "find_runs", "read_run", "tell_apart"]

# By Detectron2's name -> by that in tables and plots
METRICS = {
    "bbox/AP": "box AP",
    "bbox/AP50": "AP50",
    "bbox/AP75": "AP75",
    "bbox/APs": "APs",
    "bbox/APm": "APm",
    "bbox/APl": "APl",
    "segm/AP": "mask AP",
}


@dataclass(frozen=True)
class Run:
    """
    A run's directory, read by :func:`read_run`.

    Attributes:
        config: config.yaml by full keys, {"SOLVER.MAX_ITER": 90000, ...}; empty if unreadable.
        losses: iteration -> total loss, as Detectron2 smooths it (a median of 20).
        evaluations: of DATASETS.TEST -> iteration -> {"bbox/AP": 37.9, "segm/AP": ..., ...}, in
            percent; one iteration only unless TEST.EVAL_PERIOD asked for more.
        is_over: resuming it would change nothing: it was evaluated at its last iteration, or its
            loss or its boxes were not finite.
        problem: why its results don't count, in a few words; None where they do.
    """

    path: str
    config: dict[str, Any] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    evaluations: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    is_over: bool = False
    problem: str | None = None

    @property
    def label(self) -> str:
        """Its norms, see :func:`norm_label`."""
        return norm_label(self.config)

    @property
    def test_sets(self) -> list[str]:
        return list(self.config.get("DATASETS.TEST") or [])

    @property
    def weights(self) -> str:
        """The path of model_final.pth, which need not be there."""
        return os.path.join(self.path, "model_final.pth")

    def results_file(self, dataset: str) -> str | None:
        """
        The file with its detections on a dataset; None where there is none. Detectron2 has one
        file for all DATASETS.TEST, in which the last one's results stay.
        """
        path = os.path.join(self.path, "inference", "coco_instances_results.json")
        return path if self.test_sets[-1:] == [dataset] and os.path.isfile(path) else None

    def final(self, dataset: str) -> dict[str, float]:
        """The last evaluation on a dataset; empty where there is none."""
        evaluations = self.evaluations.get(dataset, {})
        return evaluations[max(evaluations)] if evaluations else {}


def find_runs(paths: Iterable[str], trust: bool = False) -> list[Run]:
    """
    The runs in directories and below them, each once, in the order given and then by name.

    Args:
        trust: see :func:`read_config_file`.

    Raises:
        UsageError: a path isn't a directory, or there is no run in it.
    """
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UsageError(f"there is no directory {path}")
        folders = sorted(file.parent for file in path.rglob("config.yaml"))
        if not folders:
            raise UsageError(f"no run in {path}: no directory there has a config.yaml")
        for folder in folders:
            found.setdefault(folder.resolve(), str(folder))
    return [read_run(folder, trust) for folder in found.values()]


def read_run(path: str, trust: bool = False) -> Run:
    """Reads a run directory, whatever state it is in: `Run.problem` tells what is wrong with it."""
    try:
        config = flatten(read_config_file(os.path.join(path, "config.yaml"), trust))
    except UsageError as error:
        return Run(path, problem=str(error))
    if "SOLVER.MAX_ITER" not in config:
        return Run(path, problem="config.yaml has no SOLVER.MAX_ITER, it may be a LazyConfig's")
    history = _read_history(Path(path, "metrics.json"))
    losses = {i: float(r["total_loss"]) for i, r in history.items() if "total_loss" in r}
    run = Run(path, config, losses)
    for name in run.test_sets:
        prefix = f"{name}/" if len(run.test_sets) > 1 else ""
        run.evaluations[name] = {
            i: {metric: record[prefix + metric] for metric in METRICS if prefix + metric in record}
            for i, record in history.items()
            if f"{prefix}bbox/AP" in record
        }
    is_over, problem = _state(run)
    return replace(run, is_over=is_over, problem=problem)


def _read_history(file: Path) -> dict[int, dict[str, Any]]:
    """
    Iteration -> record. The file only ever grows: a run that was resumed or begun again goes back
    in it to an earlier iteration, and what was written from there on before is no longer true.
    """
    history: dict[int, dict[str, Any]] = {}
    last_trained = -1
    for line in _read(file).splitlines():
        try:  # a resumed run writes on in a line that a kill has cut short; records aren't nested
            record = json.loads(line[max(0, line.rfind("{")) :])
        except ValueError:
            continue
        iteration = record["iteration"]
        if "total_loss" in record:
            if iteration <= last_trained:
                history = {i: old for i, old in history.items() if i < iteration}
            last_trained = iteration
        history.setdefault(iteration, {}).update(record)
    return history


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _state(run: Run) -> tuple[bool, str | None]:
    """Returns (is_over, problem)."""
    end = run.config["SOLVER.MAX_ITER"]
    evaluated = [max(run.evaluations[name], default=-1) for name in run.test_sets]
    if min(evaluated, default=-1) >= end - 1:
        empty = [name for name in run.test_sets if math.isnan(run.final(name)["bbox/AP"])]
        return True, f"no box AP on {empty[0]}: it detects nothing there" if empty else None
    log = _read(Path(run.path, "log.txt")).rpartition("Starting training from iteration")[2]
    errors = re.findall(r"^(?:[\w.]+\.)?(\w*Error\b.*)", log, re.MULTILINE)
    error = errors[-1] if errors else ""
    if error.startswith("FloatingPointError"):
        return True, f"diverged: {error.removeprefix('FloatingPointError: ')}"
    last = max(run.losses, default=0)
    problem = (
        "not evaluated at the end" if last >= end - 1 else f"stopped at iteration {last} of {end}"
    )
    return False, f"{problem}: {error}" if error else problem


def tell_apart(labels: Sequence[str], paths: Sequence[str]) -> list[str]:
    """
    The labels of some runs, where the same one stands for several with the part of their paths
    added that these don't share: "GN (seed1)", "GN (seed2)".

    Raises:
        UsageError: two have the same label and the same path.
    """
    told = []
    real = list(map(os.path.realpath, paths))
    for label, path in zip(labels, real, strict=True):
        same = [other for named, other in zip(labels, real, strict=True) if named == label]
        if same.count(path) > 1:
            raise UsageError(f"{paths[real.index(path)]} is given twice")
        part = os.path.relpath(path, os.path.commonpath(same))
        told.append(f"{label} ({part})" if len(same) > 1 else label)
    return told
