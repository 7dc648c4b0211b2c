"""The rows of a benchmark as Markdown tables: medians with their spread, ratios to a baseline."""

import math
import os
import platform
import re
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils import collect_env

from .. import __version__
from ..files import whole_file

COLUMNS = ["part", "input", "name", "quantity", "round", "value", "failure"]

_SAVE_EVERY = 10  # seconds


def collect(
    rows: Iterable[dict[str, Any]], command: str, folder: str, seconds: float = math.inf
) -> str:
    """
    Writes benchmark.csv, the rows, and benchmark.md, their tables, into the folder: again and again
    while they come, and once more when they end, be it with an error.

    Args:
        rows: of COLUMNS.
        command: that measures them.
        seconds: after which no more of them are taken.

    Returns:
        str: what is in benchmark.md.
    """
    heading, taken = f"# Benchmark\n\n    {command}\n\n{_machine()}\n\n", []
    begin = saved = time.monotonic()
    try:
        for row in rows:
            taken.append(row)
            if time.monotonic() > begin + seconds:
                break
            if time.monotonic() > saved + _SAVE_EVERY:
                _save(folder, heading + tables(taken), taken)
                saved = time.monotonic()
    finally:
        if taken:
            _save(folder, heading + tables(taken), taken)
    return heading + tables(taken)


def _save(folder: str, text: str, rows: Sequence[dict[str, Any]]) -> None:
    os.makedirs(folder, exist_ok=True)
    with whole_file(os.path.join(folder, "benchmark.md")) as file:
        file.write(text)
    with whole_file(os.path.join(folder, "benchmark.csv")) as file:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(file, index=False)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """
    A table for each quantity of a part, with inputs as rows; of a part with one input, a table of
    the quantities, with names as rows. What has failed stands under them.

    Args:
        rows: of COLUMNS.
    """
    sections = []
    for title, part in pd.DataFrame(rows, columns=COLUMNS).groupby("part", sort=False):
        inputs, names = part["input"].unique(), part["name"].unique()
        values = part.dropna(subset="value").groupby("quantity", sort=False)
        cells = {quantity: _cells(of, names) for quantity, of in values}
        cells = dict(sorted(cells.items(), key=lambda item: item[0].endswith("MB")))
        if len(inputs) == 1:
            cells = {inputs[0]: pd.DataFrame({of: table.iloc[0] for of, table in cells.items()})}
        sections.append(f"## {title}")
        for heading, table in cells.items():
            sections += [f"### {heading}", table.to_markdown(disable_numparse=True)]
        failures = part.dropna(subset="failure").groupby(["name", "quantity", "failure"])["input"]
        for (name, quantity, failure), at in failures.unique().items():
            what = f"{name}, {quantity}" if quantity else name
            message = textwrap.shorten(failure, 300)
            sections.append(f"Without {what}: {message} (at {'; '.join(at)})")
    return "\n\n".join(sections) + "\n"


def _cells(values: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """(inputs and their geometric mean, those of the names that have values) of a quantity."""
    names = [name for name in names if name in set(values["name"])]
    rounds = values.groupby(["input", "name"])["value"]
    low, median, high = (
        rounds.quantile(q).unstack().reindex(values["input"].unique(), columns=names)
        for q in (0.25, 0.5, 0.75)
    )
    spread = (high - low) / median
    median.loc["geometric mean"] = np.exp(np.log(median).mean(skipna=False))
    ratio = median.div(median[names[0]], axis=0)
    ratio[names[0]] = math.nan
    frames = median, spread.reindex_like(median), ratio
    rows = zip(*(frame.values.tolist() for frame in frames), strict=True)
    cells = [list(map(_cell, *row)) for row in rows]
    return pd.DataFrame(cells, median.index, names)


def _cell(median: float, spread: float, ratio: float) -> str:
    """E.g. "12.3 ±4% 0.81x"; a spread that is 0 and what is nan are left out."""
    if math.isnan(median):
        return "-"
    cell = f"{median:.0f}" if median >= 100 else f"{median:#.3g}".rstrip(".")
    return cell + f" ±{spread:.0%}" * (spread > 0) + f" {ratio:.2f}x" * (ratio >= 0)


def _machine() -> str:
    name = re.search(r"Model name:\s*(.+)", str(collect_env.get_cpu_info(collect_env.run)))
    processors = [f"{name[1] if name else platform.machine()}, threads: {torch.get_num_threads()}"]
    if torch.cuda.is_available():
        driver = collect_env.get_nvidia_driver_version(collect_env.run)
        processors += [torch.cuda.get_device_name(), f"driver {driver}, CUDA {torch.version.cuda}"]
    versions = [f"gw_detectron {__version__}", f"PyTorch {torch.__version__}"]
    return ", ".join([*processors, *versions, f"Python {platform.python_version()}"])
