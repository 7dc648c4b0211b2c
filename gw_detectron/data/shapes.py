"""The built-in dataset `gw_shapes`: drawn at first use, the same images everywhere."""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
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

logger = logging.getLogger(__name__)

# Raise it with every change of what is drawn or written: files of another version are redrawn.
_VERSION = 1
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
    or by `json_file` in `MetadataCatalog`. Then both are drawn, unless files of the same version,
    sizes and seed are there. Registering a name again with the same arguments does nothing.

    Args:
        root: a directory, by default what DETECTRON2_DATASETS names now, or ./datasets.
        seed: of the whole dataset. An image depends on it, its split and its index only.

    Raises:
        UsageError: the name is taken by other data. At first use: `root` cannot be written.
    """
    if root is None:
        root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    shapes = _Shapes(os.path.join(root, name), seed, num_train, num_val)
    for split in ("train", "val"):
        _register_split(f"{name}_{split}", shapes, split)


@dataclass(frozen=True)
class _Shapes:
    """What the files of both splits follow from, and where they are."""

    folder: str
    seed: int
    num_train: int
    num_val: int

    def is_drawn(self) -> bool:
        try:
            return json.loads(Path(self.folder, "recipe.json").read_text()) == self._recipe()
        except (OSError, ValueError):
            return False

    def _recipe(self) -> dict[str, int]:
        """Is kept beside the files to tell whether they are up to date."""
        recipe = asdict(self) | {"version": _VERSION}
        del recipe["folder"]
        return recipe

    def ensure_drawn(self) -> None:
        """Of several processes that draw at once, one provides the files."""
        if self.is_drawn():
            return
        try:
            with whole_folder(self.folder) as draft:
                (draft / "annotations").mkdir()
                _draw_split(draft, "train", self.num_train, [self.seed, 0])
                _draw_split(draft, "val", self.num_val, [self.seed, 1])
                (draft / "recipe.json").write_text(json.dumps(self._recipe()))
                if os.path.exists(self.folder) and not self.is_drawn():
                    logger.info(f"Replacing {self.folder}: another version, or other sizes")
                    shutil.rmtree(self.folder, ignore_errors=True)
        except OSError as error:
            if not self.is_drawn():  # else another process was quicker
                raise UsageError(
                    f"Cannot write the built-in dataset to {self.folder} ({error.strerror}): make "
                    "room there, or set DETECTRON2_DATASETS to a directory that can be written"
                ) from error


class _ShapesMetadata(Metadata):
    """
    Metadata whose `json_file` exists once it has been asked for: an evaluator reads the
    annotations by it, and may do so before anything has loaded the dataset.
    """

    @property
    def image_root(self) -> str:
        return os.path.join(self.shapes.folder, self.split)

    @property
    def json_file(self) -> str:
        self.shapes.ensure_drawn()
        return os.path.join(self.shapes.folder, "annotations", f"instances_{self.split}.json")


def _register_split(name: str, shapes: _Shapes, split: str) -> None:
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("shapes") != shapes:
            raise UsageError(f"The dataset name {name} is already taken by other data")
        return
    metadata = _ShapesMetadata(name=name)
    metadata.set(shapes=shapes, split=split, evaluator_type="coco", thing_classes=list(CLASSES))
    MetadataCatalog[name] = metadata
    DatasetCatalog.register(
        name, lambda: load_coco_json(metadata.json_file, metadata.image_root, name)
    )


def _draw_split(folder: Path, split: str, num_images: int, seed: list[int]) -> None:
    (folder / split).mkdir()
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
        "info": {"description": f"gw_shapes {split}, version {_VERSION}"},
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
