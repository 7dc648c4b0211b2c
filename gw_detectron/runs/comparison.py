"""Runs what is compared, one after another, and goes on where it was stopped."""

import glob
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..checkpoint import require_weights
from ..config import choose_device, flatten, load_config, stated_keys
from ..data.coco import CocoDataset, adapt_config, register_datasets, require_files
from ..engine.check import check_config
from ..errors import UsageError, building
from ..files import locked
from . import training
from .entries import Entry, parse_entries
from .experiment import is_incidental
from .plot import save_plot
from .progress import Progress, duration
from .run import Run, last_record, read_run
from .state import State
from .table import Table, make_table

__all__ = ["Comparison", "prepare"]

_CONSOLE_FILE = "console.txt"
_SECONDS_BETWEEN_LOOKS = 1.0


def prepare(
    config_file: str,
    norms: Sequence[str],
    num_seeds: int,
    output: str,
    opts: Sequence[str] = (),
    datasets: Sequence[Sequence[str]] = (),
    num_gpus: int = 1,
    keep_checkpoints: bool = False,
) -> "Comparison":
    """
    Checks everything that can be checked before a run: every entry's config is read and its model
    built, and what is in the output directory already has to belong to the same comparison.

    Args:
        norms: entries, see :func:`parse_entries`.
        num_seeds: each entry is run with the seeds 1 to this.
        output: a directory; entries and seeds may be added to a comparison that is there.
        opts: overrides of all runs: KEY, VALUE, ...
        datasets: (name, annotations, image directory) each, as for tools/train_net.py.
        num_gpus: of each run; without GPUs, its processes.
        keep_checkpoints: of finished runs all, not the last one alone.

    Raises:
        UsageError: on a mistake in any of these.
    """
    _require_free_keys("the overrides", opts)
    if num_seeds < 1:
        raise UsageError(f"--seeds {num_seeds}: there must be one at least")
    gpus = torch.cuda.device_count()
    if num_gpus < 0 or 0 < gpus < num_gpus:
        raise UsageError(f"--num-gpus {num_gpus}: this machine has {gpus} GPUs")
    registered = register_datasets(datasets)
    config = _load_config(config_file, opts, registered, num_gpus)
    if not config["DATASETS.TEST"]:
        raise UsageError("DATASETS.TEST is empty, so there would be no AP to compare")
    entries = parse_entries(norms, config)
    state = State(
        {key: value for key, value in config.items() if not is_incidental(key)},
        {name: list(map(os.path.realpath, files)) for name, *files in datasets},
        {entry.folder: list(entry.overrides) for entry in entries},
    ).added_to(output)
    for entry in entries:
        _check(entry, config_file, opts, registered, num_gpus)
    return Comparison(
        config_file=config_file,
        opts=tuple(opts),
        datasets=tuple(map(tuple, datasets)),
        entries=tuple(entries),
        num_seeds=num_seeds,
        output=output,
        num_gpus=num_gpus,
        keep_checkpoints=keep_checkpoints,
        state=state,
    )


def _load_config(
    config_file: str,
    opts: Sequence[str],
    datasets: Sequence[CocoDataset],
    num_processes: int,
    build: bool = False,
) -> dict[str, Any]:
    cfg = load_config(config_file, opts)
    check_config(cfg)
    adapt_config(cfg, datasets, stated_keys(config_file, opts))
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        require_files(name)
    choose_device(cfg.clone(), num_processes)
    if build:
        require_weights(cfg)
        _build(cfg)
    return flatten(yaml.safe_load(cfg.dump()))


def _build(cfg: CfgNode) -> None:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    with building("the model"):
        build_model(cfg)


def _check(
    entry: Entry,
    config_file: str,
    opts: Sequence[str],
    datasets: Sequence[CocoDataset],
    num_processes: int,
) -> None:
    _require_free_keys(f'--norms "{entry.name}"', entry.overrides)
    try:
        _load_config(config_file, [*opts, *entry.overrides], datasets, num_processes, build=True)
    except UsageError as error:
        raise UsageError(f'--norms "{entry.name}": {error}') from error


def _require_free_keys(where: str, overrides: Sequence[str]) -> None:
    for key, option in (("SEED", "--seeds"), ("OUTPUT_DIR", "--output")):
        if key in overrides[0::2]:
            raise UsageError(f"{where}: {key} is set by {option}")


@dataclass(frozen=True)
class Comparison:
    """
    A directory of runs, OUTPUT/<entry>/seed<k>, and how to make those that are not there.

    A run counts as finished when the evaluation at its last iteration is in its metrics.json. One
    that diverged is not run again either: with the same seed it would take the same course.

    Attributes:
        state: of the directory, with the entries of earlier calls.
        failures: a run's directory -> why it ended early, of those that :meth:`run` has run.
    """

    config_file: str
    opts: tuple[str, ...]
    datasets: tuple[tuple[str, ...], ...]
    entries: tuple[Entry, ...]
    num_seeds: int
    output: str
    num_gpus: int
    keep_checkpoints: bool
    state: State
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, progress: Progress | None = None) -> Table:
        """
        Makes the runs that aren't finished, the first seed of all entries first, and writes
        comparison.md and comparison.png.

        On KeyboardInterrupt the run in progress is stopped, to be resumed by the next call.

        Returns:
            Table: of all runs in the directory, those of earlier calls with other entries included.

        Raises:
            UsageError: another process is at work in the output directory.
        """
        progress = progress or Progress(len(self.entries) * self.num_seeds)
        os.makedirs(self.output, exist_ok=True)
        with locked(self.output, "--output"):
            self.state.write(self.output)
            runs = [(e, seed) for seed in range(1, self.num_seeds + 1) for e in self.entries]
            for number, (entry, seed) in enumerate(runs, 1):
                title = f"run {number} of {len(runs)}: {entry.name}, seed {seed}"
                self._run_one(entry, seed, title, len(runs) - number, progress)
            return self._report()

    def _run_one(
        self, entry: Entry, seed: int, title: str, runs_after: int, progress: Progress
    ) -> None:
        folder = self.folder_of(entry, seed)
        run = read_run(folder)
        if run.finished:
            progress.say(f"{title}: is there, {_outcome(run)}")
            return
        if run.diverged:
            progress.say(f"{title}: is there, {run.problem}; remove {folder} to run it again")
            return
        began = time.monotonic()
        resumed = os.path.exists(os.path.join(folder, "last_checkpoint"))
        progress.say(f"{title}: {'resumed' if resumed else 'started'}, in {folder}")
        exit_status = self._train(entry, seed, title, runs_after, progress)
        run = read_run(folder)
        if run.finished and not resumed:
            progress.finished(time.monotonic() - began)
        if run.finished:
            self._remove_checkpoints(folder)
        else:
            self.failures[folder] = _why_failed(run, exit_status)
        outcome = self.failures.get(folder) or _outcome(run)
        progress.say(f"{title}: {outcome}, after {duration(time.monotonic() - began)}")

    def _train(
        self, entry: Entry, seed: int, title: str, runs_after: int, progress: Progress
    ) -> int:
        """Returns the exit status of its process."""
        folder = self.folder_of(entry, seed)
        os.makedirs(folder, exist_ok=True)
        process = training.start(
            self.arguments_of(entry, seed), os.path.join(folder, _CONSOLE_FILE)
        )
        began, began_at = time.monotonic(), time.time()
        try:
            while process.poll() is None:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                state, eta = _look(folder, began_at)
                times = progress.times(time.monotonic() - began, eta, runs_after)
                progress.show(f"{title} | {times} | {state}")
        finally:
            training.stop(process)
        return process.returncode

    def arguments_of(self, entry: Entry, seed: int) -> list[str]:
        """Of tools/train_net.py, for a run."""
        arguments = ["--config-file", self.config_file, "--resume"]
        arguments += ["--num-gpus", str(self.num_gpus), "--dist-url", "auto"]
        for dataset in self.datasets:
            arguments += ["--dataset", *dataset]
        arguments += [*self.opts, *entry.overrides, "SEED", str(seed)]
        return [*arguments, "OUTPUT_DIR", self.folder_of(entry, seed)]

    def folder_of(self, entry: Entry, seed: int) -> str:
        return os.path.join(self.output, entry.folder, f"seed{seed}")

    def _remove_checkpoints(self, folder: str) -> None:
        """Those on the way, which only a run that is resumed needs; model_final.pth stays."""
        if self.keep_checkpoints:
            return
        for path in glob.glob(os.path.join(glob.escape(folder), "model_*.pth")):
            if re.fullmatch(r"model_\d+\.pth", os.path.basename(path)):
                os.remove(path)

    def _report(self) -> Table:
        runs = []
        for folder in self.state.entries:
            for path in sorted(self._folders_of_seeds(folder), key=_seed_of):
                run = read_run(path)
                failure = None if run.finished else self.failures.get(path)
                runs.append(replace(run, problem=failure) if failure else run)
        table = make_table(runs)
        text = table.markdown()
        if table.lines:
            save_plot(table.lines, os.path.join(self.output, "comparison.png"))
            text += "\n![AP and training loss](comparison.png)\n"
        text += "\nThe overrides of each:\n\n" + "".join(
            f"- {folder}: `{' '.join(overrides)}`\n"
            for folder, overrides in self.state.entries.items()
        )
        with open(os.path.join(self.output, "comparison.md"), "w", encoding="utf-8") as f:
            f.write(text)
        return table

    def _folders_of_seeds(self, entry_folder: str) -> set[str]:
        """On disk or of this call."""
        pattern = os.path.join(glob.escape(os.path.join(self.output, entry_folder)), "seed*")
        on_disk = {path for path in glob.glob(pattern) if _seed_of(path)}
        return on_disk | {
            self.folder_of(entry, seed)
            for entry in self.entries
            for seed in range(1, self.num_seeds + 1)
            if entry.folder == entry_folder
        }


def _seed_of(path: str) -> int:
    match = re.fullmatch(r"seed(\d+)", os.path.basename(path))
    return int(match[1]) if match else 0


def _outcome(run: Run) -> str:
    if run.problem:
        return run.problem
    return ", ".join(
        f"{metric.replace('bbox/', 'box ').replace('segm/', 'mask ')} {final[metric]:.1f}"
        for final in map(run.final, run.evaluations)
        for metric in ("bbox/AP", "segm/AP")
        if metric in final
    )


def _why_failed(run: Run, exit_status: int) -> str:
    if run.diverged:
        return run.problem
    if exit_status < 0:
        return f"failed: ended by signal {-exit_status}"
    try:
        with open(os.path.join(run.path, _CONSOLE_FILE), encoding="utf-8", errors="replace") as f:
            last_lines = [line.strip() for line in f if line.strip()]
    except OSError:
        last_lines = []
    return f"failed: {last_lines[-1] if last_lines else run.problem}"


def _look(folder: str, since: float) -> tuple[str, float | None]:
    """Where a run is, and in how many seconds it is trained (None if unknown)."""
    path = os.path.join(folder, "metrics.json")
    has_news = os.path.exists(path) and os.path.getmtime(path) >= since
    record = last_record(folder) if has_news else {}
    if not record:
        return "no losses yet", None
    if "total_loss" not in record:
        return f"iteration {record['iteration']}, evaluated", None
    eta = record.get("eta_seconds")
    text = f"iteration {record['iteration']}, loss {record['total_loss']:.3g}"
    return (f"{text}, eta {duration(eta)}" if eta is not None else text), eta
