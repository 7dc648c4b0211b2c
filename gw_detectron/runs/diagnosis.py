"""Trained detectors, and what their norms do on the same images: measured, as a table, plotted."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
import torch
from cycler import cycler
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model
from matplotlib import rcParams, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tabulate import tabulate
from tqdm import tqdm

from .. import engine
from ..checkpoint import WeightsCheckpointer
from ..config import flatten
from ..data.images import ImageMapper, evenly_spread
from ..errors import UsageError, building
from ..norms.diagnostics import NormMeter, common_groups
from ..norms.probe import watching
from .config_norms import norm_label
from .run import find_runs, tell_apart

__all__ = ["diagnose", "find_detectors", "save_depth_plot", "terminal_report"]


def find_detectors(
    paths: Sequence[str], trust: bool = False
) -> tuple[list[tuple[str, str]], list[str]]:
    """
    The runs in the directories and below them that have weights.

    Returns:
        (config file, weights) of each, and a line for each run that is left out.

    Raises:
        UsageError: there is no run in one of the directories, or none at all with weights.
    """
    detectors, left_out = [], []
    for run in find_runs(paths, trust):
        if not os.path.isfile(run.weights):
            left_out.append(f"{run.path} has no {os.path.basename(run.weights)}")
        elif not run.config:
            left_out.append(f"{run.path}: {run.problem}")
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
) -> tuple[pd.DataFrame, str]:
    """
    Measures the norms of detectors on images of a dataset, evenly spread over it.

    Args:
        detectors: config file and weights, "" for those that the config names.
        datasets: to be registered, see :func:`register_datasets`.
        on: the dataset with the images; None for the only one of datasets, else for the first in
            the detectors' DATASETS.TEST.
        num_images: at most; of a smaller dataset all.
        num_groups: to compare the norms of all detectors by; None for :func:`common_groups`.

    Returns:
        (table, what was measured on what): what :meth:`NormMeter.rows` tells of each norm, in the
        order in which an image meets them, after the "run", its norms as tools/compare_runs.py
        names them, which no other has, and the "weights".

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
    configs = []
    for config_file, weights in detectors:  # as for an evaluation of the weights on the dataset
        opts = ["MODEL.WEIGHTS", weights] if weights else []
        opts += ["DATASETS.TEST", f"('{on}',)"] if on else []
        args = argparse.Namespace(config_file=config_file, opts=opts, trust_config=trust)
        args.dataset = [entry for entry in datasets if on in (None, entry[0])]
        args.eval_only, args.resume, args.num_gpus, args.num_machines = True, False, 1, 1
        configs.append(engine.load_config(args))
    dataset = _common_dataset(configs)
    files = [cfg.MODEL.WEIGHTS for cfg in configs]
    if not all(files):
        raise UsageError("there are no trained weights to diagnose: add --weights FILE")
    places = [file.removesuffix("/model_final.pth") for file in files]
    labels = tell_apart([norm_label(flatten(cfg)) for cfg in configs], places)
    with building("the model"):
        models = [build_model(cfg) for cfg in configs]
    of_norms = common_groups(models)
    num_groups = num_groups or of_norms
    records = evenly_spread(DatasetCatalog.get(dataset), num_images)

    rows = []
    with tqdm(total=len(records) * len(configs), unit="image") as progress:
        for label, file, cfg, model in zip(labels, files, configs, models, strict=True):
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
            rows += [{"run": label, "weights": file, **row} for row in meter.rows()]
    return pd.DataFrame(rows), (
        f"{len(records)} images of {dataset}, {num_groups} groups of channels in each norm (fewer "
        "channels: one each)"
    )


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


def terminal_report(table: pd.DataFrame) -> str:
    """The norms in a table, a line a detector, their medians, and what the columns mean."""
    lines = []
    for layer, of_layer in table.groupby("layer", sort=False):
        for row in of_layer.to_dict("records"):
            lines.append([layer, row["run"], row["norm"], *_cells(row)])
            layer = ""
    runs = table.groupby("run", sort=False)["weights"].first()
    common = table.groupby("layer").filter(lambda of_layer: len(of_layer) == len(runs))
    medians = common.groupby("run").median(numeric_only=True).reindex(runs.index)
    name = f"median of {common['layer'].nunique()}"
    for run, row in medians.iterrows():
        lines.append([name, run, "", *_cells(row)])
        name = ""
    text = tabulate(
        lines,
        ["layer", "run", "norm", *_COLUMNS],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left"] * 3 + ["right"] * len(_COLUMNS),
    )
    weights = [f"  {run}: {file}" for run, file in runs.items()]
    left_out = [
        f"{run}: {of_run['left out'].sum()} samples are constant or not finite, and left out, in "
        f"{', '.join(of_run['layer'][:5])}{', ...' if len(of_run) > 5 else ''}"
        for run, of_run in table[table["left out"] > 0].groupby("run", sort=False)
    ]
    return "\n\n".join(["\n".join(weights), text, _LEGEND, *left_out]) + "\n"


def _cells(row: Mapping[str, float]) -> list[str]:
    return [
        " → ".join(f"{_short(row[column]):>5}" for column in columns)
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
        table: from :func:`diagnose`.
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.
    """
    layers, runs = table["layer"].unique(), table.groupby("run", sort=False)
    step = math.ceil(len(layers) / _MOST_NAMES)
    names = [name.replace("backbone.", "").replace("bottom_up.", "") for name in layers[::step]]
    panels = {title: found for title, found in _PANELS.items() if table[found[0]].notna().any()}
    with style.context("seaborn-v0_8-colorblind"):
        styles = cycler(marker=".x^") * rcParams["axes.prop_cycle"]
        num_rows = math.ceil(len(panels) / 3)
        figure = Figure((14, 2.6 * num_rows + 2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(num_rows, 3, squeeze=False).flat
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for index, (title, (after, *before)) in enumerate(panels.items()):
            axes = grid[index]
            axes.set_title(title, fontsize="medium")
            for (run, of_run), shown in zip(runs, cycle(styles), strict=False):
                # nan where there is no such norm, which leaves a gap
                of_run = of_run.set_index("layer").reindex(layers)
                axes.plot(of_run[after].to_numpy(), **shown, markersize=5, label=run)
                for column in before:
                    axes.plot(of_run[column].to_numpy(), ":", color=shown["color"])
            axes.set_yscale("log" if after.startswith("condition") else "linear")
            is_lowest = index >= len(panels) - 3
            axes.set_xticks(range(0, len(layers), step), names if is_lowest else [])
            axes.tick_params("x", rotation=90, labelsize=6)
            axes.grid(alpha=0.3)
        handles, _ = grid[0].get_legend_handles_labels()
        handles.append(Line2D([], [], linestyle=":", color="black", label="before the norm"))
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(path, dpi=80)
