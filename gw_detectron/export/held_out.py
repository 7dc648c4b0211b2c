"""The image on which an export has to do what the model does."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from PIL import Image
from torch import Tensor, nn

from ..data.drawing import draw_scene
from ..errors import UsageError
from .comparison import Detections, detect

_ATTEMPTS = 8  # images of a dataset, or drawn ones, until the model finds something


def find_held_out(cfg: CfgNode, model: nn.Module, path: str) -> tuple[Tensor, str, Detections]:
    """
    The first image in which the model finds something: that of path, else of DATASETS.TEST's first
    that can be read, else drawn ones.

    Args:
        path: of an image, or "".

    Returns:
        (image, source, detections): float32, (3, H, W), as the model takes it; in words; the
        model's own.

    Raises:
        UsageError: path can't be read, or nothing is found.
    """
    mapper = DatasetMapper(cfg, is_train=False)
    sources = []
    with tempfile.TemporaryDirectory() as folder:
        for source, file in _files(cfg, path, folder):
            try:
                image = mapper({"file_name": file})["image"].float()
            except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's, of PNGs
                raise UsageError(f"{source} can't be read as an image: {error}") from error
            detections = detect(model, image)
            if len(detections.scores):
                return image, source, detections
            sources.append(source)
    raise UsageError(
        f"the model finds nothing in {sources[0]}{' and others' * (len(sources) > 1)}, so that an "
        "export can't be checked there: give an image with objects, --image FILE"
    )


def _files(cfg: CfgNode, path: str, folder: str) -> Iterator[tuple[str, str]]:
    """Yields (what it is in words, file)."""
    if path:
        yield path, path
        return
    for name in cfg.DATASETS.TEST:
        try:
            records = DatasetCatalog.get(name)
        except (OSError, UsageError):  # known by name, but not there
            continue
        if records and os.path.isfile(records[0]["file_name"]):
            step = max(1, len(records) // _ATTEMPTS)
            for record in records[::step][:_ATTEMPTS]:
                file = record["file_name"]
                yield f"{os.path.basename(file)} of {name}", file
            return
    for seed in range(_ATTEMPTS):
        file = os.path.join(folder, f"{seed}.png")
        Image.fromarray(draw(seed, 192, 256)).save(file)
        yield f"drawn image {seed}", file


def draw(seed: int, height: int, width: int) -> np.ndarray:
    """Shapes on a background, uint8, (H, W, 3)."""
    return draw_scene(np.random.default_rng(seed), height, width).image


def example(held_out: Tensor) -> Tensor:
    """A drawn image, float32, (3, H, W), neither as high nor as wide as the held-out one."""
    sizes = [(160, 224), (192, 256), (288, 320)]
    taken = held_out.shape[1:]
    height, width = next(size for size in sizes if not set(size) & set(taken))
    return torch.from_numpy(draw(0, height, width).transpose(2, 0, 1).astype("float32"))
