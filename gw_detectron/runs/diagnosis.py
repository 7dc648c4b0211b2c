"""Trained detectors, and what their norms do on the same images: measured, as a table, plotted."""

import argparse
import logging
import math
import os
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from cycler import cycler
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model
from matplotlib import rcParams, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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

logger = logging.getLogger("detectron2.gw")


def find_detectors(paths: Sequence[str], trust: bool = False) -> list[tuple[str, str]]:
    """
    (config file, weights) of the runs in the directories and below them that have weights; a
    warning names each of the others.

    Raises:
        UsageError: there is no run in one of the directories, or none at all with weights.
    """
    found = []
    for run in find_runs(paths, trust):
        if os.path.isfile(run.weights):
            found.append((os.path.join(run.path, "config.yaml"), run.weights))
        else:
            logger.warning(f"left out: {run.path} has no model_final.pth")
    if paths and not found:
        raise UsageError(f"no run in {', '.join(paths)} has a model_final.pth")
    return found


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
            the first detector's DATASETS.TEST.
        num_images: at most; of a smaller dataset all.
        num_groups: to compare the norms of all detectors by; None for :func:`common_groups`.

    Returns:
        (table, what was measured on what): what :meth:`NormMeter.rows` tells of each norm, in the
        order in which an image meets them, after the "run", its norms as tools/compare_runs.py
        names them, which no other has, and the "weights".

    Raises:
        UsageError: there are no weights, no norms or no dataset; or a number is too small.
    """
    if num_images < 1 or (num_groups or 2) < 2:
        raise UsageError("--images must be at least 1, and --num-groups at least 2")
    if on is None and len(datasets) == 1:
        on = datasets[0][0]
    configs = []
    for config_file, weights in detectors:  # as for an evaluation of the weights on the dataset
        opts = ["MODEL.WEIGHTS", weights] if weights else []
        opts += ["DATASETS.TEST", f"('{on}',)"] if on else []
        args = argparse.Namespace(config_file=config_file, opts=opts, trust_config=trust)
        args.dataset = [entry for entry in datasets if on in (None, entry[0])]
        args.eval_only, args.resume, args.num_gpus, args.num_machines = True, False, 1, 1
        configs.append(cfg := engine.setup(args))
        if not cfg.MODEL.WEIGHTS:
            raise UsageError("there are no trained weights to diagnose: add --weights FILE")
        on = cfg.DATASETS.TEST[0]
    files = [cfg.MODEL.WEIGHTS for cfg in configs]
    places = [file.removesuffix("/model_final.pth") for file in files]
    labels = tell_apart([norm_label(flatten(cfg)) for cfg in configs], places)
    with building("the model"):
        models = [build_model(cfg) for cfg in configs]
    num_groups = num_groups or common_groups(models)
    records = evenly_spread(DatasetCatalog.get(on), num_images)

    rows = []
    with tqdm(total=len(records) * len(configs), unit="image") as progress:
        for label, file, cfg, model in zip(labels, files, configs, models, strict=True):
            progress.set_description(label)
            WeightsCheckpointer(model, cfg=cfg, whole=True).load(file)
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
    if not rows:
        raise UsageError("there is no norm to diagnose in the models")
    return pd.DataFrame(rows), (
        f"{len(records)} images of {on}, {num_groups} groups of channels in each norm (fewer "
        "channels: one each)"
    )


# ---- As a table ------------------------------------------------------------------------------

# Title -> the columns of the CSV
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
of condition the geometric one. Constant samples and such that are not finite are left out, and
counted in diagnosis.csv."""


def diagnosis_report(table: pd.DataFrame) -> str:
    """The norms in a table, a line a detector, their medians, and what the columns mean."""
    runs = table.groupby("run", sort=False)["weights"].first()
    common = table.groupby("layer").filter(lambda of_layer: len(of_layer) == len(runs))
    medians = common.groupby("run", sort=False).median(numeric_only=True).reset_index()
    groups = [*table.groupby("layer", sort=False)]
    groups.append((f"median of {common['layer'].nunique()}", medians))
    lines = []
    for title, of_title in groups:
        for row in of_title.to_dict("records"):
            lines.append([title, row["run"], row.get("norm", ""), *_cells(row)])
            title = ""
    align = ["left"] * 3 + ["right"] * len(_COLUMNS)
    titles = ["layer", "run", "norm", *_COLUMNS]
    text = tabulate(lines, titles, disable_numparse=True, colalign=align)
    weights = [f"  {run}: {file}" for run, file in runs.items()]
    return "\n\n".join(["\n".join(weights), text, _LEGEND])


def _cells(row: Mapping[str, float]) -> list[str]:
    return [
        " → ".join(f"{_short(row[column]):>5}" for column in columns)
        for columns in _COLUMNS.values()
    ]


def _short(value: float) -> str:
    """In about five characters."""
    if math.isnan(value):
        return "-"
    if 1 <= value < 100:
        return f"{value:#.3g}"
    return f"{value:.0e}" if value > 99999 else f"{value:.0f}" if value > 1 else f"{value:.2f}"


# ---- As a plot -------------------------------------------------------------------------------


def save_depth_plot(table: pd.DataFrame, path: str) -> None:
    """
    Saves a picture with the norms of all detectors from left to right, in the order in which an
    image meets them: a panel a column of the table, a colour a detector.

    Args:
        table: from :func:`diagnose`.
        path: of the picture, ".png" or any other format that matplotlib writes by its ending.
    """
    layers, runs = table["layer"].unique(), table["run"].unique()
    names = [name.replace("backbone.", "").replace("bottom_up.", "") for name in layers]
    step = math.ceil(len(layers) / 60)  # more names are not legible
    with style.context("seaborn-v0_8-colorblind"):
        figure = Figure((14, 7.2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(2, 3)
        for axes, (title, columns) in zip(grid.flat, _COLUMNS.items(), strict=True):
            for column, line, size in zip(reversed(columns), "-:", (5, 0), strict=False):
                axes.set_prop_cycle(cycler(marker=".x^") * rcParams["axes.prop_cycle"])
                # nan where there is no such norm, which leaves a gap
                of_runs = table.pivot(index="layer", columns="run", values=column)
                of_runs = of_runs.reindex(index=layers, columns=runs)
                axes.plot(of_runs.to_numpy(), linestyle=line, markersize=size)
            axes.set_title(title, fontsize="medium")
            axes.set_yscale("log" if title in ("condition", "variance") else "linear")
            axes.set_xticks(range(0, len(layers), step), [])
            axes.grid(alpha=0.3)
        for axes in grid[1]:
            axes.set_xticks(axes.get_xticks(), names[::step], rotation=90, fontsize=6)
        legend = {"loc": "outside upper center", "ncols": 4, "frameon": False}
        figure.legend(grid[1, 2].get_lines(), runs, title="dotted: before the norm", **legend)
        figure.savefig(path, dpi=80)
