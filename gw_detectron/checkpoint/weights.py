"""
The weights that a config names: `gw://NAME` stands for the file NAME in the folder $GW_WEIGHTS, or
./weights; and what to do where a file isn't there.
"""

import difflib
import os
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathHandler, PathManager

from ..errors import UsageError

PREFIX = "gw://"
AUTHORS_PAGE = "https://github.com/huangleiBuaa/GroupWhitening"
TORCHVISION_PAGE = "https://pytorch.org/vision/stable/models.html"

# Our name without its ending -> what its publisher calls it
AUTHORS_MODELS = {
    "R-50-GW": "ResNet-50",
    "R-101-GW": "ResNet-101",
    "X-50-32x4d-GW": "ResNeXt-50",
    "X-101-32x8d-GW": "ResNeXt-101",
}
TORCHVISION_MODELS = {
    **{f"R-{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    "X-50-32x4d": "resnext50_32x4d",
    "X-101-32x8d": "resnext101_32x8d",
}


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
        UsageError: it isn't there; the line says where to get it and how to convert or train it.
    """
    folder = Path(os.environ.get("GW_WEIGHTS") or "weights").expanduser()
    file = folder / path.removeprefix(PREFIX)
    if not file.is_file():
        raise UsageError(
            f"{path}: there is no {file.name} in the folder {file.parent} "
            f"($GW_WEIGHTS names another one); {_explain_how_to_get(file)}"
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


def _explain_how_to_get(file: Path) -> str:
    name = file.stem
    convert = f"python tools/convert_weights.py DOWNLOADED.pth {shlex.quote(str(file))}"
    if name in AUTHORS_MODELS:
        return (
            f"download the authors' {AUTHORS_MODELS[name]} with GW (pth in the table of "
            f"{AUTHORS_PAGE}; or train it with tools/pretrain_imagenet.py), then: {convert}"
        )
    if name in TORCHVISION_MODELS:
        return (
            f"download torchvision's {TORCHVISION_MODELS[name]} (IMAGENET1K_V1, "
            f"{TORCHVISION_PAGE}), then: {convert}"
        )
    trained = re.fullmatch(r"(R-\d+|X-\d+-\d+x\d+d)-(GW|GN|BN)", name)
    if trained:
        config = f"{trained[1].replace('-', '_')}_{trained[2].lower()}.yaml"
        return (
            "nobody publishes it; it is trained by: python tools/pretrain_imagenet.py "
            f"--config-file configs/ImageNet-Classification/{config} --data IMAGENET "
            f"OUTPUT_DIR output/{name}, then: mkdir -p {shlex.quote(str(file.parent))} && "
            f"cp output/{name}/backbone.pth {shlex.quote(str(file))}"
        )
    there = [path.name for path in file.parent.glob("*.p*")]
    known = [f"{name}.pth" for name in (*AUTHORS_MODELS, *TORCHVISION_MODELS)]
    nearest = difflib.get_close_matches(file.name, there + known, n=3, cutoff=0)
    return f"the nearest names are {', '.join(nearest)}"
