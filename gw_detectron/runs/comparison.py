"""Trains a config with several norms and seeds, one run after another, and compares the results."""

import argparse
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tqdm import tqdm

from .. import config, engine
from ..config import differences, flatten
from ..errors import UsageError, building
from ..files import LOCK_FILE, locked, whole_file
from .config_norms import Entry, parse_entries
from .experiment import is_incidental
from .plot import save_plot
from .run import Run, read_run
from .table import Table, make_table

__all__ = ["compare"]

_CONSOLE_FILE = "console.txt"
_STATE_FILE = "comparison.json"
_PROGRESS = "{n_fmt} of {total_fmt} made in {elapsed}, {remaining} left; {desc}"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_END = 60  # it saves a checkpoint


class _Planned(NamedTuple):
    title: str
    folder: str
    overrides: tuple[str, ...]


def compare(args: argparse.Namespace, train_net: str) -> Table:
    """
    Makes those runs OUTPUT/<entry>/seed<k> that aren't finished, the first seed of all entries
    first, and writes comparison.md and comparison.png.

    Before the first run, everything is checked that can be: every entry's config is read and its
    model built, and what is in OUTPUT already has to belong to the same comparison. A run counts as
    finished when the evaluation at its last iteration is in its metrics.json. One that diverged is
    not run again either: with the same seed it would take the same course. On KeyboardInterrupt
    the run in progress is stopped, to be resumed by the next call.

    Args:
        args: of tools/compare_norms.py.
        train_net: the path of tools/train_net.py, which makes the runs.

    Returns:
        Table: of all runs in OUTPUT, those of earlier calls with other entries included.

    Raises:
        UsageError: on a mistake in args; another process is at work in OUTPUT.
    """
    common, entries = _read(args)
    state = _state(args, common, entries)
    planned = _plan(args, entries)
    os.makedirs(args.output, exist_ok=True)
    failures: dict[str, str] = {}
    with locked(args.output, "--output"):
        with whole_file(os.path.join(args.output, _STATE_FILE)) as file:
            json.dump(state, file, indent=1)
        # On a terminal a line that changes, beside those that stay
        with tqdm(total=len(planned), bar_format=_PROGRESS, disable=None) as bar:
            for run in planned:
                failure = _make(run, _command(args, train_net), args.keep_checkpoints, bar)
                failures |= {run.folder: failure} if failure else {}
        return _report(args.output, state["entries"], failures)


# ---- Before the runs -------------------------------------------------------------------------


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the config that all runs have in common, by full keys, and the entries."""
    _require_free_keys("the overrides", args.opts)
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: there must be one at least")
    weights = config.load_config(args.config_file, args.opts, args.trust_config).MODEL.WEIGHTS
    common = flatten(_load(args, "MODEL.WEIGHTS", ""))  # each entry may have its own
    if not common["DATASETS.TEST"]:
        raise UsageError("DATASETS.TEST is empty, so there would be no AP to compare")
    return common | {"MODEL.WEIGHTS": weights}, parse_entries(args.norms, common)


def _require_free_keys(where: str, overrides: Sequence[str]) -> None:
    for key, option in (("SEED", "--seeds"), ("OUTPUT_DIR", "--output")):
        if key in overrides[0::2]:
            raise UsageError(f"{where}: {key} is set by {option}")


def _load(args: argparse.Namespace, *overrides: str) -> CfgNode:
    """As tools/train_net.py does."""
    of_run = {"opts": [*args.opts, *overrides], "eval_only": False, "resume": False}
    with contextlib.redirect_stdout(io.StringIO()):  # it says each time that there is no GPU
        return engine.load_config(argparse.Namespace(**vars(args) | of_run, num_machines=1))


def _plan(args: argparse.Namespace, entries: Sequence[Entry]) -> list[_Planned]:
    for entry in entries:
        _require_free_keys(f'--norms "{entry.name}"', entry.overrides)
        try:
            cfg = _load(args, *entry.overrides).clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = "cpu"
            with building("the model"):
                build_model(cfg)
        except UsageError as error:
            raise UsageError(f'--norms "{entry.name}": {error}') from error
    runs = [(entry, seed) for seed in range(1, args.seeds + 1) for entry in entries]
    return [
        _Planned(
            f"run {number} of {len(runs)}: {entry.name}, seed {seed}",
            os.path.join(args.output, entry.folder, f"seed{seed}"),
            (*entry.overrides, "SEED", str(seed)),
        )
        for number, (entry, seed) in enumerate(runs, 1)
    ]


def _state(
    args: argparse.Namespace, common: dict[str, Any], entries: Sequence[Entry]
) -> dict[str, Any]:
    """
    What comparison.json is to hold, so that no other runs get among those in OUTPUT: "config", what
    all have in common; "datasets"; "entries", a folder's overrides, those of earlier calls first.

    Raises:
        UsageError: OUTPUT holds something else, or one of the entries with other overrides.
    """
    state = {
        "config": {key: value for key, value in common.items() if not is_incidental(key)},
        "datasets": {name: list(map(os.path.realpath, files)) for name, *files in args.dataset},
        "entries": {entry.folder: entry.overrides for entry in entries},
    }
    state = json.loads(json.dumps(state))  # tuples are lists there
    if not os.path.exists(args.output) or set(os.listdir(args.output)) <= {LOCK_FILE}:
        return state
    try:
        with open(os.path.join(args.output, _STATE_FILE), encoding="utf-8") as file:
            before = json.load(file)
        there, here = ({**s["config"], **s["datasets"]} for s in (before, state))
        state["entries"] = before["entries"] | state["entries"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{args.output} is not empty, and {_STATE_FILE} in it can't be read: "
            "choose another --output"
        ) from error
    if there != here:
        theirs, ours = differences([there, here])
        raise UsageError(
            f"{args.output} holds a comparison with {theirs}, not {ours}: choose another --output"
        )
    for entry, overrides in before["entries"].items():
        if overrides != state["entries"][entry]:
            raise UsageError(
                f"{args.output} holds another {entry}, {' '.join(overrides)}: "
                "choose another name or --output"
            )
    return state


# ---- A run -----------------------------------------------------------------------------------


def _command(args: argparse.Namespace, train_net: str) -> list[str]:
    """What makes a run, without the overrides that tell it from the others."""
    command = [sys.executable, train_net, "--config-file", args.config_file, "--resume"]
    command += ["--num-gpus", str(args.num_gpus), "--dist-url", "auto"]
    command += ["--trust-config"] * args.trust_config
    for dataset in args.dataset:
        command += ["--dataset", *dataset]
    return [*command, *args.opts]


def _make(planned: _Planned, command: list[str], keep_checkpoints: bool, bar: tqdm) -> str | None:
    """Returns why it has failed, None if it hasn't."""
    title, folder = planned.title, planned.folder
    run = read_run(folder)
    if run.finished or run.diverged:
        bar.total -= 1
        again = f"; remove {folder} to run it again" if run.diverged else ""
        return _say(f"{title}: is there, {_outcome(run)}{again}")
    resumed = os.path.exists(os.path.join(folder, "last_checkpoint"))
    _say(f"{title}: {'resumed' if resumed else 'started'}, in {folder}")
    began = time.monotonic()
    exit_status = _train(planned, command, bar)
    bar.update()
    run = read_run(folder)
    failure = None if run.finished else _why_failed(run, exit_status)
    if run.finished and not keep_checkpoints:
        for path in Path(folder).glob("model_[0-9]*.pth"):  # not model_final.pth
            path.unlink()
    duration = tqdm.format_interval(time.monotonic() - began)
    _say(f"{title}: {failure or _outcome(run)}, after {duration}")
    return failure


def _train(planned: _Planned, command: list[str], bar: tqdm) -> int:
    """
    Trains in a process group of its own, so that a Ctrl-C in the terminal reaches only this
    process, which ends it then. Returns the exit status.
    """
    os.makedirs(planned.folder, exist_ok=True)
    with open(os.path.join(planned.folder, _CONSOLE_FILE), "ab") as console:
        process = subprocess.Popen(
            [*command, *planned.overrides, "OUTPUT_DIR", planned.folder],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_SECONDS_BETWEEN_LOOKS)
            bar.set_description_str(f"{planned.title}: {_last_line(planned.folder)}")
    finally:
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """Ends it, if it hasn't ended, and all that it has started."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(_SECONDS_TO_END)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _say(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()


def _outcome(run: Run) -> str:
    return run.problem or ", ".join(
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
    return f"failed: {_last_line(run.path) or run.problem}"


def _last_line(folder: str) -> str:
    """Of what a run has printed, without the time."""
    with open(os.path.join(folder, _CONSOLE_FILE), "rb") as console:
        console.seek(max(0, console.seek(0, os.SEEK_END) - 2**12))
        lines = console.read().decode("utf-8", "replace").split("\n")
    last = next(filter(None, map(str.strip, reversed(lines))), "")
    return re.sub(r"^\[[^\]]*\]: +", "", last)


# ---- After the runs --------------------------------------------------------------------------


def _report(output: str, entries: dict[str, list[str]], failures: dict[str, str]) -> Table:
    runs = []
    for entry in entries:
        folders = sorted(Path(output, entry).glob("seed*"), key=lambda path: (len(path.name), path))
        for run in map(read_run, map(str, folders)):
            runs.append(replace(run, problem=failures.get(run.path, run.problem)))
    table = make_table(runs)
    text = table.markdown()
    if table.lines:
        save_plot(table.lines, os.path.join(output, "comparison.png"))
        text += "\n![AP and training loss](comparison.png)\n"
    overrides = [f"- {entry}: `{' '.join(overrides)}`\n" for entry, overrides in entries.items()]
    text += "\nThe overrides of each:\n\n" + "".join(overrides)
    Path(output, "comparison.md").write_text(text, encoding="utf-8")
    return table
