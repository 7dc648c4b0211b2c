"""Costs as Markdown tables and as a picture: medians with their spread, ratios to a baseline."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from ..errors import one_line
from ..files import whole_file
from .costs import ALONE, SAVED, STEP, Costs
from .workload import LayerInput

_LONGEST = 300  # characters that a note has of an error's message
# How often GW has at least to read or write something of x's size: the forward reads x for the
# statistics, and again to write y; the backward reads x and dy, and both again to write dx
_TRAFFIC = {"inference, ms": 3, f"{STEP}, ms": 8, ALONE: 8}
_SHORTEST = 1 / 64  # of the picture's ratios: what FrozenBN saves would leave no room for others
_LEAST_RATIO = 1.25  # on its axis, or a hundredth would look like a difference


@dataclass
class Results:
    """
    Attributes:
        about: what a reader of the figures has to know; heading -> text.
        names: of norms or models, the baseline first.
        costs: by name, at each input of layers; or of whole models, at None.
        notes: what is missing, and why -> at which inputs.
        bandwidth: values of the inputs' type that a copy on the GPU reads and writes a second.
    """

    about: dict[str, str]
    names: Sequence[str] = ()
    costs: list[tuple[LayerInput | None, dict[str, Costs]]] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    bandwidth: float = math.nan

    def fail(self, what: str, error: Exception, at: LayerInput | None = None) -> None:
        """Notes that `what` is missing."""
        message = one_line(error)
        if len(message) > _LONGEST:  # of a compiler, which says what matters at the end
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        places = self.notes.setdefault(f"Without {what}: {message}", [])
        if at and at.label not in places:
            places.append(at.label)

    def measured(self) -> list[str]:
        """The names without those that have failed everywhere."""
        return [name for name in self.names if any(name in of for _, of in self.costs)]

    def markdown(self) -> str:
        parts = ["\n".join(f"- {heading}: {text}" for heading, text in self.about.items())]
        quantities = self._quantities()
        if self.costs and self.costs[0][0] is None:
            columns = [_cells(self._values(quantity)[0]) for quantity in quantities]
            rows = list(zip(self.measured(), *columns, strict=True))
            parts.append(_table(["model", *quantities], rows))
        else:
            for quantity in quantities:
                title = f"### {quantity[0].upper()}{quantity[1:]}"
                parts += [title, self._layers_table(quantity)]
        parts += [f"{n} (at {', '.join(at)})" if at else n for n, at in self.notes.items()]
        return "\n\n".join(parts)

    def record(self) -> dict[str, Any]:
        """All that was measured, for JSON."""
        results = []
        for at, of in self.costs:
            place = at and {"shape": at.shape, "options": at.layer.extra_repr(), "layers": at.names}
            results.append({**(place or {}), "costs": of})
        return {"about": self.about, "notes": self.notes, "results": results}

    def draw(self) -> Figure:
        """Ratios to the baseline, a panel for each quantity."""
        quantities = [q for q in self._quantities() if not q.startswith("peak")]
        names, labels = self.measured(), [at.label if at else "" for at, _ in self.costs]
        size = 4 * len(quantities), 1.4 + 0.13 * len(names) * len(labels)  # inches
        with matplotlib.style.context("seaborn-v0_8-colorblind"):
            figure = Figure(size, dpi=120, layout="constrained")
            FigureCanvasAgg(figure)
            panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
            for panel, quantity in zip(panels, quantities, strict=True):
                medians = self._medians(quantity)
                _draw(panel, names[1:], labels, medians[:, 1:] / medians[:, :1])
                panel.set_title(quantity.rpartition(",")[0], loc="left", fontweight="bold")
                panel.set_xlabel(f"times {names[0]}")
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=4)
        return figure

    def _quantities(self) -> list[str]:
        """Times first, memory then."""
        all_costs = [cost for _, of in self.costs for cost in of.values()]
        return sorted({q: 0 for cost in all_costs for q in cost}, key=lambda q: q.endswith("MB"))

    def _values(self, quantity: str) -> list[list[list[float]]]:
        """At each input, by name, those of all rounds; [nan] for what is missing."""
        names = self.measured()
        return [[of.get(n, {}).get(quantity, [math.nan]) for n in names] for _, of in self.costs]

    def _medians(self, quantity: str) -> np.ndarray:
        """(inputs, names)"""
        return np.array([[np.median(cost) for cost in row] for row in self._values(quantity)])

    def _layers_table(self, quantity: str) -> str:
        medians, layers = self._medians(quantity), [len(at.names) for at, _ in self.costs]
        rows = [
            [at.label, at.layer.num_groups, len(at.names), *_cells(values)]
            for (at, _), values in zip(self.costs, self._values(quantity), strict=True)
        ]
        header = ["input", "g", "layers", *self.measured()]
        for name, column in zip(self.measured(), medians.T, strict=True):
            if quantity in _TRAFFIC and name.startswith("GW") and not math.isnan(self.bandwidth):
                header.append(f"{name}'s share of copy bandwidth")
                for (at, _), row, ms in zip(self.costs, rows, column, strict=True):
                    moved = _TRAFFIC[quantity] * math.prod(at.shape)
                    row.append("-" if np.isnan(ms) else f"{1e3 * moved / self.bandwidth / ms:.0%}")
        if quantity == SAVED:
            rows.append(["all layers", "", sum(layers), *_cells((layers @ medians)[:, None])])
        else:
            means = np.exp(np.log(medians).mean(axis=0))
            rows.append(["geometric mean", "", "", *_cells(means[:, None])])
        return _table(header, rows)


def markdown(command: str, parts: Mapping[str, Results]) -> str:
    """
    Args:
        command: that has measured them.
        parts: by title.
    """
    sections = [f"## {title}\n\n{results.markdown()}\n" for title, results in parts.items()]
    return "\n".join(["# Benchmark\n", f"    {command}\n", *sections])


def save(folder: str, command: str, parts: Mapping[str, Results]) -> None:
    """Writes benchmark.md and benchmark.json; each has its old content until the new is whole."""
    os.makedirs(folder, exist_ok=True)
    picture = "\n![ratios](benchmark.png)\n" if _with_ratios(parts) else ""
    records = {title: results.record() for title, results in parts.items()}
    with whole_file(os.path.join(folder, "benchmark.md")) as file:
        file.write(markdown(command, parts) + picture)
    with whole_file(os.path.join(folder, "benchmark.json")) as file:
        json.dump({"command": command, "parts": records}, file, indent=1)


def save_picture(folder: str, parts: Mapping[str, Results]) -> None:
    """Writes benchmark.png, of the first part that has ratios."""
    for results in _with_ratios(parts)[:1]:
        with whole_file(os.path.join(folder, "benchmark.png"), "wb") as file:
            results.draw().savefig(file, format="png")


def _with_ratios(parts: Mapping[str, Results]) -> list[Results]:
    return [results for results in parts.values() if len(results.measured()) > 1]


def _cells(values: Sequence[Sequence[float]]) -> list[str]:
    """
    E.g. "12.3 ±4% 0.81x": the median, the interquartile range in percent of it, and how many times
    the first one's it is; "-" for nan.
    """
    cells, baseline = [], np.median(values[0])
    for index, rounds in enumerate(values):
        low, median, high = np.percentile(rounds, (25, 50, 75))
        cell = f"{median:.0f}" if median >= 100 else f"{median:#.3g}".rstrip(".")
        cell += f" ±{(high - low) / median:.0%}" * (len(rounds) > 1)
        cell += f" {median / baseline:.2f}x" * (index > 0 and not np.isnan(baseline))
        cells.append("-" if np.isnan(median) else cell)
    return cells


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned, so that it reads in a terminal as it is; the first column is text."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align)


def _draw(panel: Axes, names: Sequence[str], labels: Sequence[str], ratios: np.ndarray) -> None:
    """
    A bar for every name in each group, from 1 to the ratio on a logarithmic axis.

    Args:
        labels: of the groups.
        ratios: (groups, names); nan for no bar.
    """
    thickness = 1 / (len(names) + 1)
    for index, name in enumerate(names):
        y = np.arange(len(labels)) + (index - (len(names) - 1) / 2) * thickness
        width = np.maximum(ratios[:, index], _SHORTEST) - 1
        bars = panel.barh(y, width, thickness, left=1, label=name)
        panel.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios[:, index]], fontsize=6, padding=2)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:.3g}")
    panel.tick_params(axis="x", labelsize="small")
    panel.margins(x=0.15)
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 1 / _LEAST_RATIO), max(high, _LEAST_RATIO))
    panel.axvline(1, color="black", linewidth=1)
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.5, -0.5)
