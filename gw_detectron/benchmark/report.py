"""Costs as Markdown tables: medians with their spread, and ratios to what stands first."""

import io
import json
import math
import os
import statistics
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from ..errors import one_line
from .plot import Panel, save_bars

__all__ = ["Cost", "Failure", "Results", "Value", "cells", "geometric_mean", "table"]

_LONGEST = 300  # characters that a note has of an error's message


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        times: phase -> seconds, one a round.
        memory: what it is of -> bytes.
    """

    times: dict[str, list[float]]
    memory: dict[str, int]

    def value(self, quantity: str) -> "Value | None":
        """A time in ms, or memory in MB; None if it was not measured."""
        if quantity in self.times:
            return Value.of([1e3 * seconds for seconds in self.times[quantity]])
        return Value(self.memory[quantity] / 1e6) if quantity in self.memory else None


@dataclass(frozen=True)
class Value:
    """
    Attributes:
        number: a median where there is a spread.
        spread: the interquartile range as a share of the median; None for a single number.
    """

    number: float
    spread: float | None = None

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Value":
        median = statistics.median(rounds)
        if len(rounds) == 1:
            return cls(median)
        first, _, third = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(median, (third - first) / median)

    def cell(self, reference: "Value | None" = None) -> str:
        """E.g. "12.3 ±4% 0.81x": the number, its spread, and how many times the reference it is."""
        parts = [_three_digits(self.number)]
        if self.spread is not None:
            parts.append(f"±{100 * self.spread:.0f}%")
        if reference is not None:
            parts.append(f"{self.number / reference.number:.2f}x")
        return " ".join(parts)


def geometric_mean(values: Iterable[Value | None]) -> Value | None:
    """The ratio of two such means is the geometric mean of the ratios. None if a value is."""
    values = list(values)
    if None in values:
        return None
    return Value(math.exp(statistics.fmean(math.log(value.number) for value in values)))


def cells(values: Sequence[Value | None]) -> list[str]:
    """A cell each, with ratios to the first; "-" for what was not measured."""
    references = [None] + [values[0]] * (len(values) - 1)
    pairs = zip(values, references, strict=True)
    return ["-" if value is None else value.cell(reference) for value, reference in pairs]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned, so that it reads in a terminal as it is; the first column is text."""
    alignment = ("left",) + ("right",) * (len(header) - 1)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=alignment)


@dataclass
class Failure:
    """
    Attributes:
        traceback: of the first time.
        places: where it happened; none where it is clear.
    """

    traceback: str
    places: list[str] = field(default_factory=list)


@dataclass
class Results(ABC):
    """
    Attributes:
        about: what a reader of the figures has to know; heading -> text.
        notes: what is missing in the tables, and why.
        failures: the same for what failed, by what failed and the error.
        stopped: by a KeyboardInterrupt.
    """

    about: dict[str, str]
    notes: list[str] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    stopped: bool = False

    @abstractmethod
    def sections(self) -> dict[str, str]:
        """Heading -> its table."""

    @abstractmethod
    def panels(self) -> list[Panel]:
        """Of the picture."""

    @abstractmethod
    def raw(self) -> Any:
        """All that was measured, for JSON."""

    def fail(self, what: str, error: Exception, place: str | None = None) -> None:
        """Notes that `what` is missing: everywhere, or at a place."""
        message = one_line(error)
        if len(message) > _LONGEST:  # of a compiler, which says what matters at the end
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        trace = "".join(traceback.format_exception(error))
        failure = self.failures.setdefault(f"{what}: {message}", Failure(trace))
        failure.places += [place] if place else []

    def remarks(self) -> list[str]:
        """The notes and the failures, one line each."""
        failures = [
            f"{line} (at {', '.join(failure.places)})" if failure.places else line
            for line, failure in self.failures.items()
        ]
        return [*self.notes, *(f"Without {line}" for line in failures)]

    def markdown(self, level: int = 2) -> str:
        """
        Args:
            level: of the sections' headings.
        """
        lines = [f"- {heading}: {text}" for heading, text in self.about.items()]
        for title, text in self.sections().items():
            lines += ["", f"{'#' * level} {title}", "", text]
        for remark in self.remarks():
            lines += ["", remark]
        return "\n".join(lines) + "\n"

    def record(self) -> dict[str, Any]:
        """All that is known, for JSON."""
        failures = {line: vars(failure) for line, failure in self.failures.items()}
        return {"about": self.about, "results": self.raw(), "failures": failures}

    def save(self, folder: str) -> None:
        """
        Writes benchmark.png, benchmark.md and benchmark.json. A file that is there already stays
        as it is until the new one is complete.
        """
        os.makedirs(folder, exist_ok=True)
        panels = self.panels()
        picture = ""
        if panels and len(panels[0].names) > 1:
            picture = "![ratios](benchmark.png)\n"
            content = io.BytesIO()
            save_bars(panels, content)
            _replace(os.path.join(folder, "benchmark.png"), content.getvalue())
        text = f"# Benchmark\n\n{self.markdown()}\n{picture}"
        _replace(os.path.join(folder, "benchmark.md"), text.encode())
        text = json.dumps(self.record(), indent=1)
        _replace(os.path.join(folder, "benchmark.json"), text.encode())


def _replace(path: str, content: bytes) -> None:
    with open(f"{path}.unfinished", "wb") as f:
        f.write(content)
    os.replace(f"{path}.unfinished", path)


def _three_digits(number: float) -> str:
    if number <= 0:
        return "0"
    return f"{number:.{max(0, 2 - math.floor(math.log10(number)))}f}"
