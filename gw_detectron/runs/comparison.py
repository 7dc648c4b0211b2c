"""Trains a config with several norms and seeds, one run after another, and compares the results."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from detectron2.modeling import build_model
from tqdm import tqdm

from .. import config, engine
from ..config import differences, flatten
from ..errors import UsageError, building
from ..files import locked, make_folder
from .config_norms import Entry, parse_entries
from .plot import save_plot
from .run import Run, read_run
from .table import Table, experiment, make_table

__all__ = ["compare"]

_SECONDS_TO_END = 60  # it saves a checkpoint


def compare(args: argparse.Namespace, train_net: str) -> Table:
    """
    Makes those runs OUTPUT/<entry>/seed<k> that aren't finished, the first seed of all entries
    first, and writes comparison.md and comparison.png.

    Before the first run, every entry's config is read and its model built, and has to be that of
    the runs that are in its folder already. A run counts as finished when the evaluation at its
    last iteration is in its metrics.json. One that diverged is not run again either: with the same
    seed it would take the same course. On KeyboardInterrupt the run in progress is stopped, to be
    resumed by the next call.

    Args:
        args: of tools/compare_norms.py.
        train_net: the path of tools/train_net.py, which makes the runs.

    Returns:
        Table: of all runs in OUTPUT, those of earlier calls with other entries included.

    Raises:
        UsageError: on a mistake in args; another process is at work in OUTPUT.
    """
    planned = _plan(args)
    command = [sys.executable, train_net, "--config-file", args.config_file, "--resume"]
    command += ["--num-gpus", str(args.num_gpus), "--dist-url", "auto"]
    command += ["--trust-config"] * args.trust_config
    for dataset in args.dataset:
        command += ["--dataset", *dataset]
    command += args.opts
    make_folder(args.output, "--output")
    failures: dict[str, str | None] = {}
    with locked(args.output, "--output"):
        with tqdm(planned, disable=None) as bar:  # on a terminal, below the lines that stay
            for folder in bar:
                failures[folder] = _make(folder, [*command, *planned[folder]], bar)
        return _report(args.output, failures)


def _plan(args: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the folder of each run -> what its command ends with."""
    cfg = config.load_config(args.config_file, args.opts, args.trust_config)
    if not cfg.DATASETS.TEST:
        raise UsageError("DATASETS.TEST is empty, so there would be no AP to compare")
    entries = parse_entries(args.norms, flatten(cfg))
    for entry in entries:
        if {"SEED", "OUTPUT_DIR"} & {*args.opts[::2], *entry.overrides[::2]}:
            raise UsageError("SEED and OUTPUT_DIR are set by --seeds and --output, not overridden")
        try:
            _check(args, entry)
        except UsageError as error:
            raise UsageError(f'--norms "{entry.name}": {error}') from error
    planned = {}
    for seed in range(1, args.seeds + 1):
        for entry in entries:
            folder = str(Path(args.output, entry.folder, f"seed{seed}"))
            planned[folder] = [*entry.overrides, "SEED", str(seed), "OUTPUT_DIR", folder]
    return planned


def _check(args: argparse.Namespace, entry: Entry) -> None:
    """Reads the entry's config as tools/train_net.py does, and the runs that are there."""
    opts = [*args.opts, *entry.overrides, "MODEL.DEVICE", "cpu"]
    of_run = {"opts": opts, "eval_only": False, "resume": False, "num_gpus": 1, "num_machines": 1}
    cfg = engine.setup(argparse.Namespace(**vars(args) | of_run))
    ours = json.loads(json.dumps(experiment(flatten(cfg))))  # tuples are lists in config.yaml
    for run in map(read_run, map(str, Path(args.output, entry.folder).glob("seed*"))):
        theirs = experiment(run.config)
        if run.config and theirs != ours:
            there, here = differences([theirs, ours])
            raise UsageError(
                f"{run.path} was run with {there}, not {here}: choose another name or --output"
            )
    with building("the model"):
        build_model(cfg)


def _make(folder: str, command: list[str], bar: tqdm) -> str | None:
    """Makes a run that isn't over. Returns why it has failed, None if it hasn't."""
    run = read_run(folder)
    if run.is_over:
        again = f"; remove {folder} to run it again" if run.problem else ""
        return _say(f"{folder}: is there, {_outcome(run)}{again}")
    resumed = os.path.exists(os.path.join(folder, "last_checkpoint"))
    _say(f"{folder}: {'resumed' if resumed else 'started'}")
    last_line = _train(folder, command, bar)
    run = read_run(folder)
    failure = None if run.is_over else f"failed: {last_line}"
    if run.is_over and not run.problem:
        for path in Path(folder).glob("model_[0-9]*.pth"):  # not model_final.pth
            path.unlink()
    _say(f"{folder}: {failure or _outcome(run)}")
    return failure


def _say(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()


def _outcome(run: Run) -> str:
    aps = (f"{run.final(name)['bbox/AP']:.1f}" for name in run.test_sets)
    return run.problem or f"box AP {', '.join(aps)}"


def _train(folder: str, command: list[str], bar: tqdm) -> str:
    """
    Trains in a process group of its own, so that a Ctrl-C in the terminal reaches only this
    process, which ends it then. Returns the last line that it has printed, or the signal that has
    ended it.
    """
    os.makedirs(folder, exist_ok=True)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    last_line = ""
    with (
        open(os.path.join(folder, "console.txt"), "a", 1, encoding="utf-8") as console,
        subprocess.Popen(
            command, **pipes, encoding="utf-8", errors="replace", start_new_session=True
        ) as process,
    ):
        try:
            for line in process.stdout:
                console.write(line)
                last_line = line.strip() or last_line
                bar.set_postfix_str(last_line)
            status = process.wait()
            return f"ended by signal {-status}" if status < 0 else last_line
        except KeyboardInterrupt:
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.communicate(timeout=_SECONDS_TO_END)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _report(output: str, failures: Mapping[str, str | None]) -> Table:
    """Of these runs, and then of others that earlier calls have left in output."""
    folders = [*failures, *sorted(map(str, Path(output).glob("*/seed*")))]
    runs = map(read_run, dict.fromkeys(folders))
    table = make_table(replace(r, problem=failures.get(r.path) or r.problem) for r in runs)
    text = table.markdown()
    if table.lines:
        save_plot(table.lines, os.path.join(output, "comparison.png"))
        text += "\n![AP and training loss](comparison.png)\n"
    Path(output, "comparison.md").write_text(text, encoding="utf-8")
    return table
