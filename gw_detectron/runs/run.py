"""What a training run has left in its directory: its config, losses, evaluations and detections."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import flatten, read_config_file
from ..errors import UsageError
from .config_norms import norm_label

__all__ = ["Run", "find_runs", "read_run", "tell_apart"]

# A single test dataset's metrics are "bbox/AP"; those of several, "NAME/bbox/AP"
_AP_KEY = re.compile(r"(?:(?P<dataset>.+)/)?(?P<metric>(?:bbox|segm)/AP(?:50|75|s|m|l)?)")


@dataclass(frozen=True)
class Run:
    """
    A run's directory, read by :func:`read_run`.

    Attributes:
        path: of the directory.
        config: config.yaml by full keys, {"SOLVER.MAX_ITER": 90000, ...}; empty if unreadable.
        losses: iteration -> total loss, as Detectron2 smooths it (a median of 20).
        evaluations: dataset -> iteration -> {"bbox/AP": 37.9, "segm/AP": ..., ...}, in percent;
            one iteration only unless TEST.EVAL_PERIOD asked for more.
        finished: it was trained to the end and evaluated there.
        diverged: it ended because its loss or its boxes were not finite.
        problem: why its results don't count, in a few words; None where they do.
    """

    path: str
    config: dict[str, Any] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    evaluations: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    finished: bool = False
    diverged: bool = False
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
    found: dict[str, str] = {}
    for path in paths:
        if not os.path.isdir(path):
            raise UsageError(f"there is no directory {path}")
        folders = (folder for folder, _, _ in os.walk(os.path.normpath(path)))
        runs = sorted(filter(_is_run, folders), key=lambda folder: folder.split(os.sep))
        if not runs:
            raise UsageError(f"no run in {path}: no directory there has a config.yaml")
        for folder in runs:
            found.setdefault(os.path.realpath(folder), folder)
    return [read_run(folder, trust) for folder in found.values()]


def _is_run(folder: str) -> bool:
    names = ("config.yaml", "metrics.json", "log.txt")
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def read_run(path: str, trust: bool = False) -> Run:
    """Reads a run directory, whatever state it is in: `Run.problem` tells what is wrong with it."""
    file = os.path.join(path, "config.yaml")
    if not os.path.isfile(file):
        return Run(path, problem="no config.yaml")
    try:
        config = flatten(read_config_file(file, trust))
    except UsageError as error:
        return Run(path, problem=str(error))
    if not isinstance(config.get("SOLVER.MAX_ITER"), int):
        problem = "config.yaml has no SOLVER.MAX_ITER; LazyConfig's runs can't be compared"
        return Run(path, problem=problem)
    history = _read_history(os.path.join(path, "metrics.json"))
    losses = {i: float(r["total_loss"]) for i, r in history.items() if "total_loss" in r}
    run = Run(path, config, losses, _evaluations(history, config))
    state = dict(zip(("finished", "diverged", "problem"), _state(run), strict=True))
    return Run(path, config, losses, run.evaluations, **state)


# ---- metrics.json ----------------------------------------------------------------------------


def _read_history(path: str) -> dict[int, dict[str, Any]]:
    """
    Iteration -> record, in ascending order. The file only ever grows: a run that was resumed or
    begun again goes back in it to an earlier iteration, and what was written from there on before
    is no longer true.
    """
    history: dict[int, dict[str, Any]] = {}
    last_trained = -1
    for record in _read_records(path):
        iteration = record["iteration"]
        if "total_loss" in record:
            if iteration <= last_trained:
                history = {i: old for i, old in history.items() if i < iteration}
            last_trained = iteration
        history.setdefault(iteration, {}).update(record)
    return dict(sorted(history.items()))


def _read_records(path: str) -> Iterator[dict[str, Any]]:
    """
    The records of whole lines. Where a kill has cut a line short and a resumed run has written on
    in it, its record is what begins at the last brace: Detectron2's are not nested.
    """
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line[max(0, line.rfind("{")) :])
                if isinstance(record, dict) and isinstance(record.get("iteration"), int):
                    yield record


def _evaluations(
    history: dict[int, dict[str, Any]], config: dict[str, Any]
) -> dict[str, dict[int, dict[str, float]]]:
    evaluations: dict[str, dict[int, dict[str, float]]] = {}
    only_dataset = (config.get("DATASETS.TEST") or [""])[0]
    for iteration, record in history.items():
        for key, value in record.items():
            match = _AP_KEY.fullmatch(key)
            if match and isinstance(value, (int, float)):
                of_dataset = evaluations.setdefault(match["dataset"] or only_dataset, {})
                of_dataset.setdefault(iteration, {})[match["metric"]] = float(value)
    return evaluations


# ---- What is wrong with a run ----------------------------------------------------------------


def _state(run: Run) -> tuple[bool, bool, str | None]:
    """Returns (finished, diverged, problem)."""
    end = run.config["SOLVER.MAX_ITER"]
    if run.test_sets and all(
        max(run.evaluations.get(name, {}), default=-1) >= end - 1 for name in run.test_sets
    ):
        for name in run.test_sets:
            if not math.isfinite(run.final(name).get("bbox/AP", math.nan)):
                return True, False, f"no box AP on {name}: it detects nothing there"
        return True, False, None
    failure = _failure_in_log(os.path.join(run.path, "log.txt"))
    last = max(run.losses, default=None)
    not_finite = [i for i, loss in run.losses.items() if not math.isfinite(loss)]
    match = re.search(r"Loss became infinite or NaN at iteration=(\d+)", failure)
    if match or not_finite:
        return (
            False,
            True,
            f"diverged: loss nan at iteration {match[1] if match else not_finite[0]}",
        )
    if failure.startswith("FloatingPointError"):
        after = "" if last is None else f" after iteration {last}"
        return False, True, f"diverged{after}: {failure.removeprefix('FloatingPointError: ')}"
    if not os.path.isfile(os.path.join(run.path, "metrics.json")):
        problem = "no metrics.json"
    elif last is None:
        problem = "stopped before its first losses"
    elif last < end - 1:
        problem = f"stopped at iteration {last} of {end}"
    elif not run.test_sets:
        problem = "not evaluated: its DATASETS.TEST is empty"
    else:
        problem = "trained to the end, but not evaluated there"
    return False, False, f"{problem}: {failure}" if failure else problem


def _failure_in_log(path: str) -> str:
    """The exception that ended the last training of a log.txt; "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            log = f.read()
    except OSError:
        return ""
    last_training = log.rpartition("Starting training from iteration")[2]
    _, raised, traceback = last_training.rpartition("Traceback (most recent call last)")
    found = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)(?:: .*)?)$", traceback, re.MULTILINE)
    return found[-1] if raised and found else ""


# ---- Several runs ----------------------------------------------------------------------------


def tell_apart(labels: Sequence[str], paths: Sequence[str]) -> list[str]:
    """
    The labels of some runs, where the same one stands for several with the part of their paths
    added that these don't share: "GN (seed1)", "GN (seed2)".

    Raises:
        UsageError: two have the same label and the same path.
    """
    told = list(labels)
    for label in set(labels):
        same = [index for index, other in enumerate(labels) if other == label]
        of_same = {index: os.path.realpath(paths[index]) for index in same}
        for index, path in of_same.items():
            if list(of_same.values()).count(path) > 1:
                raise UsageError(f"{paths[index]} is given twice")
            if len(same) > 1:
                part = os.path.relpath(path, os.path.commonpath(list(of_same.values())))
                told[index] = f"{label} ({part})"
    return told
