"""
One pass over a COCO file. Values that Detectron2 or pycocotools would take for something else, or
fail on, are repaired where their meaning is certain; else a UsageError names entry and field.
"""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from tabulate import tabulate

from ..errors import UsageError
from .images import read
from .keypoints import Keypoints, keypoints_of
from .values import WRITTEN_AS_TEXT, number, numbers, require, require_keys

_LISTS = ("images", "annotations", "categories")

# So many of the boxes may enclose nothing of their image: COCO's own files have one or two such.
# More are a mistake in how the file was made
_MAX_SHARE_OF_EMPTY_BOXES = 0.01


# ---- Ids --------------------------------------------------------------------------------------


def _whole(value: Any) -> int | str | None:
    """An id: 7 for 7.0 and "7"; a text that is not how a number is written stays."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"0|-?[1-9]\d{0,17}", value) else value
    found = value if type(value) in (int, float) else math.nan
    return int(found) if abs(found) < 2**63 and found == int(found) else None


class Ids:
    """The ids of a list's entries, by which others refer to them; texts of numbers are numbers."""

    def __init__(self, entries: Sequence[Any], name: str, repairs: Counter[str]):
        """
        Writes the ids into the entries.

        Raises:
            UsageError: an entry has no id, it is no whole number or text, or two are the same.
        """
        for position, entry in enumerate(entries):
            require_keys(entry, ("id",), f'entry {position} of "{name}"')
        given = [entry["id"] for entry in entries]
        self._convert, found = _whole, [*map(_whole, given)]
        if {str}.issuperset(map(type, given)) and len(set(map(type, found))) > 1:
            self._convert, found = str, given
        self._known = set()
        for position, (entry, id) in enumerate(zip(entries, found, strict=True)):
            what = f'the "id" of entry {position} of "{name}"'
            require(id is not None, what, entry["id"], "a whole number")
            if id in self._known:
                raise UsageError(f'two of its "{name}" have the id {id!r}')
            repairs[WRITTEN_AS_TEXT] += id != entry["id"]
            self._known.add(id)
            entry["id"] = id
        if len(set(map(type, self._known))) > 1:  # Detectron2 sorts by them
            raise UsageError(f'the ids of its "{name}" are numbers and texts mixed')

    def find(self, value: Any) -> int | str | None:
        """The id that a value refers to, None where there is no such entry."""
        id = self._convert(value)
        return id if id in self._known else None


# ---- Objects ---------------------------------------------------------------------------------


@dataclass
class Objects:
    """
    Checks the values of objects: annotations, or detections in COCO's results format.

    Attributes:
        images: ids of the images.
        categories: ids of the categories.
        sizes: id of an image -> (width, height).
        where: the images and categories are.
        repairs: what was repaired -> how often.
    """

    images: Ids
    categories: Ids
    sizes: Mapping[Any, tuple[int, int]]
    where: str = "the file"
    repairs: Counter[str] = field(default_factory=Counter)

    def check(self, record: dict[str, Any], what: str) -> None:
        """
        Repairs image_id, category_id, segmentation and bbox in place. Afterwards there is a bbox,
        and a segmentation only where it is a mask.

        Raises:
            UsageError: one of them isn't there and can't be told from the others, or is no such
                thing.
        """
        for key, ids in (("image_id", self.images), ("category_id", self.categories)):
            id = ids.find(record[key])
            of = f"that of any {key.removesuffix('_id')} in {self.where}"
            require(id is not None, f"the {key} of {what}", record[key], of)
            self._put(record, key, id)
        self._mask(record, what)
        box = record.get("bbox")
        if box in (None, []) and "segmentation" in record:
            record["bbox"] = mask_util.toBbox(self.rle(record)).tolist()
            self.repairs["missing boxes, taken around the mask"] += 1
            return
        require_keys(record, ("bbox",), what)
        found = numbers(box)
        is_box = found is not None and len(found) == 4 and min(found[2:]) >= 0
        kind = "4 finite numbers [x, y, width, height], of a size that is not negative"
        require(is_box, f"the bbox of {what}", box, kind)
        self._put(record, "bbox", found)

    def rle(self, record: dict[str, Any]) -> dict[str, Any]:
        """The mask of a record that has been checked, as pycocotools has it."""
        width, height = self.sizes[record["image_id"]]
        mask = record["segmentation"]
        if isinstance(mask, dict) and not isinstance(mask["counts"], list):
            return mask
        found = mask_util.frPyObjects(mask, height, width)
        return mask_util.merge(found) if isinstance(found, list) else found

    def _put(self, record: dict[str, Any], key: str, value: Any) -> None:
        self.repairs[WRITTEN_AS_TEXT] += value != record[key]
        record[key] = value

    def _mask(self, record: dict[str, Any], what: str) -> None:
        given = record.pop("segmentation", None)
        if not given:
            return
        width, height = self.sizes[record["image_id"]]
        if isinstance(given, dict):
            is_mask = given.get("size") == [height, width] and _is_whole(given, height * width)
            if is_mask:
                record["segmentation"] = given
        else:
            polygons = given
            if numbers(given) is not None:  # x, y, x, y, ... without the list around them
                polygons = [given]
                self.repairs["polygons without a list around them, put into one"] += 1
            found = list(map(numbers, polygons)) if isinstance(polygons, list) else [None]
            is_mask = None not in found
            if is_mask:
                good = [one for one in found if _has_area(one)]
                dropped = "polygons of fewer than 3 points, half a point or no area, left out"
                self.repairs[dropped] += len(found) - len(good)
                self.repairs[WRITTEN_AS_TEXT] += found != polygons
                if good:
                    record["segmentation"] = good
        kind = "a list of polygons [x, y, x, y, ...] or a run-length encoding of the image's size"
        require(is_mask, f"the segmentation of {what}", given, kind)


def _has_area(polygon: Sequence[float]) -> bool:
    """Whether x, y, x, y, ... enclose something; 4 numbers would be a box to pycocotools."""
    if len(polygon) < 6 or len(polygon) % 2:
        return False
    x, y = polygon[::2], polygon[1::2]
    twice = sum(map(mul, x, [*y[1:], y[0]])) - sum(map(mul, y, [*x[1:], x[0]]))
    return abs(twice) > 1e-6


def _is_whole(rle: Mapping[str, Any], size: int) -> bool:
    """Whether its runs make up the image: of shorter ones pycocotools makes what is in memory."""
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = _runs(counts)
    if not isinstance(counts, list) or not {int}.issuperset(map(type, counts)):
        return False
    return sum(counts) == size and min(counts) >= 0


def _runs(text: str) -> list[int]:
    """
    COCO's compressed counts: five bits a character, the lowest first, of a run less the one two
    before it.
    """
    runs: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


# ---- The file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotations:
    """
    What a file gives, after its repair.

    Attributes:
        classes: names in the order of the model's class indices, which is that of category ids.
        lacks: what a config may ask of it -> why it is not there. The keys: "training" and
            "evaluation", where there is no object; "segmentation"; "polygons", where a mask is
            run-length encoded; "keypoints"; "labelled keypoints"; and "flip", where a keypoint has
            no counterpart on the other side.
        keypoints: of the category that has some.
        is_changed: something was repaired.
        report: what it gives, in lines.
    """

    classes: tuple[str, ...]
    lacks: dict[str, str]
    keypoints: Keypoints | None
    is_changed: bool
    report: str


def check(content: Any, image_dir: str) -> Annotations:
    """
    Checks a file's content, and repairs it in place.

    Args:
        content: of a JSON file.
        image_dir: of its images.

    Raises:
        UsageError: it is not in COCO's format, values of it are no such thing, or its boxes look
            like those of another format.
    """
    for name in _LISTS:
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise UsageError(f'not in COCO format: it has no list "{name}", or an empty one')
    images, annotations, categories = (content[name] for name in _LISTS)
    repairs: Counter[str] = Counter()
    ids = Ids(images, "images", repairs), Ids(categories, "categories", repairs)
    _check_names(categories, repairs)
    _check_files(images, image_dir, repairs)
    _check_sizes(images, image_dir, repairs)
    names = {category["id"]: category["name"] for category in categories}
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    objects = Objects(*ids, sizes, repairs=repairs)
    lacks: dict[str, str] = {}
    keypoints = keypoints_of(categories, lacks)
    for position, annotation in enumerate(annotations):
        where = f'entry {position} of "annotations"'
        require_keys(annotation, ("image_id", "category_id"), where)
        what = f"annotation {annotation['id']!r}" if "id" in annotation else where
        objects.check(annotation, what)
        _check_flags(annotation, what, repairs)
        _check_area(annotation, objects)
        if keypoints:
            keypoints.check(annotation, what, repairs, lacks)
        elif annotation.pop("keypoints", None):
            repairs["lists of keypoints without names, left out"] += 1
        if not annotation["iscrowd"]:
            mask = annotation.get("segmentation")
            if mask is None:
                lacks.setdefault("segmentation", f"{what} has no mask")
            elif isinstance(mask, dict):
                lacks.setdefault("polygons", f"{what} has a run-length encoded mask, not polygons")
    if keypoints and not any(annotation["num_keypoints"] for annotation in annotations):
        lacks["labelled keypoints"] = "no object has a labelled keypoint"
    _check_format(annotations, sizes)
    dropped = _drop_empty(content, sizes)
    _number_anew(content["annotations"], repairs)
    crowds = sum(annotation["iscrowd"] for annotation in content["annotations"])
    if crowds == len(content["annotations"]):
        why = f": all {crowds} are crowd regions (iscrowd 1)" if crowds else ""
        lacks["training"] = f"there is no object to train on{why}"
        lacks["evaluation"] = f"there is no object to evaluate on{why}"
    repairs = +repairs
    report = _report(content, names, dropped, repairs, keypoints)
    classes = tuple(names[id] for id in sorted(names))
    return Annotations(classes, lacks, keypoints, bool(repairs or dropped), report)


def _check_names(categories: list[dict[str, Any]], repairs: Counter[str]) -> None:
    for position, category in enumerate(categories):
        where = f'entry {position} of "categories"'
        require_keys(category, ("name",), where)
        name = category["name"]
        if type(name) in (int, float):
            repairs["category names that are numbers, taken as text"] += 1
            category["name"] = name = str(name)
        is_name = isinstance(name, str) and bool(name.strip())
        require(is_name, f'the "name" of {where}', name, "a text")


def _check_files(images: list[Any], image_dir: str, repairs: Counter[str]) -> None:
    for position, image in enumerate(images):
        where = f'entry {position} of "images"'
        require_keys(image, ("file_name",), where)
        name = image["file_name"]
        require(isinstance(name, str) and name != "", f'the "file_name" of {where}', name, "a text")
    if not os.path.isdir(image_dir):
        raise UsageError(f"there is no image directory {image_dir}")
    listings: dict[str, set[str]] = {}

    def is_there(file_name: str) -> bool:
        folder, base = os.path.split(os.path.join(image_dir, file_name))
        if folder not in listings:
            # One listing a directory is far quicker than a question for every file
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return base in listings[folder] or os.path.isfile(os.path.join(folder, base))

    missing = []
    for image in images:
        if is_there(image["file_name"]):
            continue
        as_here = image["file_name"].replace("\\", "/")
        if as_here != image["file_name"] and is_there(as_here):
            repairs["paths of images with \\, taken as /"] += 1
            image["file_name"] = as_here
        else:
            missing.append(image["file_name"])
    if missing:
        raise UsageError(
            f"{len(missing)} of its {len(images)} images are not in {image_dir}, the first of them "
            f"{missing[0]!r}"
        )


def _check_sizes(images: list[Any], image_dir: str, repairs: Counter[str]) -> None:
    for position, image in enumerate(images):
        if image.get("width") is None or image.get("height") is None:
            repairs["image sizes that are missing, read from the files"] += 1
            pixels = read(os.path.join(image_dir, image["file_name"]), "RGB")
            image["height"], image["width"] = pixels.shape[:2]
            continue
        for key in ("width", "height"):
            size = number(image[key])
            is_size = size is not None and size > 0 and size == int(size)
            what = f'the "{key}" of entry {position} of "images"'
            require(is_size, what, image[key], "a number of pixels")
            repairs[WRITTEN_AS_TEXT] += size != image[key]
            image[key] = int(size)


def _check_flags(annotation: dict[str, Any], what: str, repairs: Counter[str]) -> None:
    ignored = annotation.pop("ignore", 0)
    if ignored and ignored != "0":
        raise UsageError(
            f'{what} has "ignore", which Detectron2 does not know; for a region to be left '
            'out of the training, "iscrowd": 1 does the same'
        )
    repairs["ignore that is null or another nothing, taken as 0"] += ignored != 0
    given = annotation.get("iscrowd")
    if given is None:
        repairs["iscrowd that is missing, taken as 0"] += 1
        given = 0
    crowd = int(given) if isinstance(given, bool) else number(given)
    require(crowd in (0, 1), f"the iscrowd of {what}", given, "0 or 1")
    repairs[WRITTEN_AS_TEXT] += isinstance(given, str)
    annotation["iscrowd"] = int(crowd)


def _check_area(annotation: dict[str, Any], objects: Objects) -> None:
    """pycocotools ignores an object of a negative area, and takes one of 0 for small."""
    area = number(annotation.get("area"))
    if area is not None and area > 0:
        objects.repairs[WRITTEN_AS_TEXT] += isinstance(annotation["area"], str)
        annotation["area"] = area
        return
    objects.repairs["areas that are missing or no such thing, computed"] += 1
    is_masked = "segmentation" in annotation
    area = float(mask_util.area(objects.rle(annotation))) if is_masked else 0.0
    annotation["area"] = area or math.prod(annotation["bbox"][2:])


def _check_format(annotations: list[Any], sizes: Mapping[Any, tuple[int, int]]) -> None:
    """Raises UsageError where the boxes make sense, but not as [x, y, width, height]."""
    x, y, w, h = np.array([annotation["bbox"] for annotation in annotations], dtype=float).T
    width, height = np.array([sizes[annotation["image_id"]] for annotation in annotations]).T
    looks = ""
    if max(x.max(), y.max(), w.max(), h.max()) <= 1 and min(width.min(), height.min()) > 1:
        looks = "fractions of the image's size"
    elif np.mean((x + w > width + 1) | (y + h > height + 1)) > 0.1:
        corners = (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
        across = np.abs(2 * x - width) <= width - w + 2
        down = np.abs(2 * y - height) <= height - h + 2
        if corners.all():
            looks = "two corners [x, y, x, y]"
        elif (across & down).all():
            looks = "a centre and a size"
    if looks:
        raise UsageError(
            f"its boxes look like {looks}: as COCO's [x, y, width, height] they are not within "
            "their images; convert them"
        )


def _drop_empty(content: dict[str, Any], sizes: Mapping[Any, tuple[int, int]]) -> Counter[Any]:
    """
    Leaves out annotations whose boxes have no area in their image, which nothing can detect.

    Returns:
        category -> how many.

    Raises:
        UsageError: there are too many of them.
    """
    kept, empty = [], []
    for annotation in content["annotations"]:
        (x, y, w, h), (width, height) = annotation["bbox"], sizes[annotation["image_id"]]
        is_empty = min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0)
        (empty if is_empty else kept).append(annotation)
    if len(empty) > _MAX_SHARE_OF_EMPTY_BOXES * len(content["annotations"]):
        first, (width, height) = empty[0], sizes[empty[0]["image_id"]]
        raise UsageError(
            f"{len(empty)} of its {len(content['annotations'])} boxes have no area in their image, "
            f"first that of annotation {first.get('id')!r}, {first['bbox']} in {width} x {height} "
            "pixels: correct or remove them"
        )
    content["annotations"] = kept
    return Counter(annotation["category_id"] for annotation in empty)


def _number_anew(annotations: list[Any], repairs: Counter[str]) -> None:
    """Nothing refers to an annotation's id, and pycocotools takes 0 for no annotation."""
    ids = [annotation.get("id") for annotation in annotations]
    are_right = {int}.issuperset(map(type, ids)) and len(set(ids)) == len(ids)
    if are_right and (not ids or (min(ids) > 0 and max(ids) < 2**53)):
        return
    repairs["annotation ids, new since one was 0, shared or not whole"] += len(ids)
    for id, annotation in enumerate(annotations, 1):
        annotation["id"] = id


def _report(
    content: dict[str, Any],
    names: Mapping[Any, str],
    dropped: Counter[Any],
    repairs: Counter[str],
    keypoints: Keypoints | None,
) -> str:
    """A row a class, what was repaired, and what training may miss."""
    annotations = content["annotations"]
    objects, crowd = (
        Counter(a["category_id"] for a in annotations if a["iscrowd"] == is_crowd)
        for is_crowd in (0, 1)
    )
    images: defaultdict[Any, set[Any]] = defaultdict(set)
    for annotation in annotations:
        images[annotation["category_id"]].add(annotation["image_id"])
    columns = {"images": {id: len(of) for id, of in images.items()}, "objects": objects}
    columns |= {"crowd": crowd} if crowd else {}
    columns |= {"no area, left out": dropped} if dropped else {}
    rows = [[names[id], *(of.get(id, 0) for of in columns.values())] for id in sorted(names)]
    if len(rows) > 1:
        with_objects = len(set().union(*images.values()))
        rows.append(["all", with_objects, *(sum(of.values()) for of in [*columns.values()][1:])])
    lines = [f"{len(content['images'])} images", "", tabulate(rows, ["class", *columns]), ""]
    lines += [f"repaired: {what} ({count} times)" for what, count in repairs.items()]
    if without := [names[id] for id in sorted(names) if not objects[id]]:
        more = ", ..." if len(without) > 5 else ""
        lines.append(f"no object of {', '.join(without[:5])}{more}")
    if keypoints and not keypoints.flip_map:
        lines.append("no keypoint has a left or right in its name: mirrored images exchange none")
    return "\n".join(lines)
