"""The user's own data in COCO format: checked, registered, and made to agree with a config."""

import codecs
import difflib
import functools
import json
import os
import tempfile
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..config import predicting_head
from ..errors import UsageError
from .annotations import Annotations, check
from .values import mistakes_of, read_json

_COCO_KEYPOINTS = 17  # of a person, for which COCO's evaluation has tolerances

# What Detectron2's metadata calls the files and folders of a dataset
_FILES = ("json_file", "image_root", "dirname", "panoptic_json", "panoptic_root", "sem_seg_root")


@dataclass(frozen=True)
class CocoDataset:
    """
    A registered dataset.

    Attributes:
        file: the path of its annotations, as the user wrote it.
        annotations: what the file gives.
    """

    name: str
    file: str
    annotations: Annotations

    @property
    def classes(self) -> tuple[str, ...]:
        return self.annotations.classes

    @property
    def report(self) -> str:
        """A title, and what the annotations give."""
        return f"{self.name}, {self.file}: {self.annotations.report}"


def register_datasets(entries: Iterable[Sequence[str]]) -> list[CocoDataset]:
    """
    Registers datasets for `DATASETS.TRAIN` and `DATASETS.TEST`, after reading all of their
    annotations and looking for all of their images. Where annotations need a repair, a repaired
    copy of the file is registered; images and categories keep their ids in it.

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
    if cfg.MODEL.KEYPOINT_ON:
        _set_keypoints(cfg, datasets, stated)
    for dataset in datasets:
        name = dataset.name
        _require_complete(cfg, dataset, trains=name in train_names, tests=name in test_names)


# ---- One dataset -----------------------------------------------------------------------------


def _register(name: str, json_file: str, image_dir: str) -> CocoDataset:
    changed = os.stat(json_file).st_mtime_ns if os.path.isfile(json_file) else 0
    annotations, path = _read(json_file, image_dir, changed)
    metadata, source = MetadataCatalog.get(name), (json_file, image_dir)
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, path, image_dir)
        metadata.set(source=source, thing_classes=list(annotations.classes))
        if points := annotations.keypoints:
            color = (102, 204, 255)
            metadata.set(
                keypoint_names=list(points.names),
                keypoint_flip_map=points.flip_map,
                keypoint_connection_rules=[(*pair, color) for pair in points.skeleton],
            )
    known = metadata.get("source", ("", ""))
    if [*map(os.path.realpath, known)] != [*map(os.path.realpath, source)]:
        raise UsageError(f"The dataset name {name} is taken by other data: choose another one")
    return CocoDataset(name, json_file, annotations)


@functools.lru_cache(maxsize=64)
def _read(json_file: str, image_dir: str, changed: int) -> tuple[Annotations, str]:
    """
    Args:
        changed: when the file was changed last; a process reads each version once.

    Returns:
        (what the annotations give, the path of the file or of its repaired copy)
    """
    content = read_json(json_file)
    with mistakes_of(json_file):
        annotations = check(content, image_dir)
    if not annotations.is_changed and not _has_mark(json_file):
        return annotations, json_file
    copy = Path(tempfile.mkdtemp(dir=_copies().name), Path(json_file).name)
    copy.write_text(json.dumps(content), encoding="utf-8")
    return annotations, str(copy)


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="gw_detectron-")


def _has_mark(path: str) -> bool:
    """Whether the file begins as some programs' UTF-8 does, on which pycocotools fails."""
    with open(path, "rb") as file:
        return file.read(3) == codecs.BOM_UTF8


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
    """Detectron2 and pycocotools, for two, would find out late, with a traceback."""
    has_masks = cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    has_keypoints = cfg.MODEL.KEYPOINT_ON
    lacks = dataset.annotations.lacks
    needed = {
        "training": (trains, ""),
        "evaluation": (tests, ""),
        "segmentation": (
            has_masks,
            ", and the config has a mask head: use a Faster R-CNN config, or MODEL.MASK_ON False",
        ),
        "polygons": (
            has_masks and trains and cfg.INPUT.MASK_FORMAT == "polygon",
            ": add INPUT.MASK_FORMAT bitmask",
        ),
        "keypoints": (has_keypoints, ", and MODEL.KEYPOINT_ON needs keypoints"),
        "labelled keypoints": (has_keypoints, ", and MODEL.KEYPOINT_ON needs some"),
        "flip": (
            has_keypoints and trains and cfg.INPUT.RANDOM_FLIP == "horizontal",
            ", so that it can't be mirrored: add INPUT.RANDOM_FLIP none",
        ),
    }
    for key, (is_needed, way_out) in needed.items():
        if is_needed and key in lacks:
            raise UsageError(f"the dataset {dataset.name}: {lacks[key]}{way_out}")


def _set_keypoints(cfg: CfgNode, datasets: Sequence[CocoDataset], stated: Container[str]) -> None:
    points = {d.name: d.annotations.keypoints.names for d in datasets if d.annotations.keypoints}
    if not points:
        return
    if len({*points.values()}) > 1:
        raise UsageError(f"The keypoints of the datasets {' and '.join(points)} are not the same")
    (name, names), *_ = points.items()
    head, key = cfg.MODEL.ROI_KEYPOINT_HEAD, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    if key not in stated:
        head.NUM_KEYPOINTS = len(names)
    elif head.NUM_KEYPOINTS != len(names):
        raise UsageError(
            f"The config says {key} = {head.NUM_KEYPOINTS}, and the dataset {name} has "
            f"{len(names)} keypoints: add {key} {len(names)}"
        )
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS or [0] * _COCO_KEYPOINTS)
    if cfg.DATASETS.TEST and sigmas != len(names):
        raise UsageError(
            f"TEST.KEYPOINT_OKS_SIGMAS are {sigmas} and the keypoints of {name} {len(names)}: add "
            "one for each, their tolerances in COCO's evaluation (COCO's own are .025 to .107)"
        )
