"""The config keys of Group Whitening, in every config that Detectron2 makes after the import."""

from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode
from detectron2.config.defaults import _C

from .errors import UsageError


def add_gw_config(cfg: CfgNode) -> None:
    """Adds MODEL.GW with its defaults to cfg; does nothing where it is there already."""
    if "GW" in cfg.MODEL:
        return
    cfg.MODEL.GW = CfgNode()
    # Where the build_gw_*_backbone builders put MODEL.RESNETS.NORM: S1 = after the stem's
    # convolution, B and digits = after the 1st, 2nd, 3rd convolution of every residual block.
    # The paper's best is S1-B2
    cfg.MODEL.GW.POSITIONS = "S1-B2"
    # The norm at the backbone's other positions, the shortcuts' included
    cfg.MODEL.GW.BASE_NORM = "FrozenBN"
    # Every so many iterations of tools/train_net.py, how well conditioned the features are before
    # and after each norm goes to metrics.json and TensorBoard; 0 = never. Elsewhere the same is
    # done by gw_detectron.analysis.diagnostics_hook.NormDiagnosticsHook
    cfg.MODEL.GW.DIAGNOSTICS_PERIOD = 0


def merge_into(cfg: CfgNode, config_file: str, opts: Sequence[str]) -> None:
    """
    Merges a config file ("" for none) and the overrides of a command line into cfg.

    Raises:
        UsageError: on a file that cannot be read, or a key or value that cfg does not take.
    """
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        reason = " ".join(str(reason).split())
        raise UsageError(f"config {config_file} {' '.join(opts)}: {reason}") from error


add_gw_config(_C)
