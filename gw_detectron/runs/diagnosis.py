"""Trained detectors, and what their norms do on the same images: measured, as a table, plotted."""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
import pandas as pd
import torch
from cycler import cycler
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tabulate import tabulate
from tqdm import tqdm

from .. import engine
from ..checkpoint import WeightsCheckpointer
from ..config import flatten
from ..data.images import ImageMapper, spread_evenly
from ..errors import UsageError, building
from ..norms.diagnostics import NormMeter, common_groups
from ..norms.probe import watching
from .experiment import norm_label
from .run import find_runs, tell_apart

__all__ = ["Findings", "diagnose", "find_detectors", "save_depth_plot", "terminal_report"]


@dataclass(frozen=True)
class Findings:
    """
    Attributes:
        table: what :meth:`NormMeter.rows` tells of each norm of each detector, in the order in
            which an image meets them, after the detector's "run", its norms as
            tools/compare_runs.py names them, which no other has, and "weights", their file.
        images: how many of the dataset.
        groups: the number of groups that the norms of all detectors are compared by.
    """

    table: pd.DataFrame
    dataset: str
    images: int
    groups: int


def find_detectors(
    paths: Sequence[str], trust: bool = False
) -> tuple[list[tuple[str, str]], list[str]]:
    """
    The runs in the directories and below them that have weights.

    Args:
        trust: see :func:`read_config_file`.

    Returns:
        (config file, weights) of each, and a line for each run that is left out.

    Raises:
        UsageError: there is no run in one of the directories, or none at all with weights.
    """
    detectors, left_out = [], []
    for run in find_runs(paths, trust):
        if not run.config:
            left_out.append(f"{run.path}: {run.problem}")
        elif not os.path.isfile(run.weights):
            left_out.append(f"{run.path} has no {os.path.basename(run.weights)}")
        else:
            detectors.append((os.path.join(run.path, "config.yaml"), run.weights))
    if left_out and not detectors:
        raise UsageError(left_out[0])
    return detectors, left_out


def diagnose(
    detectors: Sequence[tuple[str, str]],
    datasets: Sequence[tuple[str, str, str]],
    on: str | None,
    num_images: int,
    num_groups: int | None,
    trust: bool = False,
) -> Findings:
    """
    Measures the norms of detectors on images of a dataset, evenly spread over it.

    Args:
        detectors: config file and weights, "" for those that the config names.
        datasets: to be registered, see :func:`register_datasets`.
        on: the dataset with the images; None for the only one of datasets, else for the first in
            the detectors' DATASETS.TEST.
        num_images: at most; of a smaller dataset all.
        num_groups: None for :func:`common_groups`.
        trust: see :func:`read_config_file`.

    Raises:
        UsageError: there are no weights, no norms, no dataset or more than one; or a number is too
            small.
    """
    if num_images < 1:
        raise UsageError(f"--images must be at least 1, not {num_images}")
    if num_groups is not None and num_groups < 2:
        raise UsageError(f"--num-groups must be at least 2, not {num_groups}")
    if on is None and len(datasets) == 1:
        on = datasets[0][0]
    configs = [_load_config(*files, datasets, on, trust) for files in detectors]
    dataset = _common_dataset(configs)
    weights = [cfg.MODEL.WEIGHTS for cfg in configs]
    if not all(weights):
        raise UsageError("there are no trained weights to diagnose: add --weights FILE")
    places = [file.removesuffix("/model_final.pth") for file in weights]
    labels = tell_apart([norm_label(flatten(cfg)) for cfg in configs], places)
    with building("the model"):
        models = [build_model(cfg) for cfg in configs]
    of_norms = common_groups(models)
    num_groups = num_groups or of_norms
    records = spread_evenly(DatasetCatalog.get(dataset), num_images)

    tables = []
    with tqdm(total=len(records) * len(configs), unit="image") as progress:
        for label, file, cfg, model in zip(labels, weights, configs, models, strict=True):
            progress.set_description(label)
            WeightsCheckpointer(model).load(file)
            mapper = ImageMapper(DatasetMapper(cfg, False))
            loader = build_detection_test_loader(
                records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
            )
            meter = NormMeter(num_groups)
            with inference_context(model), torch.no_grad(), watching(model, meter.look):
                for batch in loader:
                    model(batch)
                    progress.update(len(batch))
            tables.append(pd.DataFrame({"run": label, "weights": file, **row} for row in meter.rows()))
    return Findings(pd.concat(tables, ignore_index=True), dataset, len(records), num_groups)


def _load_config(
    config_file: str,
    weights: str,
    datasets: Sequence[tuple[str, str, str]],
    on: str | None,
    trust: bool,
) -> CfgNode:
    """As for an evaluation of the weights on the dataset."""
    opts = ["MODEL.WEIGHTS", weights] if weights else []
    if on:
        datasets = [entry for entry in datasets if entry[0] == on]
        opts += ["DATASETS.TEST", f"('{on}',)"]
    args = argparse.Namespace(config_file=config_file, opts=opts, dataset=datasets)
    args.eval_only, args.resume, args.trust_config = True, False, trust
    args.num_gpus = args.num_machines = 1
    return engine.load_config(args)


def _common_dataset(configs: Sequence[CfgNode]) -> str:
    names = list(dict.fromkeys(cfg.DATASETS.TEST[0] for cfg in configs if cfg.DATASETS.TEST))
    if len(names) != 1:
        found = f"they begin with {' and '.join(names)}" if names else "there is none"
        raise UsageError(
            "the images are those of the first dataset in DATASETS.TEST, the same for all: "
            f"{found}; add --on NAME"
        )
    return names[0]


# ---- As a table ------------------------------------------------------------------------------

# Title -> the statistics under it
_COLUMNS = {
    "condition": ("condition before", "condition after"),
    "rank": ("effective_rank before", "effective_rank after"),
    "share": ("first_share before", "first_share after"),
    "variance": ("variance before", "variance after"),
    "from I": ("distance after",),
    "from root": ("root error",),
}

_LEGEND = """\
condition  largest / smallest eigenvalue of the covariance between the groups; above 1e13: the
           smallest is 0 but for rounding
rank       effective rank, exp of the entropy of the eigenvalues' shares: from 1 to the groups
share      of the variance that the first direction has
variance   mean of the groups
from I     |covariance - I| / sqrt(groups), of Frobenius norms
from root  |W - S^(-1/2)| / |S^(-1/2)|: what GW's iterations have left undone
Each of a sample, before and after the norm (its affine left out), then the mean over the samples,
of condition the geometric one."""


def terminal_report(findings: Findings) -> str:
    """The norms in a table, a line a detector, their medians, and what the columns mean."""
    table = findings.table
    lines = []
    for layer, of_layer in table.groupby("layer", sort=False):
        for name, row in zip([layer, *[""] * len(of_layer)], of_layer.to_dict("records")):
            lines.append([name, row["run"], row["norm"], *_cells(row)])
    runs = table.groupby("run", sort=False)
    common = table.groupby("layer").filter(lambda of_layer: len(of_layer) == len(runs))
    medians = common.groupby("run", sort=False).median(numeric_only=True)
    name = f"median of {common['layer'].nunique()}"
    for run in runs.groups:
        lines.append([name, run, "", *_cells(medians.loc[run] if run in medians.index else {})])
        name = ""
    text = tabulate(
        lines,
        ["layer", "run", "norm", *_COLUMNS],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left"] * 3 + ["right"] * len(_COLUMNS),
    )
    heading = [
        f"{findings.images} images of {findings.dataset}, {findings.groups} groups of channels "
        "in each norm (fewer channels: one each)",
        *(f"  {run}: {file}" for run, file in runs["weights"].first().items()),
    ]
    left_out = [
        f"{run}: {of_run['left out'].sum()} samples are constant or not finite, and left out, in "
        f"{', '.join(of_run['layer'][:5])}{', ...' if len(of_run) > 5 else ''}"
        for run, of_run in table[table["left out"] > 0].groupby("run", sort=False)
    ]
    return "\n\n".join(["\n".join(heading), text, _LEGEND, *left_out]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        " → ".join(f"{_short(row.get(column, math.nan)):>5}" for column in columns)
        for columns in _COLUMNS.values()
    ]


def _short(value: float) -> str:
    """In about five characters, three digits."""
    if math.isnan(value):
        return "-"
    if 1 <= value < 100:
        return f"{value:#.3g}"
    if 100 <= value < 99999:
        return f"{value:.0f}"
    return f"{value:.2f}" if 0.01 <= value < 1 else f"{value:.0e}"


# ---- As a plot -------------------------------------------------------------------------------

# Title -> the statistics in the panel: after the norm, and before it where that is of interest
_PANELS = {
    "condition number": ("condition after", "condition before"),
    "effective rank": ("effective_rank after", "effective_rank before"),
    "share of the first direction": ("first_share after", "first_share before"),
    "mean variance after the norm": ("variance after",),
    "distance from I after the norm": ("distance after",),
    "distance of W from $\\Sigma^{-1/2}$": ("root error",),
}
_MOST_NAMES = 60  # that are legible under a panel


def save_depth_plot(table: pd.DataFrame, path: str) -> None:
    """
    Saves a picture with the norms of all detectors from left to right, in the order in which an
    image meets them: a panel a statistic, a colour a detector.

    Args:
        table: of the findings.
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.
    """
    layers = table["layer"].unique()
    step = math.ceil(len(layers) / _MOST_NAMES)
    names = [name.replace("backbone.", "").replace("bottom_up.", "") for name in layers[::step]]
    panels = {title: found for title, found in _PANELS.items() if table[found[0]].notna().any()}
    with matplotlib.style.context("seaborn-v0_8-colorblind"):
        styles = cycler(marker=".x^") * matplotlib.rcParams["axes.prop_cycle"]
        num_rows = math.ceil(len(panels) / 3)
        figure = Figure((14, 2.6 * num_rows + 2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(num_rows, 3, squeeze=False).flat
        for axes, (title, (after, *before)) in zip(grid, panels.items(), strict=False):
            axes.set_title(title, fontsize="medium")
            for (run, of_run), style in zip(table.groupby("run", sort=False), cycle(styles)):
                # nan where there is no such norm, which leaves a gap
                of_run = of_run.set_index("layer").reindex(layers)
                axes.plot(of_run[after].to_numpy(), **style, markersize=5, label=run)
                for column in before:
                    axes.plot(of_run[column].to_numpy(), ":", color=style["color"])
            axes.set_yscale("log" if after.startswith("condition") else "linear")
            axes.set_xticks(range(0, len(layers), step), names, rotation=90, fontsize=6)
            axes.grid(alpha=0.3)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        handles, _ = grid[0].get_legend_handles_labels()
        handles.append(Line2D([], [], linestyle=":", color="black", label="before the norm"))
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(path, dpi=80)
