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
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

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
_FILES = (
    *("json_file", "image_root", "image_dir", "gt_dir", "dirname", "panoptic_json"),
    *("panoptic_root", "sem_seg_root"),
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
    with mistakes_of(json_file):
        _check_lists(content)
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        sizes = _check_images(content["images"])
        lacks = _check_annotations(content["annotations"], sizes, categories)
        warning = _check_boxes(content["annotations"], sizes)
    if warning:
        logger.warning(f"{json_file}: {warning}: they are left out of the training")
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
    except ValueError as e:
        raise UsageError(f"{path} is not a JSON file in UTF-8: {e}") from e


@contextlib.contextmanager
def mistakes_of(path: str) -> Iterator[None]:
    """Around checks of what a file holds: puts its path before a UsageError's message."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _check_lists(content: Any) -> None:
    """That each entry has the keys it needs and an id of its own."""
    if not isinstance(content, dict):
        raise UsageError(
            f"not in COCO format: it holds a {type(content).__name__}, "
            'not an object with "images", "annotations" and "categories"'
        )
    for list_name, keys in _KEYS.items():
        if not isinstance(content.get(list_name), list):
            raise UsageError(f'not in COCO format: it has no list "{list_name}"')
        if not content[list_name]:
            raise UsageError(f'it has no {list_name}: its list "{list_name}" is empty')
        ids: set[int | str] = set()
        for position, entry in enumerate(content[list_name]):
            require_keys(entry, keys, f'entry {position} of "{list_name}"')
            if entry["id"] in ids:
                raise UsageError(f'two of its "{list_name}" have the id {entry["id"]!r}')
            ids.add(entry["id"])
        first = {isinstance(id, str): id for id in ids}
        if len(first) > 1 and list_name != "annotations":  # Detectron2 sorts by them
            raise UsageError(
                f'the ids of its "{list_name}" are numbers and texts mixed, '
                f"{first[False]!r} and {first[True]!r}"
            )


def require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises UsageError where it is not an object with the keys, those of ids with ids."""
    if not isinstance(entry, dict):
        raise UsageError(f"not in COCO format: {where} is not an object")
    for key in keys:
        if key not in entry:
            raise UsageError(f'not in COCO format: {where} has no "{key}"')
        if key.endswith("id") and type(entry[key]) not in (int, str):
            raise UsageError(f'the "{key}" of {where} is {_show(entry[key])}, not a whole number')


def _check_images(images: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Returns width and height by id."""
    for image in images:
        if not isinstance(image["file_name"], str):
            raise UsageError(f'the "file_name" of image {image["id"]!r} is not a text')
        for key in ("height", "width"):
            if not is_number(image[key]) or image[key] <= 0:
                raise UsageError(
                    f'the "{key}" of image {image["id"]!r} is {_show(image[key])}, '
                    "not a number of pixels"
                )
    return {image["id"]: (image["width"], image["height"]) for image in images}


def _check_annotations(
    annotations: list[dict[str, Any]],
    sizes: dict[int, tuple[float, float]],
    categories: dict[int, str],
) -> dict[str, Any]:
    """Returns what `CocoDataset.lacks` describes."""
    lacks: dict[str, Any] = {}
    for annotation in annotations:
        id = annotation["id"]
        check_object(annotation, f"annotation {id!r}", sizes, categories)
        if annotation.get("ignore"):
            raise UsageError(
                f'annotation {id!r} has "ignore", which Detectron2 does not know; for a '
                'region to be left out of the training, "iscrowd": 1 does the same'
            )
        for missing in _what_it_lacks(annotation):
            lacks.setdefault(missing, id)
    return lacks


def check_object(
    record: dict[str, Any],
    what: str,
    sizes: Mapping[Any, tuple[float, float]],
    category_ids: Container[Any],
    whose: str = "its",
) -> None:
    """
    Checks the values of an annotation, or of a detection in COCO's results format.

    Args:
        what: names it.
        sizes: id of an image -> (width, height).
        whose: the images and categories are.

    Raises:
        UsageError: on an unknown image or category, a bbox or a segmentation that isn't one.
    """
    for key, known, where in (
        ("image_id", sizes, "images"),
        ("category_id", category_ids, "categories"),
    ):
        if record[key] not in known:
            raise UsageError(
                f'{what} has the {key} {_show(record[key])}, which is not in {whose} "{where}"'
            )
    if "bbox" in record and not _is_box(record["bbox"]):
        raise UsageError(
            f"the bbox of {what} is {_show(record['bbox'])}, not 4 finite numbers "
            "[x, y, width, height]"
        )
    if not _is_mask(record.get("segmentation"), sizes[record["image_id"]]):
        raise UsageError(
            f"the segmentation of {what} is {_show(record['segmentation'])}, neither a list of "
            "polygons [x, y, x, y, ...] nor a run-length encoding of the image's size"
        )


def _check_boxes(
    annotations: list[dict[str, Any]], sizes: dict[int, tuple[float, float]]
) -> str | None:
    """Returns a warning where a few enclose nothing."""
    empty = []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        if w < 0 or h < 0:
            raise UsageError(
                f"the bbox of annotation {annotation['id']!r} is {annotation['bbox']}, of "
                "negative size; it should read [x, y, width, height]"
            )
        width, height = sizes[annotation["image_id"]]
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            empty.append(annotation)
    if not empty:
        return None
    first = empty[0]
    width, height = sizes[first["image_id"]]
    message = (
        f"{len(empty)} of its {len(annotations)} boxes have no area in their image, first "
        f"that of annotation {first['id']!r}, [x, y, width, height] = {first['bbox']} in "
        f"{width} x {height} pixels"
    )
    if len(empty) > _MAX_SHARE_OF_EMPTY_BOXES * len(annotations):
        raise UsageError(f"{message}: correct or remove them")
    return message


def _what_it_lacks(annotation: dict[str, Any]) -> list[str]:
    missing = [key for key in ("area", "iscrowd") if key not in annotation]
    if not annotation.get("iscrowd"):
        if not annotation.get("segmentation"):
            missing.append("segmentation")
        elif isinstance(annotation["segmentation"], dict):
            missing.append("polygons")
    return missing


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
