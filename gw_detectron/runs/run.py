"""What a training run has left in its directory: its config, its losses and its evaluations."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..config import flatten
from ..errors import UsageError

__all__ = ["Run", "find_runs", "last_record", "read_run"]

# A single test dataset's metrics are "bbox/AP"; those of several, "NAME/bbox/AP"
_AP_KEY = re.compile(r"(?:(?P<dataset>.+)/)?(?P<metric>(?:bbox|segm)/AP(?:50|75|s|m|l)?)")


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        path: its directory.
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

    def final(self, dataset: str) -> dict[str, float]:
        """The last evaluation on a dataset; empty where there is none."""
        evaluations = self.evaluations.get(dataset, {})
        return evaluations[max(evaluations)] if evaluations else {}


def find_runs(paths: Iterable[str]) -> list[str]:
    """
    The run directories among the paths and below them, each once, in the order given and then
    by name.

    Raises:
        UsageError: a path isn't a directory, or there is no run in it.
    """
    found: dict[str, str] = {}
    for path in paths:
        if not os.path.isdir(path):
            raise UsageError(f"there is no directory {path}")
        runs = [folder for folder in _folders(path) if _is_run(folder)]
        if not runs:
            raise UsageError(f"no run in {path}: no directory there has a config.yaml")
        for folder in runs:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def _folders(path: str) -> Iterator[str]:
    for folder, subfolders, _ in os.walk(os.path.normpath(path)):
        subfolders.sort()
        yield folder


def _is_run(folder: str) -> bool:
    return any(
        os.path.isfile(os.path.join(folder, name))
        for name in ("config.yaml", "metrics.json", "log.txt")
    )


def read_run(path: str) -> Run:
    """Reads a run directory, whatever state it is in: `Run.problem` tells what is wrong with it."""
    try:
        config = _read_config(os.path.join(path, "config.yaml"))
    except ValueError as error:
        return Run(path, problem=str(error))
    losses, evaluations = _read_metrics(os.path.join(path, "metrics.json"), config)
    run = Run(path, config, losses, evaluations)
    finished = bool(_test_sets(config)) and all(
        max(evaluations.get(name, {}), default=-1) >= config["SOLVER.MAX_ITER"] - 1
        for name in _test_sets(config)
    )
    if finished:
        return Run(path, config, losses, evaluations, True, problem=_empty_result(run))
    diverged, problem = _why_unfinished(run)
    return Run(path, config, losses, evaluations, False, diverged, problem)


def _test_sets(config: dict[str, Any]) -> list[str]:
    return list(config.get("DATASETS.TEST") or [])


# ---- config.yaml -----------------------------------------------------------------------------


def _read_config(path: str) -> dict[str, Any]:
    """Raises ValueError with what to say about the run."""
    try:
        with open(path, encoding="utf-8") as f:
            config = yaml.safe_load(f)
    except FileNotFoundError:
        raise ValueError("no config.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"config.yaml can't be read: {' '.join(str(error).split())}") from None
    flat = flatten(config) if isinstance(config, dict) else {}
    if not isinstance(flat.get("SOLVER.MAX_ITER"), int):
        raise ValueError("config.yaml has no SOLVER.MAX_ITER; LazyConfig's runs can't be compared")
    return flat


# ---- metrics.json ----------------------------------------------------------------------------


def _read_metrics(
    path: str, config: dict[str, Any]
) -> tuple[dict[int, float], dict[str, dict[int, dict[str, float]]]]:
    losses: dict[int, float] = {}
    evaluations: dict[str, dict[int, dict[str, float]]] = {}
    only_dataset = (_test_sets(config) or [""])[0]
    for iteration, record in sorted(_last_history(_records(path)).items()):
        if "total_loss" in record:
            losses[iteration] = float(record["total_loss"])
        for key, value in record.items():
            match = _AP_KEY.fullmatch(key)
            if match and isinstance(value, (int, float)):
                of_dataset = evaluations.setdefault(match["dataset"] or only_dataset, {})
                of_dataset.setdefault(iteration, {})[match["metric"]] = float(value)
    return losses, evaluations


def _last_history(records: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """
    Iteration -> record. The file only ever grows: a run that was resumed or begun again goes back
    in it to an earlier iteration, and what was written from there on before is no longer true.
    """
    history: dict[int, dict[str, Any]] = {}
    last_trained = -1
    for record in records:
        iteration = record["iteration"]
        if "total_loss" in record:
            if iteration <= last_trained:
                history = {i: old for i, old in history.items() if i < iteration}
            last_trained = iteration
        history.setdefault(iteration, {}).update(record)
    return history


def _records(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                record = _parse_record(line)
                if record is not None:
                    yield record
    except OSError:
        return


def _parse_record(line: str) -> dict[str, Any] | None:
    """
    None for a line that a kill cut short. Where a resumed run has written on in that line, its
    record is what begins at the last brace: Detectron2's are not nested.
    """
    try:
        record = json.loads(line[max(0, line.rfind("{")) :])
    except ValueError:
        return None
    is_one = isinstance(record, dict) and isinstance(record.get("iteration"), int)
    return record if is_one else None


def last_record(path: str) -> dict[str, Any]:
    """
    The last whole record of a run's metrics.json, without reading all of a long one; {} where
    there is none.
    """
    try:
        with open(os.path.join(path, "metrics.json"), "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 2**16))
            lines = f.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return next(filter(None, map(_parse_record, reversed(lines))), {})


# ---- What is wrong with a run ----------------------------------------------------------------


def _empty_result(run: Run) -> str | None:
    for name in _test_sets(run.config):
        if not math.isfinite(run.final(name).get("bbox/AP", math.nan)):
            return f"no box AP on {name}: it detects nothing there"
    return None


def _why_unfinished(run: Run) -> tuple[bool, str]:
    """Returns (whether it diverged, what to say)."""
    failure = _failure_in_log(os.path.join(run.path, "log.txt"))
    last = max(run.losses, default=None)
    not_finite = [i for i, loss in run.losses.items() if not math.isfinite(loss)]
    match = re.search(r"Loss became infinite or NaN at iteration=(\d+)", failure)
    if match or not_finite:
        return True, f"diverged: loss nan at iteration {match[1] if match else not_finite[0]}"
    if failure.startswith("FloatingPointError"):
        after = "" if last is None else f" after iteration {last}"
        return True, f"diverged{after}: {failure.removeprefix('FloatingPointError: ')}"
    by = f" by {failure}" if failure else ""
    if not os.path.isfile(os.path.join(run.path, "metrics.json")):
        return False, f"no metrics.json{', stopped' + by if by else ''}"
    max_iter = run.config["SOLVER.MAX_ITER"]
    if last is None:
        return False, f"stopped before its first losses{by}"
    if last < max_iter - 1:
        return False, f"stopped at iteration {last} of {max_iter}{by}"
    if not _test_sets(run.config):
        return False, "not evaluated: its DATASETS.TEST is empty"
    return False, f"trained to the end, but not evaluated there{', stopped' + by if by else ''}"


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
