import difflib

from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig

from ..config import CONFIGS, load_config
from ..errors import UsageError

_SUFFIXES = (".yaml", ".py")


def get_config_file(config_path: str) -> str:
    """
    Path of a config file that comes with the package.

    Args:
        config_path: relative to the checkout's configs/, with forward slashes, e.g.
            "quickstart/mask_rcnn_R_18_FPN_gw.yaml".

    Raises:
        UsageError: there is no such config; the nearest ones are named.
    """
    configs = _list_configs()
    if config_path not in configs:
        nearest = difflib.get_close_matches(config_path, configs, n=3, cutoff=0.0)
        raise UsageError(
            f"no config {config_path!r} in gw_detectron; nearest: {', '.join(nearest)}"
        )
    return str(CONFIGS / config_path)


def get_config(config_path: str) -> CfgNode | DictConfig:
    """
    A config that comes with the package, ready to train with.

    Returns:
        Detectron2's CfgNode for a .yaml file, what LazyConfig.load gives for a .py file.
    """
    file = get_config_file(config_path)
    if file.endswith(".py"):
        return LazyConfig.load(file)
    return load_config(file)


def _list_configs() -> list[str]:
    root = CONFIGS
    files = (path for path in root.rglob("*") if path.suffix in _SUFFIXES)
    return sorted(path.relative_to(root).as_posix() for path in files)
