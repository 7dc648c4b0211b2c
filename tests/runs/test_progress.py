import io

import pytest

from gw_detectron.runs import progress as module
from gw_detectron.runs.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(module, "time", clock := Clock())
    return clock


def test_a_terminal_has_one_line_that_changes():
    progress = Progress(2, out := Terminal())
    progress.show("iteration 19")
    progress.show("iteration 39")
    progress.say("done")
    assert out.getvalue() == "\r\033[Kiteration 19\r\033[Kiteration 39\r\033[Kdone\n"


def test_a_log_has_a_line_a_minute(clock):
    progress = Progress(2, out := io.StringIO())
    for second in range(150):
        clock.now = 1000.0 + second
        progress.show(f"second {second}")
    assert out.getvalue() == "second 60\nsecond 120\n"


def test_what_is_left_is_estimated_from_this_run_and_then_from_finished_ones(clock):
    progress = Progress(5, io.StringIO())
    clock.now += 120
    assert progress.times(elapsed=120, eta=None, runs_after=3) == "2 min so far"
    # 180 s of this run, and 3 runs of 300 s
    assert progress.times(120, 180, 3) == "2 min so far, about 18 min left"
    progress.finished(400)
    assert progress.times(120, 180, 3) == "2 min so far, about 23 min left"
    assert progress.times(100, None, 0) == "2 min so far, about 5 min left"


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text
