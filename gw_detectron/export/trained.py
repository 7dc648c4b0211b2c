"""A trained detector on the CPU, from its config and weights."""

from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from .. import config
from ..checkpoint import WeightsCheckpointer, require_weights
from ..data import adapt_config, register_datasets
from ..errors import UsageError, building


def setup(
    config_file: str,
    opts: Sequence[str],
    datasets: Iterable[Sequence[str]] = (),
    trust: bool = False,
) -> CfgNode:
    """
    Args:
        opts: overrides, KEY VALUE ...
        datasets: as of :func:`gw_detectron.data.register_datasets`.
        trust: see :func:`gw_detectron.config.read_config_file`.

    Returns:
        CfgNode: frozen, its device the CPU. Of DATASETS.TEST it has only what is registered here:
        where a detector is exported, the data of its training may not be.

    Raises:
        UsageError: on a mistake in any of it, or missing weights.
    """
    cfg = config.load_config(config_file, opts, trust)
    registered = register_datasets(datasets)
    cfg.DATASETS.TEST = tuple(name for name in cfg.DATASETS.TEST if name in DatasetCatalog)
    stated = config.stated_keys(config_file, opts, trust)
    adapt_config(cfg, registered, stated, eval_only=True)
    if not cfg.MODEL.WEIGHTS:
        raise UsageError("export needs trained weights: add MODEL.WEIGHTS FILE")
    require_weights(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def load_model(cfg: CfgNode) -> nn.Module:
    """
    The model in inference mode, with the weights of MODEL.WEIGHTS.

    Raises:
        UsageError: the config makes no model, or the weights are not that model's, as those of a
            backbone, or not all finite.
    """
    with building("the model"):
        model = build_model(cfg).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(torch.nan)
    WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    without = [name for name, value in parameters.items() if not value.isfinite().all()]
    if without:
        raise UsageError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} has no finite values for {len(without)} of the "
            f"{len(parameters)} weights of this model, the first {without[0]}: export takes the "
            "checkpoint of the whole trained detector"
        )
    return model


def class_names(cfg: CfgNode, num_classes: int) -> list[str] | None:
    """Of the datasets that cfg names and Detectron2 knows; None where it knows none."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("thing_classes") if name in MetadataCatalog else None
        if names and len(names) == num_classes:
            return list(names)
    return None
