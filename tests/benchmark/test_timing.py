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
