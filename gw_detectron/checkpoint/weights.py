"""
The weights that a config names: `gw://NAME` stands for the file NAME in the folder $GW_WEIGHTS, or
./weights.
"""

import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathHandler, PathManager

from ..errors import UsageError

PREFIX = "gw://"
AUTHORS_PAGE = "https://github.com/huangleiBuaa/GroupWhitening"


class WeightsHandler(PathHandler):
    """Finds `gw://` files for whatever reads through Detectron2's PathManager; see find_weights."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(find_weights(path))


PathManager.register_handler(WeightsHandler(), allow_override=True)


def find_weights(path: str) -> Path:
    """
    The file that `gw://NAME` stands for.

    Raises:
        UsageError: it isn't there; the line says where to get it.
    """
    folder = Path(os.environ.get("GW_WEIGHTS") or "weights").expanduser()
    file = folder / path.removeprefix(PREFIX)
    if not file.is_file():
        raise UsageError(
            f"{path}: there is no {file} ($GW_WEIGHTS names another folder). The authors' weights "
            f"with GW (pth in the table of {AUTHORS_PAGE}) and torchvision's become it by: python "
            f"tools/convert_weights.py DOWNLOADED.pth {shlex.quote(str(file))}; others are trained "
            f"with tools/pretrain_imagenet.py, whose backbone.pth it is"
        )
    return file


def require_weights(cfg: CfgNode, resume: bool = False) -> None:
    """
    Stops before anything is built where MODEL.WEIGHTS is a local or gw:// file that is missing.

    Args:
        resume: weights aren't needed where OUTPUT_DIR has a checkpoint to go on from.

    Raises:
        UsageError: the line says where to get the file.
    """
    if resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
        return
    path = urlparse(cfg.MODEL.WEIGHTS)._replace(query="").geturl()  # as Detectron2 reads it
    if path.startswith(PREFIX):
        find_weights(path)
    elif "://" in path:
        require_scheme("MODEL.WEIGHTS", path)
    elif path and not Path(path).is_file():
        raise UsageError(f"MODEL.WEIGHTS {path}: there is no such file, seen from {os.getcwd()}")


def require_scheme(key: str, path: str) -> None:
    """
    Raises:
        UsageError: Detectron2's PathManager has nothing for what precedes the path's "://".
    """
    prefixes = [prefix for prefix in PathManager._path_handlers if prefix.endswith("://")]
    if not path.startswith(tuple(prefixes)):
        raise UsageError(
            f"{key} {path}: nothing here reads or writes {path.partition('://')[0]}://, only "
            + ", ".join(prefixes)
        )
