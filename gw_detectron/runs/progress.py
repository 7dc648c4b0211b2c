"""How far a comparison is, on one line of a terminal that changes, or now and then in a log."""

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Progress", "duration"]

_SECONDS_BETWEEN_LINES = 60


class Progress:
    """
    Args:
        total: how many runs there are.
        out: where to; only a terminal gets a line that changes.
    """

    def __init__(self, total: int, out: TextIO | None = None):
        self.total = total
        self.out = out or sys.stdout
        self.began = time.monotonic()
        self._changes = self.out.isatty()
        self._last_line = self.began
        self._durations: list[float] = []  # of this call's runs

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        print(f"\r\033[K{text}" if self._changes else text, file=self.out, flush=True)
        self._last_line = time.monotonic()

    def show(self, text: str) -> None:
        """Shows what changes all the time."""
        if self._changes:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=self.out, flush=True)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self.say(text)

    def finished(self, seconds: float) -> None:
        """Takes note of how long a whole run took, for the estimates."""
        self._durations.append(seconds)

    def times(self, elapsed: float, eta: float | None, runs_after: int) -> str:
        """
        E.g. "12 min so far, about 1 h 05 min left".

        Args:
            elapsed, eta: seconds of the run that is in progress, and until its end; None: unknown.
            runs_after: how many come after it.
        """
        so_far = f"{duration(time.monotonic() - self.began)} so far"
        if self._durations:
            of_a_run = sum(self._durations) / len(self._durations)
            eta = max(0.0, of_a_run - elapsed) if eta is None else eta
        elif eta is None:
            return so_far
        else:
            of_a_run = elapsed + eta
        return f"{so_far}, about {duration(eta + runs_after * of_a_run)} left"


def duration(seconds: float) -> str:
    """E.g. "45 s", "12 min", "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
