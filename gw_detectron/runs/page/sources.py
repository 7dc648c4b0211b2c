"""What a command line names as runs: directories or results files, and what to call each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UsageError
from ..run import Run, find_runs, tell_apart

__all__ = ["Source", "common_dataset", "find_sources"]

_RESULTS = os.path.join("inference", "coco_instances_results.json")
_WEIGHTS = "model_final.pth"


@dataclass(frozen=True)
class Source:
    """
    Where a run's detections come from.

    Attributes:
        label: its name, different from those of the other runs.
        path: of the run's directory, or of a results file alone.
        config: the run's, by full keys; empty for a results file.
    """

    label: str
    path: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        return os.path.join(self.path, _WEIGHTS)

    def results_of(self, dataset: str) -> str | None:
        """
        The file with its detections on a dataset; None where it has to be run. Detectron2 has one
        file for all DATASETS.TEST, in which the last one's results stay.
        """
        if not self.config:
            return self.path
        path = os.path.join(self.path, _RESULTS)
        is_of_it = _test_sets(self.config)[-1:] == [dataset]
        return path if is_of_it and os.path.isfile(path) else None


def _test_sets(config: dict[str, Any]) -> list[str]:
    return list(config.get("DATASETS.TEST") or [])


def find_sources(texts: Sequence[str]) -> tuple[list[Source], list[str]]:
    """
    Args:
        texts: each the path of a run, of a directory with several, or of a results file in COCO's
            format; or LABEL=PATH. Without a label, a run is called by its norms.

    Returns:
        The sources in the order given, and a line for each run that is left out of a directory with
        several, since it has neither results nor final weights.

    Raises:
        UsageError: there is no such path, or nothing of use in it; two are the same.
    """
    sources: list[Source] = []
    left_out: list[str] = []
    for text in texts:
        label, path = _split(text)
        if os.path.isfile(path):
            sources.append(Source(label or os.path.splitext(os.path.basename(path))[0], path))
            continue
        runs = find_runs([path])
        usable = [run for run in runs if _is_usable(run)]
        unusable = [f"{run.path}: {_why_unusable(run)}" for run in runs if run not in usable]
        if not usable:
            raise UsageError(unusable[0])
        sources += [Source(label or run.label, run.path, run.config) for run in usable]
        left_out += unusable
    return _told_apart(sources), left_out


def _split(text: str) -> tuple[str, str]:
    """Paths may have a "=" in them, and labels too."""
    if os.path.exists(text):
        return "", text
    for at, character in enumerate(text):
        if character == "=" and at > 0 and os.path.exists(text[at + 1 :]):
            return text[:at], text[at + 1 :]
    raise UsageError(f"there is no run directory or results file {text}")


def _is_usable(run: Run) -> bool:
    files = (_RESULTS, _WEIGHTS)
    return bool(run.config) and any(os.path.isfile(os.path.join(run.path, f)) for f in files)


def _why_unusable(run: Run) -> str:
    if not run.config:
        return f"{run.problem}; a results file alone can be given instead"
    state = f" ({run.problem})" if run.problem else ""
    return f"it has neither {_RESULTS} nor {_WEIGHTS}{state}"


def _told_apart(sources: list[Source]) -> list[Source]:
    """Those of one label get the part of their paths that they don't share."""
    paths = [os.path.realpath(source.path) for source in sources]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise UsageError(f"{sources[index].path} is given twice")
    labels = tell_apart([source.label for source in sources], paths)
    return [replace(s, label=label) for s, label in zip(sources, labels, strict=True)]


def common_dataset(sources: Sequence[Source]) -> str:
    """
    The dataset that the runs were evaluated on.

    Raises:
        UsageError: there is none, or more than one.
    """
    names = [_test_sets(source.config) for source in sources if source.config]
    candidates = [name for name in names[0] if all(name in n for n in names)] if names else []
    if len(candidates) == 1:
        return candidates[0]
    known = ", ".join(dict.fromkeys(name for of_run in names for name in of_run))
    raise UsageError(
        "which dataset is to be shown? Name it with --on"
        + (f": the runs were evaluated on {known}" if known else "")
    )
