"""The built-in dataset `gw_shapes`: drawn at first use, the same images everywhere."""

import json
import logging
import os
import shutil
import tempfile
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
from .drawing import CLASSES, draw_scene

__all__ = ["register_shapes"]

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
    files = _ShapesFiles(
        os.path.join(root, name), _Recipe(seed=seed, num_train=num_train, num_val=num_val)
    )
    for split in ("train", "val"):
        _register_split(f"{name}_{split}", files, split)


@dataclass(frozen=True)
class _Recipe:
    """All that the files follow from; kept beside them to tell whether they are up to date."""

    seed: int
    num_train: int
    num_val: int
    version: int = _VERSION


@dataclass(frozen=True)
class _ShapesFiles:
    folder: str
    recipe: _Recipe

    def json_file(self, split: str) -> str:
        return os.path.join(self.folder, "annotations", f"instances_{split}.json")

    def image_root(self, split: str) -> str:
        return os.path.join(self.folder, split)

    def ensure_drawn(self) -> None:
        if not _is_drawn(Path(self.folder), self.recipe):
            _draw_dataset(Path(self.folder), self.recipe)


class _ShapesMetadata(Metadata):
    """
    Metadata whose `json_file` exists once it has been asked for: an evaluator reads the
    annotations by it, and may do so before anything has loaded the dataset.
    """

    @property
    def image_root(self) -> str:
        return self.shapes_files.image_root(self.shapes_split)

    @property
    def json_file(self) -> str:
        self.shapes_files.ensure_drawn()
        return self.shapes_files.json_file(self.shapes_split)


def _register_split(name: str, files: _ShapesFiles, split: str) -> None:
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("shapes_files") != files:
            raise UsageError(f"The dataset name {name} is already taken by other data")
        return

    def load() -> list[dict[str, Any]]:
        return load_coco_json(metadata.json_file, metadata.image_root, name)

    metadata = _ShapesMetadata(name=name)
    metadata.set(
        shapes_files=files,
        shapes_split=split,
        evaluator_type="coco",
        thing_classes=list(CLASSES),
    )
    MetadataCatalog[name] = metadata
    DatasetCatalog.register(name, load)


# ---- Writing the files -----------------------------------------------------------------------


def _is_drawn(folder: Path, recipe: _Recipe) -> bool:
    try:
        return json.loads((folder / "recipe.json").read_text()) == asdict(recipe)
    except (OSError, ValueError):
        return False


def _draw_dataset(folder: Path, recipe: _Recipe) -> None:
    """
    Draws beside `folder` and renames at the end, so that `folder` is complete whenever it is
    there. Of several processes that draw at once, one provides it and the others throw theirs away.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as e:
        raise UsageError(
            f"Cannot write the built-in dataset to {folder} ({e.strerror}): "
            "set DETECTRON2_DATASETS to a directory that can be written"
        ) from e

    try:
        draft.chmod(0o755)  # mkdtemp's directories are for their owner alone
        (draft / "annotations").mkdir()
        _draw_split(draft, "train", recipe.num_train, [recipe.seed, 0])
        _draw_split(draft, "val", recipe.num_val, [recipe.seed, 1])
        (draft / "recipe.json").write_text(json.dumps(asdict(recipe)))
        _move_into_place(draft, folder, recipe)
    except OSError as e:
        raise UsageError(
            f"Cannot write the built-in dataset to {folder} ({e.strerror}): make room there, "
            "or set DETECTRON2_DATASETS to another directory"
        ) from e
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_into_place(draft: Path, folder: Path, recipe: _Recipe) -> None:
    if folder.exists() and not _is_drawn(folder, recipe):
        outdated = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        logger.info(f"Replacing {folder}, which was drawn by another version or with other sizes")
        os.replace(folder, outdated / folder.name)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        os.rename(draft, folder)
    except OSError:
        if not _is_drawn(folder, recipe):  # else another process was quicker
            raise


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
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    **_outline(mask),
                }
            )
    content = {
        "info": {"description": f"gw_shapes {split}, version {_VERSION}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _outline(mask: np.ndarray) -> dict[str, Any]:
    """COCO's "segmentation" (polygons), "bbox" (XYWH) and "area" of a bool mask, (H, W)."""
    polygons = _polygons(mask)
    rle = mask_util.merge(mask_util.frPyObjects(polygons, *mask.shape))
    return {
        "segmentation": polygons,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
    }


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
