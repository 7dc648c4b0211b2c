"""The user's own data in COCO format: checked, registered, and made to agree with a config."""

import difflib
import json
import logging
import math
import os
import reprlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..errors import UsageError

__all__ = [
    "CocoDataset",
    "adapt_config",
    "check_object",
    "is_number",
    "read_json",
    "register_datasets",
    "require_files",
    "require_keys",
    "require_registered",
]

logger = logging.getLogger("detectron2.gw")

# So many of the boxes may enclose nothing of their image: COCO's own files have one or two such.
# Detectron2 leaves them out. More are a mistake in how the file was made
_MAX_SHARE_OF_EMPTY_BOXES = 0.01

# What Detectron2's metadata calls the files and folders of a dataset
_FILES = (
    "json_file",
    "image_root",
    "image_dir",
    "gt_dir",
    "dirname",
    "panoptic_json",
    "panoptic_root",
    "sem_seg_root",
)


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
    json_file: str
    image_dir: str
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
        UsageError: the annotations or images are not what Detectron2 can use, the datasets do
            not have the same classes, or a name belongs to other data.
    """
    datasets = [_read_dataset(*entry) for entry in entries]
    for dataset in datasets:
        _require_same_classes(datasets[0].name, datasets[0].classes, dataset.name, dataset.classes)
    for dataset in datasets:
        _register(dataset)
    return datasets


def adapt_config(
    cfg: CfgNode,
    datasets: Sequence[CocoDataset],
    stated: Container[str] = (),
    eval_only: bool = False,
) -> None:
    """
    Sets, in place, the numbers of classes that neither the config file nor the overrides state,
    and checks that the config and the datasets fit together.

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
    if not datasets:
        return

    for dataset in datasets:
        _require_in_use(dataset.name, cfg)
    for name in train_names + test_names:
        other_classes = MetadataCatalog.get(name).get("thing_classes")
        if other_classes is not None:
            _require_same_classes(datasets[0].name, datasets[0].classes, name, other_classes)
    _set_num_classes(cfg, datasets[0], stated)
    for dataset in datasets:
        _require_masks(cfg, dataset, in_training=dataset.name in train_names)
        if dataset.name in test_names:
            _require_evaluable(dataset)


# ---- Reading and checking one dataset --------------------------------------------------------


def _read_dataset(name: str, json_file: str, image_dir: str) -> CocoDataset:
    if not name:
        raise UsageError(f"The dataset of {json_file} needs a name that is not empty")
    content = read_json(json_file)
    _check_lists(content, json_file)
    categories = _check_categories(content["categories"], json_file)
    images = _check_images(content["images"], json_file)
    lacks = _check_annotations(content["annotations"], images, set(categories), json_file)
    _check_boxes(content["annotations"], images, json_file)
    _check_image_files([image["file_name"] for image in content["images"]], image_dir, json_file)
    classes = tuple(categories[id] for id in sorted(categories))
    return CocoDataset(name, json_file, image_dir, classes, lacks)


def read_json(path: str, what: str = "annotation file") -> Any:
    """Raises UsageError where what should be there can't be read, or is not JSON."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError as e:
        raise UsageError(f"There is no {what} {path}") from e
    except IsADirectoryError as e:
        raise UsageError(
            f"{path} is a directory where an {what} is expected: "
            "the order is NAME ANNOTATIONS.json IMAGE_DIR"
        ) from e
    except OSError as e:
        raise UsageError(f"Cannot read the {what} {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is not a JSON file in UTF-8: {e}") from e


def _check_lists(content: Any, path: str) -> None:
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} is not in COCO format: it holds a {type(content).__name__}, "
            'not an object with "images", "annotations" and "categories"'
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UsageError(f'{path} is not in COCO format: it has no list "{key}"')
        if not content[key]:
            raise UsageError(f'{path} has no {key}: its list "{key}" is empty')


def _check_categories(categories: list[Any], path: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, category in enumerate(categories):
        require_keys(category, ("id", "name"), f'entry {position} of "categories"', path)
        if category["id"] in names:
            raise UsageError(f'{path}: two of its "categories" have the id {category["id"]!r}')
        names[category["id"]] = str(category["name"])
    _require_one_kind(names, "categories", path)
    return names


def _check_images(images: list[Any], path: str) -> dict[int, tuple[float, float]]:
    """Returns width and height by id."""
    sizes: dict[int, tuple[float, float]] = {}
    for position, image in enumerate(images):
        require_keys(
            image, ("id", "file_name", "height", "width"), f'entry {position} of "images"', path
        )
        if image["id"] in sizes:
            raise UsageError(f'{path}: two of its "images" have the id {image["id"]!r}')
        if not isinstance(image["file_name"], str):
            raise UsageError(f'{path}: the "file_name" of image {image["id"]!r} is not a text')
        for key in ("height", "width"):
            if not is_number(image[key]) or image[key] <= 0:
                raise UsageError(
                    f'{path}: the "{key}" of image {image["id"]!r} is {_show(image[key])}, '
                    "not a number of pixels"
                )
        sizes[image["id"]] = (image["width"], image["height"])
    _require_one_kind(sizes, "images", path)
    return sizes


def _require_one_kind(ids: Iterable[int | str], list_name: str, path: str) -> None:
    """Detectron2 sorts by them."""
    first = {isinstance(id, str): id for id in ids}
    if len(first) > 1:
        raise UsageError(
            f'{path}: the ids of its "{list_name}" are numbers and texts mixed, '
            f"{first[False]!r} and {first[True]!r}"
        )


def _check_annotations(
    annotations: list[Any],
    images: dict[int, tuple[float, float]],
    category_ids: set[int],
    path: str,
) -> dict[str, Any]:
    """Returns what `CocoDataset.lacks` describes."""
    ids: set[int] = set()
    lacks: dict[str, Any] = {}
    for position, annotation in enumerate(annotations):
        required = ("id", "image_id", "category_id", "bbox")
        require_keys(annotation, required, f'entry {position} of "annotations"', path)
        id = annotation["id"]
        if id in ids:
            raise UsageError(f'{path}: two of its "annotations" have the id {id!r}')
        ids.add(id)
        check_object(annotation, f"annotation {id!r}", images, category_ids, path)
        if annotation.get("ignore"):
            raise UsageError(
                f'{path}: annotation {id!r} has "ignore", which Detectron2 does not know; for a '
                'region to be left out of the training, "iscrowd": 1 does the same'
            )
        for missing in _what_it_lacks(annotation):
            lacks.setdefault(missing, id)
    return lacks


def check_object(
    record: dict[str, Any],
    what: str,
    images: Mapping[Any, tuple[float, float]],
    category_ids: Container[Any],
    path: str,
    whose: str = "its",
) -> None:
    """
    Checks the values of an annotation, or of a detection in COCO's results format.

    Args:
        images: id -> (width, height).
        path: of the file that has it, and `what` it is there; `whose` images and categories they
            are.

    Raises:
        UsageError: on an unknown image or category, a bbox or a segmentation that isn't one.
    """
    for key, known, where in (
        ("image_id", images, "images"),
        ("category_id", category_ids, "categories"),
    ):
        if record[key] not in known:
            raise UsageError(
                f"{path}: {what} has the {key} {_show(record[key])}, which is not in {whose} "
                f'"{where}"'
            )
    if "bbox" in record and not _is_box(record["bbox"]):
        raise UsageError(
            f"{path}: the bbox of {what} is {_show(record['bbox'])}, not 4 finite numbers "
            "[x, y, width, height]"
        )
    if not _is_mask(record.get("segmentation"), images[record["image_id"]]):
        raise UsageError(
            f"{path}: the segmentation of {what} is {_show(record['segmentation'])}, neither a "
            "list of polygons [x, y, x, y, ...] nor a run-length encoding of the image's size"
        )


def _check_boxes(annotations: list[Any], images: dict[int, tuple[float, float]], path: str) -> None:
    """A few that enclose nothing are told in a warning."""
    empty = []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        if w < 0 or h < 0:
            raise UsageError(
                f"{path}: the bbox of annotation {annotation['id']!r} is {annotation['bbox']}, of "
                "negative size; it should read [x, y, width, height]"
            )
        width, height = images[annotation["image_id"]]
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            empty.append(annotation)
    if not empty:
        return
    first = empty[0]
    width, height = images[first["image_id"]]
    message = (
        f"{path}: {len(empty)} of its {len(annotations)} boxes have no area in their image, first "
        f"that of annotation {first['id']!r}, [x, y, width, height] = {first['bbox']} in "
        f"{width} x {height} pixels"
    )
    if len(empty) > _MAX_SHARE_OF_EMPTY_BOXES * len(annotations):
        raise UsageError(f"{message}: correct or remove them")
    logger.warning(f"{message}: they are left out of the training")


def _what_it_lacks(annotation: dict[str, Any]) -> list[str]:
    missing = [key for key in ("area", "iscrowd") if key not in annotation]
    if not annotation.get("iscrowd"):
        if not annotation.get("segmentation"):
            missing.append("segmentation")
        elif isinstance(annotation["segmentation"], dict):
            missing.append("polygons")
    return missing


def require_keys(record: Any, keys: Sequence[str], where: str, path: str) -> None:
    """Raises UsageError where a record is not an object with the keys, those of ids with ids."""
    if not isinstance(record, dict):
        raise UsageError(f"{path} is not in COCO format: {where} is not an object")
    for key in keys:
        if key not in record:
            raise UsageError(f'{path} is not in COCO format: {where} has no "{key}"')
        if key.endswith("id") and type(record[key]) not in (int, str):
            raise UsageError(
                f'{path}: the "{key}" of {where} is {_show(record[key])}, not a whole number'
            )


def is_number(value: Any) -> bool:
    return _are_numbers([value])


def _are_numbers(values: list[Any]) -> bool:
    try:
        return {int, float}.issuperset(map(type, values)) and math.isfinite(sum(values))
    except OverflowError:  # of a whole number beyond all floats
        return False


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and _are_numbers(value)


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


def _show(value: Any) -> str:
    """However long it may be."""
    return reprlib.repr(value)


def _check_image_files(file_names: list[str], image_dir: str, json_file: str) -> None:
    if not os.path.isdir(image_dir):
        raise UsageError(f"There is no image directory {image_dir} (for {json_file})")
    listings: dict[str, set[str]] = {}
    missing = []
    for file_name in file_names:
        folder, base = os.path.split(os.path.join(image_dir, file_name))
        if folder not in listings:
            # One listing a directory is far quicker than a question for every file.
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder] and not os.path.isfile(os.path.join(folder, base)):
            missing.append(file_name)
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(file_names)} images of {json_file} are not in "
            f"{image_dir}, the first of them {missing[0]!r}"
        )


# ---- Registering -----------------------------------------------------------------------------


def _register(dataset: CocoDataset) -> None:
    metadata = MetadataCatalog.get(dataset.name)
    if dataset.name in DatasetCatalog:
        known = metadata.as_dict()
        if not (
            _is_same_path(known.get("json_file"), dataset.json_file)
            and _is_same_path(known.get("image_root"), dataset.image_dir)
        ):
            raise UsageError(
                f"The dataset name {dataset.name} is taken by other data: choose another one"
            )
        return
    register_coco_instances(dataset.name, {}, dataset.json_file, dataset.image_dir)
    metadata.thing_classes = list(dataset.classes)


def _is_same_path(known: str | None, path: str) -> bool:
    return known is not None and os.path.realpath(known) == os.path.realpath(path)


def _require_same_classes(
    name: str, classes: Sequence[str], other_name: str, other_classes: Sequence[str]
) -> None:
    if list(classes) == list(other_classes):
        return
    if len(classes) != len(other_classes):
        counts = f"{len(classes)} and {len(other_classes)} categories"
    else:
        counts = "categories that disagree"
    for index in range(max(len(classes), len(other_classes))):
        first, second = (
            repr(names[index]) if index < len(names) else "nothing"
            for names in (classes, other_classes)
        )
        if first != second:
            raise UsageError(
                f"The datasets {name} and {other_name} have {counts}: number {index + 1}, "
                f"in the order of their ids, is {first} in {name} and {second} in {other_name}"
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


def _require_in_use(name: str, cfg: CfgNode) -> None:
    if name not in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        raise UsageError(
            f"The dataset {name} is neither in DATASETS.TRAIN nor in DATASETS.TEST: "
            f"add DATASETS.TRAIN \"('{name}',)\" or DATASETS.TEST \"('{name}',)\""
        )


def _set_num_classes(cfg: CfgNode, dataset: CocoDataset, stated: Container[str]) -> None:
    """A number that the config states for a head it does not use is left as it is."""
    num_classes = len(dataset.classes)
    used = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    for head in ("ROI_HEADS", "RETINANET"):
        key = f"MODEL.{head}.NUM_CLASSES"
        if key not in stated:
            cfg.MODEL[head].NUM_CLASSES = num_classes
        elif head == used and cfg.MODEL[head].NUM_CLASSES != num_classes:
            raise UsageError(
                f"The config says {key} = {cfg.MODEL[head].NUM_CLASSES}, and the dataset "
                f"{dataset.name} has {num_classes} categories: add {key} {num_classes}"
            )


def _require_masks(cfg: CfgNode, dataset: CocoDataset, in_training: bool) -> None:
    if not cfg.MODEL.MASK_ON or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return
    if "segmentation" in dataset.lacks:
        raise UsageError(
            f"The config has a mask head, and annotation {dataset.lacks['segmentation']!r} of the "
            f"dataset {dataset.name} has no mask: use a Faster R-CNN config, or MODEL.MASK_ON False"
        )
    if in_training and cfg.INPUT.MASK_FORMAT == "polygon" and "polygons" in dataset.lacks:
        raise UsageError(
            f"The mask of annotation {dataset.lacks['polygons']!r} of the dataset {dataset.name} "
            "is run-length encoded, not a polygon: add INPUT.MASK_FORMAT bitmask"
        )


def _require_evaluable(dataset: CocoDataset) -> None:
    """pycocotools finds out only after the whole training, with a KeyError."""
    for key in ("area", "iscrowd"):
        if key in dataset.lacks:
            raise UsageError(
                f'Annotation {dataset.lacks[key]!r} of the dataset {dataset.name} has no "{key}", '
                f"which COCO's evaluation needs: add it to {dataset.json_file}"
            )
