"""A model as a config file describes it, without its weights."""

import builtins
import os
from collections.abc import Sequence

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from torch import nn

from ..config import load_config
from ..errors import UsageError, building, one_line

__all__ = ["build_from_config"]

# The image size of Detectron2's model zoo, and the shape of the image where only a height is known
_HEIGHT, _WIDTH = 800, 1333


def build_from_config(
    config_file: str, opts: Sequence[str], trust: bool = False
) -> tuple[nn.Module, tuple[int, int]]:
    """
    Args:
        config_file: a YAML file, or a LazyConfig's .py file, whose `model` is built.
        opts: overrides: KEY VALUE ..., or of a LazyConfig key=value ...

    Returns:
        (model, (height, width)): on the CPU, with random weights; the size of a test image: of
        INPUT.MIN_SIZE_TEST, five to three unless INPUT.MAX_SIZE_TEST forbids.

    Raises:
        UsageError: the file cannot be read, has no such keys, or makes no model.
    """
    if config_file.endswith(".py"):
        return _build_lazy(config_file, opts), (_HEIGHT, _WIDTH)
    cfg = load_config(config_file, opts, trust)
    cfg.MODEL.DEVICE = "cpu"
    with building("the model"):
        model = build_model(cfg)
    height = cfg.INPUT.MIN_SIZE_TEST or _HEIGHT
    return model, (height, min(height * _WIDTH // _HEIGHT, cfg.INPUT.MAX_SIZE_TEST))


def _build_lazy(config_file: str, opts: Sequence[str]) -> nn.Module:
    if not os.path.isfile(config_file):
        raise UsageError(f"config {config_file}: no such file")
    import_function = builtins.__import__
    try:
        cfg = LazyConfig.load(config_file)
    except Exception as error:  # of any kind: it is a Python program
        raise UsageError(f"config {config_file} can't be run: {one_line(error)}") from error
    finally:
        builtins.__import__ = import_function  # which LazyConfig replaces, for good where it fails
    try:
        cfg = LazyConfig.apply_overrides(cfg, list(opts))
    except Exception as error:  # of Hydra's parser, OmegaConf's or LazyConfig's own
        reason = " ".join(str(error).split())
        raise UsageError(f"config {config_file} {' '.join(opts)}: {reason}") from error
    if "model" not in cfg:
        raise UsageError(f"config {config_file} has no model")
    with building("the model"):
        return instantiate(cfg.model)
