"""Costs as Markdown tables: medians with their spread, and ratios to what stands first."""

import json
import math
import os
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from .plot import Panel, save_bars

__all__ = ["Cost", "Results", "Value", "cells", "geometric_mean", "table"]


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        times: phase -> seconds, one a round.
        memory: what it is of -> bytes.
    """

    times: dict[str, list[float]]
    memory: dict[str, int]

    def value(self, quantity: str) -> "Value":
        """A time in ms, or memory in MB."""
        if quantity in self.times:
            return Value.of([1e3 * seconds for seconds in self.times[quantity]])
        return Value(self.memory[quantity] / 1e6)


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


def geometric_mean(values: Iterable[Value]) -> Value:
    """The ratio of two such means is the geometric mean of the ratios."""
    return Value(math.exp(statistics.fmean(math.log(value.number) for value in values)))


def cells(values: Sequence[Value]) -> list[str]:
    """A cell each, with ratios to the first."""
    reference, *others = values
    return [reference.cell(), *(value.cell(reference) for value in others)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned, so that it reads in a terminal as it is; the first column is text."""
    alignment = ("left",) + ("right",) * (len(header) - 1)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=alignment)


@dataclass
class Results(ABC):
    """
    Attributes:
        about: what a reader of the figures has to know; heading -> text.
        notes: what is missing in the tables, and why.
        stopped: by a KeyboardInterrupt.
    """

    about: dict[str, str]
    notes: list[str] = field(default_factory=list)
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

    def markdown(self) -> str:
        lines = [f"- {heading}: {text}" for heading, text in self.about.items()]
        for title, text in self.sections().items():
            lines += ["", f"## {title}", "", text]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def save(self, folder: str) -> None:
        """Writes benchmark.md, benchmark.png and benchmark.json."""
        os.makedirs(folder, exist_ok=True)
        panels = self.panels()
        picture = "![ratios](benchmark.png)\n" if len(panels[0].names) > 1 else ""
        if picture:
            save_bars(panels, os.path.join(folder, "benchmark.png"))
        with open(os.path.join(folder, "benchmark.md"), "w", encoding="utf-8") as f:
            f.write(f"# Benchmark\n\n{self.markdown()}\n{picture}")
        with open(os.path.join(folder, "benchmark.json"), "w", encoding="utf-8") as f:
            json.dump({"about": self.about, "results": self.raw()}, f, indent=1)


def _three_digits(number: float) -> str:
    if number <= 0:
        return "0"
    return f"{number:.{max(0, 2 - math.floor(math.log10(number)))}f}"
