"""The user's own data in COCO format: checked, registered, and made to agree with a config."""

import contextlib
import difflib
import json
import logging
import math
import os
import reprlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..config import predicting_head
from ..errors import UsageError

logger = logging.getLogger("detectron2.gw")

# So many of the boxes may enclose nothing of their image: COCO's own files have one or two such.
# Detectron2 leaves them out. More are a mistake in how the file was made
_MAX_SHARE_OF_EMPTY_BOXES = 0.01

# What an entry of each list needs
_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}

# What Detectron2's metadata calls the files and folders of a dataset
_FILES = ("json_file", "image_root", "dirname", "panoptic_json", "panoptic_root", "sem_seg_root")


@dataclass(frozen=True)
class CocoDataset:
    """
    What a config has to know about a registered dataset.

    Attributes:
        classes: names in the order of the model's class indices, which is that of category ids.
        lacks: what a training or evaluation may need and some annotation has not, to the id of
            the first such annotation. The keys: "segmentation", "area", "iscrowd", and "polygons"
            where a mask is run-length encoded. Crowd regions may lack the masks.
    """

    name: str
    classes: tuple[str, ...]
    lacks: dict[str, Any]


def register_datasets(entries: Iterable[Sequence[str]]) -> list[CocoDataset]:
    """
    Registers datasets for `DATASETS.TRAIN` and `DATASETS.TEST`, after reading all of their
    annotations and looking for all of their images.

    Args:
        entries: a (name, path of the annotations, directory of the images) per dataset.
            One that is registered already, with the same paths, is checked and otherwise left.

    Raises:
        UsageError: the annotations or images are not what Detectron2 can use, or a name belongs
            to other data.
    """
    return [_register(*entry) for entry in entries]


def adapt_config(
    cfg: CfgNode,
    datasets: Sequence[CocoDataset],
    stated: Container[str] = (),
    eval_only: bool = False,
) -> None:
    """
    Sets, in place, the numbers of classes that neither the config file nor the overrides state and
    the names of the classes, and checks that the config and the datasets fit together.

    Args:
        cfg: not yet frozen.
        datasets: from `register_datasets`. Without any, only the names in `cfg` are checked.
        stated: the keys whose values were written by the user; see `config.stated_keys`.
        eval_only: `DATASETS.TRAIN` will not be used, so it need not fit.

    Raises:
        UsageError: a name in `cfg` is not registered or a dataset is not in `cfg`; the number
            of classes or the classes themselves disagree; masks are trained or evaluated
            without any; annotations lack what the evaluation needs.
    """
    train_names = () if eval_only else tuple(cfg.DATASETS.TRAIN)
    test_names = tuple(cfg.DATASETS.TEST)
    for name in train_names + test_names:
        require_registered(name)
    for name in (train_names + test_names)[:1]:
        if classes := MetadataCatalog.get(name).get("thing_classes"):
            cfg.MODEL.GW.CLASSES = tuple(map(str, classes))
    if not datasets:
        return

    for dataset in datasets:
        if dataset.name not in (*cfg.DATASETS.TRAIN, *test_names):
            raise UsageError(
                f"The dataset {dataset.name} is neither in DATASETS.TRAIN nor in DATASETS.TEST: "
                f"add DATASETS.TRAIN \"('{dataset.name}',)\" or DATASETS.TEST, likewise"
            )
    for name in train_names + test_names:
        other_classes = MetadataCatalog.get(name).get("thing_classes")
        if other_classes is not None:
            _require_same_classes(datasets[0].name, datasets[0].classes, name, other_classes)
    _set_num_classes(cfg, datasets[0], stated)
    for dataset in datasets:
        name = dataset.name
        _require_complete(cfg, dataset, trains=name in train_names, tests=name in test_names)


# ---- One dataset -----------------------------------------------------------------------------


def _register(name: str, json_file: str, image_dir: str) -> CocoDataset:
    content = read_json(json_file)
    with mistakes_of(json_file):
        _check_lists(content)
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        lacks = _check_annotations(content["annotations"], sizes, categories)
        _check_image_files([image["file_name"] for image in content["images"]], image_dir)
    classes = tuple(categories[id] for id in sorted(categories))
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, json_file, image_dir)
        MetadataCatalog.get(name).thing_classes = list(classes)
    known = MetadataCatalog.get(name).as_dict()
    for key, path in (("json_file", json_file), ("image_root", image_dir)):
        if os.path.realpath(known.get(key, "")) != os.path.realpath(path):
            raise UsageError(f"The dataset name {name} is taken by other data: choose another one")
    return CocoDataset(name, classes, lacks)


def read_json(path: str, what: str = "annotation file") -> Any:
    """Raises UsageError where what should be there can't be read, or is not JSON."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except OSError as error:
        raise UsageError(f"the {what} {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a JSON file in UTF-8: {error}") from error


@contextlib.contextmanager
def mistakes_of(path: str) -> Iterator[None]:
    """Around checks of what a file holds: puts its path before a UsageError's message."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _check_lists(content: Any) -> None:
    """That each entry has the keys it needs and an id of its own, and each image a size."""
    for list_name, keys in _KEYS.items():
        entries = content.get(list_name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise UsageError(f'not in COCO format: it has no list "{list_name}", or an empty one')
        ids: set[int | str] = set()
        for position, entry in enumerate(entries):
            require_keys(entry, keys, f'entry {position} of "{list_name}"')
            if entry["id"] in ids:
                raise UsageError(f'two of its "{list_name}" have the id {entry["id"]!r}')
            ids.add(entry["id"])
        if len(set(map(type, ids))) > 1:  # Detectron2 sorts by them
            raise UsageError(f'the ids of its "{list_name}" are numbers and texts mixed')


def require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises UsageError where it is not an object with these keys, or one's value is impossible."""
    if not isinstance(entry, dict):
        raise UsageError(f"not in COCO format: {where} is not an object")
    for key in keys:
        if key not in entry:
            raise UsageError(f'not in COCO format: {where} has no "{key}"')
        value, what = entry[key], f'the "{key}" of {where}'
        if key.endswith("id"):
            _require(type(value) in (int, str), what, value, "a whole number")
        elif key == "file_name":
            _require(isinstance(value, str), what, value, "a text")
        elif key in ("height", "width"):
            _require(_are_numbers([value]) and value > 0, what, value, "a number of pixels")


def _require(is_right: bool, what: str, value: Any, kind: str) -> None:
    if not is_right:
        raise UsageError(f"{what} is {reprlib.repr(value)}, not {kind}")


def _check_annotations(
    annotations: list[dict[str, Any]],
    sizes: dict[Any, tuple[float, float]],
    categories: dict[Any, str],
) -> dict[str, Any]:
    """Returns what `CocoDataset.lacks` describes; tells where a few boxes enclose nothing."""
    lacks: dict[str, Any] = {}
    empty = []
    for annotation in annotations:
        what = f"annotation {annotation['id']!r}"
        check_object(annotation, what, sizes, categories)
        if annotation.get("ignore"):
            raise UsageError(
                f'{what} has "ignore", which Detectron2 does not know; for a region to be left '
                'out of the training, "iscrowd": 1 does the same'
            )
        for missing in _what_it_lacks(annotation):
            lacks.setdefault(missing, annotation["id"])
        (x, y, w, h), (width, height) = annotation["bbox"], sizes[annotation["image_id"]]
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            empty.append(f"{what}, {annotation['bbox']} in {width} x {height} pixels")
    if empty:
        message = (
            f"{len(empty)} of its {len(annotations)} boxes have no area in their image, first that "
            f"of {empty[0]}"
        )
        if len(empty) > _MAX_SHARE_OF_EMPTY_BOXES * len(annotations):
            raise UsageError(f"{message}: correct or remove them")
        logger.warning(f"{message}: they are left out of the training")
    return lacks


def _what_it_lacks(annotation: dict[str, Any]) -> list[str]:
    missing = [key for key in ("area", "iscrowd") if key not in annotation]
    if not annotation.get("iscrowd"):
        if not annotation.get("segmentation"):
            missing.append("segmentation")
        elif isinstance(annotation["segmentation"], dict):
            missing.append("polygons")
    return missing


def check_object(
    record: dict[str, Any],
    what: str,
    sizes: Mapping[Any, tuple[float, float]],
    category_ids: Container[Any],
    where: str = "the file",
) -> None:
    """
    Checks the values of an annotation, or of a detection in COCO's results format.

    Args:
        what: names it.
        sizes: id of an image -> (width, height).
        where: the images and categories are.

    Raises:
        UsageError: on an unknown image or category, a bbox or a segmentation that isn't one.
    """
    for key, known in (("image_id", sizes), ("category_id", category_ids)):
        what_it_is_of = f"that of any {key.removesuffix('_id')} in {where}"
        _require(record[key] in known, f"the {key} of {what}", record[key], what_it_is_of)
    _require(
        "bbox" not in record or _is_box(record["bbox"]),
        f"the bbox of {what}",
        record.get("bbox"),
        "4 finite numbers [x, y, width, height], of a size that is not negative",
    )
    mask = record.get("segmentation")
    _require(
        _is_mask(mask, sizes[record["image_id"]]),
        f"the segmentation of {what}",
        mask,
        "a list of polygons [x, y, x, y, ...] or a run-length encoding of the image's size",
    )


def _are_numbers(values: list[Any]) -> bool:
    try:
        return {int, float}.issuperset(map(type, values)) and math.isfinite(sum(values))
    except OverflowError:  # of a whole number beyond all floats
        return False


def _is_box(value: Any) -> bool:
    is_box = isinstance(value, list) and len(value) == 4 and _are_numbers(value)
    return is_box and min(value[2:]) >= 0


def _is_mask(value: Any, image_size: tuple[float, float]) -> bool:
    """Or what counts as none; polygons of fewer than three points do."""
    if isinstance(value, dict):
        width, height = image_size
        return value.get("size") == [height, width] and isinstance(value.get("counts"), (list, str))
    if not value:
        return value is None or value == []
    return isinstance(value, list) and all(
        isinstance(polygon, list) and _are_numbers(polygon) for polygon in value
    )


def _check_image_files(file_names: list[str], image_dir: str) -> None:
    if not os.path.isdir(image_dir):
        raise UsageError(f"there is no image directory {image_dir}")
    listings: dict[str, set[str]] = {}
    missing = []
    for file_name in file_names:
        folder, base = os.path.split(os.path.join(image_dir, file_name))
        if folder not in listings:
            # One listing a directory is far quicker than a question for every file
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder] and not os.path.isfile(os.path.join(folder, base)):
            missing.append(file_name)
    if missing:
        raise UsageError(
            f"{len(missing)} of its {len(file_names)} images are not in {image_dir}, the first of "
            f"them {missing[0]!r}"
        )


# ---- The config ------------------------------------------------------------------------------


def require_registered(name: str) -> None:
    """Raises UsageError, with the nearest names, where Detectron2 knows no such dataset."""
    if name in DatasetCatalog:
        return
    nearest = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    hint = f"the nearest known are {', '.join(nearest)}; " if nearest else ""
    raise UsageError(
        f"The dataset {name} is not registered: {hint}"
        f"your own data need --dataset {name} ANNOTATIONS.json IMAGE_DIR"
    )


def require_files(name: str) -> None:
    """Raises UsageError where the files of a dataset that Detectron2 knows are not there."""
    metadata = MetadataCatalog.get(name).as_dict()
    for key in _FILES:
        path = metadata.get(key)
        if path is not None and not PathManager.exists(path):
            raise UsageError(
                f"The dataset {name} is not here: there is no {path} "
                "(DETECTRON2_DATASETS names the folder of Detectron2's own datasets)"
            )


def _require_same_classes(
    name: str, classes: Sequence[str], other_name: str, other_classes: Sequence[str]
) -> None:
    for number, (first, second) in enumerate(zip_longest(classes, other_classes), 1):
        if first != second:
            raise UsageError(
                f"The datasets {name} and {other_name} have {len(classes)} and "
                f"{len(other_classes)} categories, and number {number}, in the order of their ids, "
                f"is {first!r} in {name} and {second!r} in {other_name}"
            )


def _set_num_classes(cfg: CfgNode, dataset: CocoDataset, stated: Container[str]) -> None:
    """A number that the config states for a head it does not use is left as it is."""
    num_classes = len(dataset.classes)
    for head in ("ROI_HEADS", "RETINANET"):
        key = f"MODEL.{head}.NUM_CLASSES"
        if key not in stated:
            cfg.MODEL[head].NUM_CLASSES = num_classes
        elif head == predicting_head(cfg) and cfg.MODEL[head].NUM_CLASSES != num_classes:
            raise UsageError(
                f"The config says {key} = {cfg.MODEL[head].NUM_CLASSES}, and the dataset "
                f"{dataset.name} has {num_classes} categories: add {key} {num_classes}"
            )


def _require_complete(cfg: CfgNode, dataset: CocoDataset, trains: bool, tests: bool) -> None:
    """pycocotools, for one, would find out only after the whole training, with a KeyError."""
    has_masks = cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    needed = {
        "segmentation": (
            has_masks,
            "has no mask, and the config has a mask head: use a Faster R-CNN config, or "
            "MODEL.MASK_ON False",
        ),
        "polygons": (
            has_masks and trains and cfg.INPUT.MASK_FORMAT == "polygon",
            "has a run-length encoded mask, not polygons: add INPUT.MASK_FORMAT bitmask",
        ),
        "area": (tests, "has no area, which COCO's evaluation needs: add it"),
        "iscrowd": (tests, "has no iscrowd, which COCO's evaluation needs: add it"),
    }
    for key, (is_needed, problem) in needed.items():
        if is_needed and key in dataset.lacks:
            raise UsageError(
                f"annotation {dataset.lacks[key]!r} of the dataset {dataset.name} {problem}"
            )
