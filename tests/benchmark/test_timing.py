from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("detectron2")

import torch

from gw_detectron.benchmark import timing

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a subject lets it go on."""
    now = [0.0]
    monkeypatch.setattr(timing, "_clock", lambda device: (lambda: now[0], lambda a, b: b - a))

    def subject(log, name, **phases):
        def run(lap):
            log.append(name)
            for phase, seconds in phases.items():
                now[0] += seconds
                lap(phase)

        return run

    return subject


def test_each_round_runs_everything_once_and_begins_with_another(clock):
    log = []
    subjects = {name: clock(log, name, work=1.0) for name in "abc"}
    rounds = timing.interleaved(subjects, 4, CPU)
    next(rounds)
    del log[:-3]
    list(rounds)
    assert "".join(log) == "abc" + "bca" + "cab" + "abc"


def test_times_of_the_rounds_so_far(clock):
    subjects = {
        "fast": clock([], "fast", forward=1.0, backward=2.0),
        "slow": clock([], "slow", forward=10.0, backward=20.0),
    }
    for count, times in enumerate(timing.interleaved(subjects, 3, CPU), start=1):
        assert times == {
            "fast": {"forward": [1.0] * count, "backward": [2.0] * count},
            "slow": {"forward": [10.0] * count, "backward": [20.0] * count},
        }
    assert count == 3


def test_what_is_short_is_repeated_and_its_mean_taken(clock):
    log = []
    subjects = {"short": clock(log, "short", forward=0.001, backward=0.003)}
    (times,) = timing.interleaved(subjects, 1, CPU)
    assert len(log) == 2 + 5  # 20 ms
    assert times["short"] == {
        "forward": pytest.approx([0.001]),
        "backward": pytest.approx([0.003]),
    }


def test_what_ends_with_no_name_does_not_count(clock):
    def subject(lap):
        for phase in ("", "work"):
            clock([], "", **{phase: 1.0})(lap)

    (times,) = timing.interleaved({"a": subject}, 1, CPU)
    assert times == {"a": {"work": [1.0]}}


class Cuda:
    """torch.cuda as far as a capture needs it: one current stream, a graph that holds calls."""

    def __init__(self, monkeypatch):
        self.stream_now, self.mode, self.steps, self.capturing = "main", "default", [], None
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.steps.append("replay"))
        self.Stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.main = SimpleNamespace(wait_stream=lambda other: None)
        self.stream_now = self.main
        for name in (
            "CUDAGraph", "Stream", "stream", "graph", "current_stream", "set_stream",
            "set_sync_debug_mode",
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        timing._side_stream.cache_clear()

    def current_stream(self):
        return self.stream_now

    def set_stream(self, stream):
        self.stream_now = stream

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    @contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    @contextmanager
    def graph(self, graph, stream):
        self.capturing, self.stream_now = graph, stream
        yield
        self.capturing, self.stream_now = None, self.main

    def step(self):
        """What waits for the GPU raises in mode "error" only."""
        assert self.stream_now is not self.main
        self.steps.append("captured" if self.capturing else self.mode)


@pytest.fixture
def cuda(monkeypatch):
    yield Cuda(monkeypatch)
    timing._side_stream.cache_clear()


def test_a_replay_captures_several_steps_after_two_on_a_side_stream(cuda):
    replay = timing.Replay(cuda.step)
    assert cuda.steps == ["default", "error"] + ["captured"] * replay.steps
    assert cuda.stream_now is cuda.main and cuda.mode == "default"
    laps = []
    replay(laps.append)
    assert cuda.steps[-1] == "replay" and laps == ["replay"]


@pytest.mark.parametrize("when", ["waits", "in the capture"])
def test_a_step_that_cannot_be_captured_leaves_the_stream_as_it_was(cuda, when):
    def step():
        if cuda.mode == "error" if when == "waits" else cuda.capturing:
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        timing.Replay(step)
    assert cuda.stream_now is cuda.main and cuda.mode == "default"


def test_bandwidth_counts_what_is_read_and_what_is_written(monkeypatch):
    monkeypatch.setattr(timing, "_COPIED_BYTES", 1000)
    given = [{"copy": {"copy": [0.5, 0.1, 0.2]}}]
    monkeypatch.setattr(timing, "interleaved", lambda *args: given)
    assert timing.copy_bandwidth(CPU) == pytest.approx(2 * 1000 / 0.2)


def test_the_clock_of_one_thread_does_not_count_waiting(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert timing._clock(CPU)[0] is timing.time.process_time
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert timing._clock(CPU)[0] is timing.time.perf_counter
