"""A dataset of Detectron2's as COCO's evaluation sees it: its images and what is on them."""

import contextlib
import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from ...data.coco import require_files, require_registered
from ...errors import UsageError

__all__ = ["GroundTruth", "load_ground_truth"]

_EVALUATED_AS_COCO = ("coco", "coco_panoptic_seg")


@dataclass(frozen=True)
class GroundTruth:
    """
    Attributes:
        name: of the dataset, as Detectron2 has it registered.
        coco: its annotations, each with "area" and "iscrowd".
        category_ids: by class index, that is, in ascending order.
        has_masks: every annotation has one.
    """

    name: str
    coco: COCO
    image_root: str
    category_ids: tuple[int, ...]
    has_masks: bool

    @property
    def class_names(self) -> list[str]:
        return [str(self.coco.cats[id]["name"]) for id in self.category_ids]

    def class_index(self, category_id: int) -> int:
        return self.category_ids.index(category_id)

    def file_name(self, image_id: Any) -> str:
        """As the dataset writes it."""
        return self.coco.imgs[image_id]["file_name"]

    def read_image(self, image_id: Any) -> np.ndarray:
        """
        Returns:
            np.ndarray: RGB, (H, W, 3), uint8.

        Raises:
            UsageError: the file is missing, unreadable, or of another size than the annotations say
        """
        path = os.path.join(self.image_root, self.file_name(image_id))
        try:
            image = read_image(path, format="RGB")
        except FileNotFoundError:
            raise UsageError(f"{self.name}: there is no image file {path}") from None
        except OSError as error:
            raise UsageError(f"{self.name}: the image {path} can't be read: {error}") from error
        expected = tuple(self.coco.imgs[image_id][key] for key in ("height", "width"))
        if image.shape[:2] != expected:
            (height, width), (true_height, true_width) = expected, image.shape[:2]
            raise UsageError(
                f"{self.name}: the image {path} is {true_width} x {true_height} pixels, "
                f"and its annotations are made for {width} x {height}"
            )
        return image


def load_ground_truth(name: str) -> GroundTruth:
    """
    Raises:
        UsageError: Detectron2 knows no such dataset, its files are missing, or it is not one that
            is evaluated as COCO is.
    """
    require_registered(name)
    metadata = MetadataCatalog.get(name)
    json_file, kind = metadata.get("json_file"), metadata.get("evaluator_type")
    if json_file is None or kind not in _EVALUATED_AS_COCO:
        raise UsageError(f"the dataset {name} is not evaluated as COCO is, so it can't be shown")
    require_files(name)
    path = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    if "annotations" not in coco.dataset:
        raise UsageError(f"the dataset {name} has no ground truth: no annotations in {path}")
    for annotation in coco.anns.values():
        # All that is counted here is objects of any size, for which neither makes a difference
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return GroundTruth(
        name=name,
        coco=coco,
        image_root=metadata.get("image_root", ""),
        category_ids=tuple(sorted(coco.getCatIds())),
        has_masks=all(annotation.get("segmentation") for annotation in coco.anns.values()),
    )
