"""
What becomes of every field of a COCO file and of every kind of value in it: training and evaluation
see what was meant, or one line says what is wrong. The meaning of a file is that of the good one it
is made from, whatever Detectron2 and pycocotools make of the value.
"""

import argparse
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    get_detection_dataset_dicts,
)
from detectron2.structures import Boxes, Instances
from PIL import Image

from gw_detectron import engine
from gw_detectron.config import CONFIGS
from gw_detectron.data.images import ImageMapper
from gw_detectron.engine.trainer import Trainer
from gw_detectron.errors import UsageError

HEIGHT, WIDTH = 20, 30
POINTS = ["nose", "left_ear", "right_ear"]
# (image, category, box) of each annotation
OBJECTS = [(7, 9, [2, 3, 8, 6]), (7, 4, [12, 2, 10, 8]), (8, 9, [1, 1, 9, 7])]
NAMES = {4: "dog", 9: "cat"}
FILES = {7: "a.png", 8: "b.png"}


class NOTHING:
    """In the place of a value: there is no such field."""


def corners(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def good():
    """Two images, three objects of two classes, whose ids are neither dense nor sorted."""
    return {
        "images": [
            {"id": id, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for id, name in FILES.items()
        ],
        "categories": [
            {"id": 9, "name": "cat", "keypoints": [*POINTS], "skeleton": [[1, 2], [1, 3]]},
            {"id": 4, "name": "dog", "keypoints": [*POINTS]},
        ],
        "annotations": [
            {
                "id": id,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [corners(*box)],
                "keypoints": [box[0] + 2, box[1] + 2, 2, box[0] + 4, box[1] + 2, 1, 0, 0, 0],
                "num_keypoints": 2,
            }
            for id, (image, category, box) in enumerate(OBJECTS, 1)
        ],
    }


def in_both(change):
    """Classes are those of training and of validation."""
    change.in_both = True
    return change


def put(place, value):
    """What puts the value in a place of a file, such as "annotations 1 bbox", or takes it away."""

    def change(content):
        *path, last = [int(key) if key.isdigit() else key for key in place.split()]
        part = content
        for key in path:
            part = part[key]
        if value is NOTHING:
            del part[last]
        else:
            part[last] = value

    return in_both(change) if "name" in place else change


def renamed(entries, field, to):
    """What gives the entries other ids, and the annotations the same."""

    def change(content):
        for entry in content[entries]:
            entry["id"] = to(entry["id"])
        for annotation in content["annotations"]:
            annotation[field] = to(annotation[field])

    return change


def every(field, to):
    def change(content):
        for annotation in content["annotations"]:
            annotation[field] = to(annotation)

    return change


def rle(box, compressed=True, **changed):
    encoded = mask_util.merge(mask_util.frPyObjects([corners(*box)], HEIGHT, WIDTH))
    counts = encoded["counts"].decode()
    if not compressed:
        pixels = mask_util.decode(encoded).T.ravel().astype(int)
        ends = np.flatnonzero(np.diff(pixels, prepend=0, append=2))
        counts = np.diff(ends, prepend=0).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts} | changed


# What a case ends with: RIGHT, all that the good file gives; CROWD, that without the second object;
# a part of the one line; or {model, or model and use: such a part}, RIGHT for all others
RIGHT, CROWD = object(), object()
NO_MASK = {"mask": "annotation 2 has no mask, and the config has a mask head"}
NO_POLYGONS = {"mask train": "annotation 2 has a run-length encoded mask, not polygons: add INPUT"}
NO_POINTS = {"keypoint": "annotation 2 has keypoints that are not 3 times x, y and a visibility"}
BOX, MASK = OBJECTS[1][2], corners(*OBJECTS[1][2])
NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
TABLE = [
    ("annotations 1 id", RIGHT, [0, -1, None, NOTHING, "a", "1", 1, 1.0, 2.5, True, HUGE, []]),
    ("annotations 1 image_id", RIGHT, ["7", 7.0]),
    ("annotations 1 image_id", "the image_id of annotation 2 is",
     [None, 0, 99, 7.5, HUGE, NAN, True, [], "x"]),
    ("annotations 1 image_id", 'entry 1 of "annotations" has no "image_id"', [NOTHING]),
    ("annotations 1 category_id", RIGHT, ["4", 4.0]),
    ("annotations 1 category_id", "the category_id of annotation 2 is",
     [None, 0, 99, 4.5, HUGE, NAN, True, [], "x"]),
    ("annotations 1 category_id", 'entry 1 of "annotations" has no "category_id"', [NOTHING]),
    ("images 0 id", RIGHT, ["7", 7.0]),
    ("images 0 id", 'the "id" of entry 0 of "images" is', [None, 7.5, HUGE, NAN, True, []]),
    ("images 0 id", 'two of its "images" have the id 8', [8, "8", 8.0]),
    ("images 0 id", 'ids of its "images" are numbers and texts mixed', ["a"]),
    ("images 0 id", "the image_id of annotation 1 is 7, not that of any image", [0, -7]),
    ("images 0 id", 'entry 0 of "images" has no "id"', [NOTHING]),
    ("categories 1 id", RIGHT, ["4", 4.0]),
    ("categories 1 id", 'the "id" of entry 1 of "categories" is', [None, 4.5, HUGE, NAN, True, []]),
    ("categories 1 id", 'two of its "categories" have the id 9', [9, "9"]),
    ("categories 1 id", 'ids of its "categories" are numbers and texts mixed', ["a"]),
    ("categories 1 id", "category_id of annotation 2 is 4, not that of any category", [0, -4]),
    ("categories 1 name", RIGHT, [1, 1.5, 0, "ünï", "cat"]),
    ("categories 1 name", 'the "name" of entry 1 of "categories" is',
     [None, "", " ", True, [], {}]),
    ("categories 1 name", 'entry 1 of "categories" has no "name"', [NOTHING]),
    ("categories 1 keypoints", RIGHT, [NOTHING, None, []]),
    ("categories 1 keypoints", {"keypoint": "its categories have different keypoints"},
     [["nose"], POINTS[::-1]]),
    ("categories 1 keypoints", {"keypoint": 'the "keypoints" of category dog are not names'},
     [[1, 2, 3], "nose", {"nose": 1}]),
    ("categories 1 keypoints", {"keypoint": "category dog has two keypoints of one name"},
     [["nose", "nose", "ear"]]),
    ("categories 0 skeleton", RIGHT, [NOTHING, None, "x", [[1, 9], [0, 1], 5, ["a", "b"], [1]]]),
    ("images 0 width", RIGHT, ["30", 30.0, None, NOTHING]),
    ("images 0 width", 'the "width" of entry 0 of "images" is',
     [0, -30, 30.5, "x", NAN, HUGE, True, []]),
    ("images 0 width", "the annotations do not fit the image", [31]),
    ("images 0 height", RIGHT, ["20", 20.0, None, NOTHING]),
    ("images 0 height", 'the "height" of entry 0 of "images" is',
     [0, -20, 20.5, "x", NAN, HUGE, True, []]),
    ("images 0 file_name", RIGHT, ["sub/c.png", "sub\\c.png"]),
    ("images 0 file_name", 'the "file_name" of entry 0 of "images" is', [None, "", 7, True, []]),
    ("images 0 file_name", "1 of its 2 images are not in", ["no.png", ".", "../a.png"]),
    ("images 0 file_name", 'entry 0 of "images" has no "file_name"', [NOTHING]),
    ("annotations 1 bbox", RIGHT,
     [[12.0, 2, 10, 8], ["12", "2.0", "10", "8"], None, [], NOTHING]),
    ("annotations 1 bbox", "the bbox of annotation 2 is",
     [[12, 2, 10], [12, 2, 10, 8, 1], [12, 2, -10, 8], [12, 2, NAN, 8], [12, 2, INFINITY, 8],
      [12, 2, HUGE, 8], [12, 2, 1e300, 8], [12, 2, None, 8], [12, 2, True, 8],
      ["12", "x", "10", "8"], ["12", "nan", "10", "8"], "12 2 10 8", {"x": 12}, 5, True]),
    ("annotations 1 bbox", "1 of its 3 boxes have no area in their image, first that of annotation",
     [[12, 2, 0, 8], [40, 2, 10, 8], [-20, 2, 10, 8], [12, 20, 10, 8]]),
    ("annotations 1 area", RIGHT,
     [None, NOTHING, "80", 80.0, "x", 0, -5, NAN, INFINITY, HUGE, 1e30, True, [], {}]),
    ("annotations 1 iscrowd", RIGHT, [None, NOTHING, "0", 0.0, False]),
    ("annotations 1 iscrowd", CROWD, [1, "1", 1.0, True]),
    ("annotations 1 iscrowd", "the iscrowd of annotation 2 is", [2, -1, 0.5, "x", "", NAN, []]),
    ("annotations 1 ignore", RIGHT, [0, None, False, "0", "", [], {}]),
    ("annotations 1 ignore", 'annotation 2 has "ignore"', [1, True, "1"]),
    ("annotations 1 segmentation", RIGHT,
     [MASK, [MASK, []], [MASK, [1, 2]], [[str(x) for x in MASK]], [[*map(float, MASK)]]]),
    ("annotations 1 segmentation", NO_MASK,
     [None, NOTHING, [], "", 0, False, {}, [[]], [BOX], [[1, 2, 3, 4, 5]], [MASK[:7]],
      [[1, 2, 3, 4, 5, 6]], [[0.1, 0.1, 0.2, 0.2, 0.7, 0.7]]]),
    ("annotations 1 segmentation", NO_POLYGONS, [rle(BOX), rle(BOX, compressed=False)]),
    ("annotations 1 segmentation", "the segmentation of annotation 2 is",
     [[[1, 2, None]], [[1, 2, NAN, 4, 5, 6]], [[HUGE] * 6], "x", 5, True, [MASK, "x"], [{}],
      {"size": [HEIGHT, WIDTH]}, rle(BOX, size=[WIDTH, HEIGHT]), rle(BOX, size=None),
      rle(BOX, counts=[0, 599]), rle(BOX, counts=[-1, 601]), rle(BOX, counts=[0.5, 599.5]),
      rle(BOX, counts=[]), rle(BOX, counts=rle(BOX)["counts"][:-2]), rle(BOX, counts="~~"),
      rle(BOX, counts=""), rle(BOX, counts="é"), rle(BOX, counts=5), rle(BOX, counts=None)]),
    ("annotations 1 keypoints", RIGHT,
     [["14", "4", "2", "16", "4", "1", "0", "0", "0"], None, NOTHING, [], [0] * 9]),
    ("annotations 1 keypoints", NO_POINTS,
     [[14, 4, 2], [14, 4, 2] * 4, [None] * 9, [14, 4, 5] * 3, [14, 4, -1] * 3, "x", 5, {"x": 1},
      [NAN, 4, 2] * 3, [HUGE] * 9]),
    ("annotations 1 num_keypoints", RIGHT, [None, NOTHING, 0, 3, "2", 2.0, -1, "x", []]),
]  # fmt: skip
CASES = [
    pytest.param(put(place, value), outcome, id=ascii(f"{place} {value!r}")[1:60])
    for place, outcome, values in TABLE
    for value in values
]


def every_box(change):
    return every("bbox", lambda annotation: change(*annotation["bbox"]))


WHOLE_FILES = {
    "annotation ids from 0": (every("id", lambda a: a["id"] - 1), RIGHT),
    "annotation ids all the same": (every("id", lambda a: 1), RIGHT),
    "image ids from 0": (renamed("images", "image_id", lambda id: id - 7), RIGHT),
    "image ids are texts": (renamed("images", "image_id", "img{}".format), RIGHT),
    "image ids are texts of numbers": (renamed("images", "image_id", str), RIGHT),
    "image ids are padded": (renamed("images", "image_id", "{:06d}".format), RIGHT),
    "image ids are texts, of numbers and not": (
        renamed("images", "image_id", lambda id: {7: "7", 8: "b"}[id]), RIGHT),
    "image ids are negative": (renamed("images", "image_id", lambda id: -id), RIGHT),
    "image ids are large": (renamed("images", "image_id", lambda id: id + 2**62), RIGHT),
    "category ids from 0": (
        renamed("categories", "category_id", lambda id: {9: 1, 4: 0}[id]), RIGHT),
    "category ids are texts": (
        renamed("categories", "category_id", lambda id: {9: "b", 4: "a"}[id]), RIGHT),
    "category ids are texts of numbers": (renamed("categories", "category_id", str), RIGHT),
    "no area and no iscrowd": (
        lambda c: [(a.pop("area"), a.pop("iscrowd")) for a in c["annotations"]], RIGHT),
    "all are crowds": (every("iscrowd", lambda a: 1), {
        "train": "there is no object to train on: all 3 are crowd regions (iscrowd 1)",
        "val": "there is no object to evaluate on: all 3 are crowd regions (iscrowd 1)"}),
    "no keypoints": (every("keypoints", lambda a: []), {
        "keypoint": "no object has a labelled keypoint"}),
    "no names of keypoints": (
        lambda c: [one.pop("keypoints") for one in c["categories"]],
        {"keypoint": 'no category has "keypoints", their names'}),
    "a keypoint of one side": (
        in_both(lambda c: [one["keypoints"].__setitem__(2, "tail") for one in c["categories"]]),
        {"keypoint": "a keypoint left_ear and none of the other side"}),
    "boxes are two corners": (
        every_box(lambda x, y, w, h: [x + 12, y + 6, x + w + 6, y + h + 6]), "two corners"),
    "boxes are fractions": (
        every_box(lambda x, y, w, h: [x / 30, y / 20, w / 30, h / 20]), "fractions of the image's"),
    "boxes are a centre and a size": (
        every_box(lambda x, y, w, h: [22, 12, 15, 14]), "a centre and a size"),
}  # fmt: skip
CASES += [pytest.param(*case, id=name) for name, case in WHOLE_FILES.items()]
MODELS = {
    "box": [],
    "mask": ["MODEL.MASK_ON", "True"],
    "keypoint": ["MODEL.KEYPOINT_ON", "True", "TEST.KEYPOINT_OKS_SIGMAS", "(0.05, 0.05, 0.05)"],
}


@pytest.fixture
def write(tmp_path, new_names_are_forgotten):
    """Writes a dataset and returns its entry."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in (*FILES.values(), "sub/c.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)

    def call(name, change=lambda content: None):
        change(content := good())
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return name, str(tmp_path / f"{name}.json"), str(tmp_path / "images")

    return call


def setup(model, *entries, opts=()):
    """As tools/train_net.py sets up, with images as large as they are and never mirrored."""
    return engine.setup(
        argparse.Namespace(
            config_file=str(CONFIGS / "quickstart" / "faster_rcnn_R_18_FPN_gw.yaml"),
            dataset=entries, trust_config=False, eval_only=False, resume=False,
            num_gpus=1, num_machines=1,
            opts=[*MODELS[model], "DATASETS.TRAIN", f"('{entries[0][0]}',)",
                  "DATASETS.TEST", f"('{entries[1][0]}',)", "INPUT.MIN_SIZE_TRAIN", "(20,)", *opts],
        )
    )  # fmt: skip


def trained_on(cfg, model):
    """(file, class, corners, area of the mask, labelled keypoints) of what a mapper gives."""
    points = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model == "keypoint" else 0
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, min_keypoints=points)
    mapper, objects = ImageMapper(DatasetMapper(cfg, True, augmentations=[])), []
    for record in records:
        found = mapper(record)["instances"]
        masks = found.gt_masks.area().tolist() if model == "mask" else [None] * len(found)
        labelled = [None] * len(found)
        if model == "keypoint":
            labelled = (found.gt_keypoints.tensor[..., 2] > 0).sum(1).tolist()
        columns = found.gt_classes.tolist(), found.gt_boxes.tensor.tolist(), masks, labelled
        file = record["file_name"][-5:].replace("c.png", "a.png")
        objects += [(file, *row) for row in zip(*columns, strict=True)]
    return sorted(objects, key=str)


def meant(model, without=(), unlabelled=()):
    return sorted(
        [
            (
                FILES[image], sorted(NAMES).index(category), [x, y, x + w, y + h],
                w * h if model == "mask" else None,
                None if model != "keypoint" else 0 if i in unlabelled else 2,
            )
            for i, (image, category, (x, y, w, h)) in enumerate(OBJECTS)
            if i not in without
        ],
        key=str,
    )  # fmt: skip


def ap_of_perfect_detections(cfg, model, folder):
    """By Detectron2's evaluator of the dataset: of the good file's objects, whatever is in this."""
    evaluator = Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0], str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
        image = 8 if record["file_name"].endswith("b.png") else 7
        of_image = [a for a in good()["annotations"] if a["image_id"] == image]
        boxes = torch.tensor([a["bbox"] for a in of_image], dtype=torch.float32)
        found = Instances((HEIGHT, WIDTH))
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.linspace(0.9, 0.8, len(of_image))
        found.pred_classes = torch.tensor([sorted(NAMES).index(a["category_id"]) for a in of_image])
        if model == "mask":
            masks = [mask_util.decode(rle(a["bbox"])) for a in of_image]
            found.pred_masks = torch.from_numpy(np.stack(masks)).bool()
        if model == "keypoint":
            points = torch.tensor([a["keypoints"] for a in of_image], dtype=torch.float32)
            found.pred_keypoints = points.view(len(of_image), -1, 3)
            found.pred_keypoints[..., :2] += 0.5
        evaluator.process([record], [{"instances": found}])
    of_coco = evaluator._evaluators[0]._coco_api
    assert [a["area"] for a in of_coco.anns.values()] == [w * h for _, _, (*_, w, h) in OBJECTS]
    return {task: metrics["AP"] for task, metrics in evaluator.evaluate().items()}


TASKS = {"box": ["bbox"], "mask": ["bbox", "segm"], "keypoint": ["bbox", "keypoints"]}


@pytest.mark.parametrize("use", ["train", "val"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("change, outcome", CASES)
def test_a_value_is_what_was_meant_or_one_line(change, outcome, model, use, write, tmp_path):
    names = ["of_train", "of_val"]
    changed = names if hasattr(change, "in_both") else [f"of_{use}"]
    entries = [write(name, *[change] * (name in changed)) for name in names]
    if isinstance(outcome, dict):
        lines = [line for key, line in outcome.items() if {*key.split()} <= {model, use}]
        outcome = lines[0] if lines else RIGHT
    if isinstance(outcome, str):
        with pytest.raises(UsageError) as error:
            cfg = setup(model, *entries)
            [ImageMapper(DatasetMapper(cfg, False))(r) for r in DatasetCatalog.get(f"of_{use}")]
        message = str(error.value)
        assert outcome in message and "\n" not in message
        assert any(file in message for file in (*changed, f"{changed[0]}.json", "a.png"))
        return
    cfg = setup(model, *entries)
    if use == "val":
        aps = ap_of_perfect_detections(cfg, model, tmp_path / "inference")
        assert aps == dict.fromkeys(TASKS[model], pytest.approx(100))
        return
    change(content := good())
    points = content["annotations"][1].get("keypoints")
    unlabelled = () if isinstance(points, list) and "2" in map(str, points) else (1,)
    assert trained_on(cfg, model) == meant(model, (1,) if outcome is CROWD else (), unlabelled)
