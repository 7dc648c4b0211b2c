"""The config keys of Group Whitening, and how a config is loaded."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2.model_zoo
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.config.defaults import _C

from .errors import UsageError

# A wheel has the folder beside the code of model_zoo (see pyproject.toml), a checkout at its top
_INSTALLED = Path(__file__).parent / "model_zoo" / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"
_OURS = (CONFIGS, Path(detectron2.model_zoo.__file__).parent / "configs")


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
    # done by gw_detectron.norms.diagnostics_hook.NormDiagnosticsHook
    cfg.MODEL.GW.DIAGNOSTICS_PERIOD = 0
    # The names of the classes that the model detects, in the order of their numbers. train_net.py
    # sets it from the data, and a run's config.yaml has it
    cfg.MODEL.GW.CLASSES = ()


add_gw_config(_C)


def load_config(
    config_file: str = "",
    opts: Sequence[str] = (),
    trust: bool = False,
    cfg: CfgNode | None = None,
) -> CfgNode:
    """
    The config of a file ("" for none) with the overrides of a command line.

    Args:
        opts: KEY, VALUE, ...
        trust: see :func:`read_config_file`.
        cfg: what to merge them into; None for a new get_cfg().

    Returns:
        CfgNode: cfg, not frozen.

    Raises:
        UsageError: on a file that cannot be read, or a key or value that cfg does not take.
    """
    cfg = get_cfg() if cfg is None else cfg
    if config_file:
        read_config_file(config_file, trust)
        try:
            cfg.merge_from_file(config_file, allow_unsafe=True)  # judged by the line above
        except (KeyError, ValueError, AssertionError) as error:
            raise UsageError(f"config {config_file}: {_explain(error, cfg)}") from error
    if len(opts) % 2:
        raise UsageError(
            f"override {opts[-1]} has no value; overrides are KEY VALUE pairs: {' '.join(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError) as error:
            raise UsageError(f"override {key} {value}: {_explain(error, cfg)}") from error
    return cfg


def read_config_file(path: str, trust: bool = False) -> dict[str, Any]:
    """
    What a YAML file and those that it names as _BASE_ state, as nested mappings.

    Tags in YAML can run Python code. They are taken in files of Detectron2's model zoo and of this
    package; a config that came with somebody's run must not run code.

    Args:
        trust: whether to take them in all files.

    Raises:
        UsageError: on a file that cannot be read, or whose tags are not to be taken.
    """
    if path.endswith(".py"):
        raise UsageError(
            f"config {path} is a LazyConfig, and a YAML file is expected here; Detectron2's "
            "lazyconfig_train_net.py trains LazyConfigs"
        )
    reader = _TrustingReader if trust else _Reader
    try:
        content = reader.load_yaml_with_base(path)
    except RecursionError as error:
        raise UsageError(f"config {path}: it is its own _BASE_, or nested too deeply") from error
    except UsageError:
        raise
    except (OSError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise UsageError(f"config {path}: {error}") from error
    except (TypeError, AttributeError):  # it holds a list, a text, nothing
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"config {path} is not a mapping, lines of KEY: VALUE")
    return content


class _Reader(CfgNode):
    """Reads files of which each is judged by itself, those that it names as _BASE_ too."""

    trusts_all = False

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        try:
            return super().load_yaml_with_base(filename, cls.trusts_all or _is_ours(filename))
        except yaml.constructor.ConstructorError as error:
            if "tag" not in str(error.problem):
                raise
            raise UsageError(
                f"config {filename} has a YAML tag, which may run code: "
                f"{error.problem}; if you trust the file, add --trust-config"
            ) from error


class _TrustingReader(_Reader):
    trusts_all = True


def _is_ours(file: str) -> bool:
    """By its folder, since a _BASE_ is looked for from there, even that of a symbolic link."""
    folder = Path(file).parent.resolve()
    return "://" not in file and any(folder.is_relative_to(ours.resolve()) for ours in _OURS)


def stated_keys(config_file: str, opts: Sequence[str], trust: bool = False) -> set[str]:
    """The full names of the keys in a config file, the files it inherits from, and overrides."""
    content = read_config_file(config_file, trust) if config_file else {}
    return {*flatten(content), *opts[0::2]}


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"SOLVER": {"MAX_ITER": 9}} is {"SOLVER.MAX_ITER": 9}; lists stay as they are."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(configs: Sequence[Mapping[str, Any]], at_most: int = 3) -> list[str]:
    """For each of some configs, the keys in which not all of them agree with its values."""
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [k for k in keys if any(c.get(k) != configs[0].get(k) for c in configs)]
    more = ", ..." if len(differing) > at_most else ""
    return [", ".join(f"{k} {c.get(k)}" for k in differing[:at_most]) + more for c in configs]


def predicting_head(cfg: CfgNode) -> str:
    """The node of MODEL that says NUM_CLASSES and SCORE_THRESH_TEST of the model's detections."""
    return "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"


def choose_device(cfg: CfgNode, num_processes: int = 1) -> bool:
    """
    Makes MODEL.DEVICE the CPU where there is no GPU, which several processes have to be asked for.

    Args:
        cfg: not frozen.
        num_processes: that run the model together, on all machines.

    Returns:
        bool: whether it has changed MODEL.DEVICE.

    Raises:
        UsageError: that many processes can't run on MODEL.DEVICE.
    """
    wants_gpu, has_gpu = cfg.MODEL.DEVICE.startswith("cuda"), torch.cuda.is_available()
    if num_processes > 1 and wants_gpu and not has_gpu:
        raise UsageError(
            f"{num_processes} processes need a GPU each, and this machine has none; add "
            "MODEL.DEVICE cpu to run them on the CPU"
        )
    if num_processes > 1 and has_gpu and not wants_gpu:
        raise UsageError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: {num_processes} processes would share the GPUs of "
            "this machine; hide them with CUDA_VISIBLE_DEVICES= in the environment"
        )
    if not wants_gpu or has_gpu:
        return False
    cfg.MODEL.DEVICE = "cpu"
    return True


def _explain(error: Exception, cfg: CfgNode) -> str:
    """In one line, and where it is about an unknown key with those that come nearest."""
    reason = str(error.args[0] if isinstance(error, KeyError) else error)
    if "on-existent" in reason:
        nearest = difflib.get_close_matches(reason.split(": ")[-1], list(flatten(cfg)), n=3)
        if nearest:
            reason += f"; the nearest {'are' if nearest[1:] else 'is'} {', '.join(nearest)}"
    return reason
