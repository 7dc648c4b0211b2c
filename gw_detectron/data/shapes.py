"""The built-in dataset `gw_shapes`: drawn at first use, the same images everywhere."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm
from PIL import Image
from tqdm import tqdm

from ..errors import UsageError
from ..files import whole_folder
from .drawing import CLASSES, draw_scene

_HEIGHT, _WIDTH = 192, 256


def register_shapes(
    name: str = "gw_shapes",
    root: str | None = None,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
) -> None:
    """
    Registers `<name>_train` and `<name>_val`, kept in COCO format under `<root>/<name>`::

        annotations/instances_train.json  annotations/instances_val.json  train/  val/

    Nothing is drawn until one of the two is asked for, either by its images in `DatasetCatalog`
    or by `json_file` in `MetadataCatalog`. Then both are drawn, unless the folder is there.

    Args:
        root: a directory, by default what DETECTRON2_DATASETS names now, or ./datasets.
        seed: of the whole dataset. An image depends on it, its split and its index only.

    Raises:
        UsageError: at first use, where `root` cannot be written.
    """
    if root is None:
        root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    folder = os.path.join(root, name)
    ensure_drawn = functools.partial(_ensure_drawn, folder, num_train, num_val, seed)
    for split in ("train", "val"):
        metadata = _ShapesMetadata(name=f"{name}_{split}")
        metadata.set(folder=folder, split=split, ensure_drawn=ensure_drawn)
        metadata.set(evaluator_type="coco", thing_classes=list(CLASSES))
        DatasetCatalog.register(metadata.name, functools.partial(_load, metadata))
        MetadataCatalog[metadata.name] = metadata


class _ShapesMetadata(Metadata):
    """
    Metadata whose `json_file` exists once it has been asked for: an evaluator reads the
    annotations by it, and may do so before anything has loaded the dataset.
    """

    @property
    def image_root(self) -> str:
        return os.path.join(self.folder, self.split)

    @property
    def json_file(self) -> str:
        self.ensure_drawn()
        return os.path.join(self.folder, "annotations", f"instances_{self.split}.json")


def _load(metadata: Metadata) -> list[dict[str, Any]]:
    return load_coco_json(metadata.json_file, metadata.image_root, metadata.name)


def _ensure_drawn(folder: str, num_train: int, num_val: int, seed: int) -> None:
    """A folder that is there is left; of several processes that draw at once, one provides it."""
    try:
        with whole_folder(folder) as draft:
            _draw_split(draft, "train", num_train, [seed, 0])
            _draw_split(draft, "val", num_val, [seed, 1])
    except UsageError as error:
        if not os.path.exists(folder):
            raise UsageError(
                f"the built-in dataset: {error}: make room there, or set DETECTRON2_DATASETS to a "
                "directory that can be written"
            ) from error


def _draw_split(folder: Path, split: str, num_images: int, seed: list[int]) -> None:
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(
        range(num_images),
        desc=f"Drawing the built-in dataset ({split})",
        unit="image",
        mininterval=1,
        disable=not comm.is_main_process(),
    ):
        scene = draw_scene(np.random.default_rng([*seed, index]), _HEIGHT, _WIDTH)
        file_name = f"{index + 1:06d}.png"
        Image.fromarray(scene.image).save(folder / split / file_name, compress_level=4)
        images.append({"id": index + 1, "file_name": file_name, "height": _HEIGHT, "width": _WIDTH})
        for label, mask in zip(scene.classes, scene.masks, strict=True):
            polygons = _polygons(mask)
            rle = mask_util.merge(mask_util.frPyObjects(polygons, *mask.shape))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "segmentation": polygons,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "area": int(mask_util.area(rle)),
                }
            )
    content = {
        "info": {"description": f"gw_shapes {split}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """
    Polygons around the pixels of a mask. COCO's polygons add up and cannot cut holes, so a mask
    with a hole is split down the middle of the hole, into halves that have it open.
    """
    from contourpy import contour_generator  # not needed to register

    # The line half-way between pixel centers; padding closes it where the mask meets the border.
    contours = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
    hole = next((c for c in contours if _turns_clockwise(c)), None)
    if hole is not None:
        middle = int(hole[:, 0].mean())
        left, right = mask.copy(), mask.copy()
        left[:, middle:] = False
        right[:, :middle] = False
        return _polygons(left) + _polygons(right)
    # A pixel's center is at +0.5 in COCO's coordinates; padding has moved it by 1.
    return [(contour[:-1] - 0.5).ravel().tolist() for contour in contours]


def _turns_clockwise(contour: np.ndarray) -> bool:
    """contourpy keeps the higher side on the left: outlines turn one way, holes the other."""
    x, y = contour[:-1].T
    x_next, y_next = contour[1:].T
    return bool((x * y_next - x_next * y).sum() < 0)
