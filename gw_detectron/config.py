"""The config keys of Group Whitening, in every config that Detectron2 makes after the import."""

import difflib
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode
from detectron2.config.defaults import _C

from .errors import UsageError, one_line


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


def merge_into(
    cfg: CfgNode, config_file: str, opts: Sequence[str], may_run_code: bool = True
) -> None:
    """
    Merges a config file ("" for none) and the overrides of a command line into cfg.

    Args:
        may_run_code: whether the file's YAML may have tags that run Python code, as some of
            Detectron2's own configs do. Not where it comes with a run, perhaps somebody else's.

    Raises:
        UsageError: on a file that cannot be read, or a key or value that cfg does not take.
    """
    if config_file:
        _merge_file(cfg, config_file, may_run_code)
    if len(opts) % 2:
        raise UsageError(
            f"override {opts[-1]} has no value; overrides are KEY VALUE pairs: {' '.join(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError) as error:
            raise UsageError(f"override {key} {value}: {_explain(error, cfg)}") from error


def _merge_file(cfg: CfgNode, path: str, may_run_code: bool) -> None:
    if path.endswith(".py"):
        raise UsageError(
            f"config {path} is a LazyConfig, and a YAML file is expected here; Detectron2's "
            "lazyconfig_train_net.py trains LazyConfigs"
        )
    try:
        cfg.merge_from_file(path, allow_unsafe=may_run_code)
    except RecursionError as error:
        raise UsageError(f"config {path}: it is its own _BASE_, or nested too deeply") from error
    except (TypeError, AttributeError) as error:  # it holds a list, a text, nothing
        raise UsageError(
            f"config {path} is not a mapping, lines of KEY: VALUE ({one_line(error)})"
        ) from error
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise UsageError(f"config {path}: {_explain(error, cfg)}") from error


def _explain(error: Exception, cfg: CfgNode) -> str:
    """In one line, and where it is about an unknown key with those that come nearest."""
    reason = str(error.args[0] if isinstance(error, KeyError) else error)
    if "on-existent" in reason:
        nearest = difflib.get_close_matches(reason.split(": ")[-1], list(_keys(cfg)), n=3)
        if nearest:
            reason += f"; the nearest {'are' if nearest[1:] else 'is'} {', '.join(nearest)}"
    return reason


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


add_gw_config(_C)
