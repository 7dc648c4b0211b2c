"""
Times of several things that are compared, taken in turns.

What slows the machine down for a while then slows all of them: each round runs everything once,
beginning with another one each time, and ratios are of medians over the same rounds.

On a CPU with one thread the clock is the process's CPU time, which stands still while other
programs have the core. With several threads that would count those that wait, so there it is wall
time, which is what a user sees. On a GPU it is CUDA events: work is queued as in training, and
nothing waits for the host in between. Small work is then bound by the host, which launches the
kernels one by one; what the GPU takes alone is measured by a CUDA graph that holds many steps.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch

__all__ = ["Replay", "Subject", "Times", "copy_bandwidth", "interleaved"]

# Runs once through its phases, and calls its argument with a phase's name at the end of each, and
# with "" at the end of what is not to be counted
Subject = Callable[[Callable[[str], None]], None]
Times = dict[str, dict[str, list[float]]]  # subject -> phase -> seconds, one a round

_LEAST_SECONDS = 0.02  # of a measurement; what is shorter is repeated within it
_COPIED_BYTES = 2**28  # beyond any cache


def interleaved(
    subjects: Mapping[str, Subject], rounds: int, device: torch.device
) -> Iterator[Times]:
    """
    Yields after each round the times so far, the same dict every time: (round + 1) values a phase.
    """
    repeats = {}
    for name, subject in subjects.items():
        _run(subject, 1, device)  # whatever happens on a first call only
        seconds = sum(_run(subject, 1, device).values())
        repeats[name] = math.ceil(_LEAST_SECONDS / max(seconds, 1e-5))
    times: Times = {name: {} for name in subjects}
    names = list(subjects)
    for turn in range(rounds):
        first = turn % max(1, len(names))
        of_round = {
            name: _run(subjects[name], repeats[name], device)
            for name in names[first:] + names[:first]
        }
        for name, phases in of_round.items():
            for phase, seconds in phases.items():
                times[name].setdefault(phase, []).append(seconds)
        yield times


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a copy that no cache holds; the median of 20."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy(lap: Callable[[str], None]) -> None:
        target.copy_(source)
        lap("copy")

    for times in interleaved({"copy": copy}, 20, device):
        seconds = times["copy"]["copy"]
    return 2 * _COPIED_BYTES / sorted(seconds)[len(seconds) // 2]


class Replay:
    """
    A Subject with one phase, `steps` times what a GPU does in a call of `step`, without the host.

    Args:
        step: works on the same tensors every time, on a GPU, and has run before.

    Raises:
        RuntimeError: the step waits for the GPU, or does something else that a CUDA graph can't
            hold.
    """

    phase, steps = "replay", 8

    def __init__(self, step: Callable[[], object]) -> None:
        before, side = torch.cuda.current_stream(), _side_stream()
        side.wait_stream(before)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                step()
                _require_no_waiting(step)  # which would leave PyTorch with a broken capture
            before.wait_stream(side)
            with torch.cuda.graph(self.graph, stream=side):
                for _ in range(self.steps):
                    step()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails leaves its own

    def __call__(self, lap: Callable[[str], None]) -> None:
        self.graph.replay()
        lap(self.phase)


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream()


def _require_no_waiting(step: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _run(subject: Subject, repeats: int, device: torch.device) -> dict[str, float]:
    """Phase -> seconds of one repeat, their mean."""
    moment, seconds_between = _clock(device)
    marks = [("", moment())]
    for _ in range(repeats):
        subject(lambda phase: marks.append((phase, moment())))
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds: dict[str, float] = {}
    for (_, start), (phase, end) in zip(marks, marks[1:], strict=False):
        if phase:
            seconds[phase] = seconds.get(phase, 0.0) + seconds_between(start, end) / repeats
    return seconds


def _clock(device: torch.device) -> tuple[Callable, Callable]:
    """(takes a moment, seconds from one moment to another)."""
    if device.type == "cuda":

        def moment() -> torch.cuda.Event:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        return moment, lambda start, end: start.elapsed_time(end) / 1000
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    return clock, lambda start, end: end - start
