"""A dataset of four gray images, results on it, and runs, written without training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from .synthetic import write_run

HEIGHT, WIDTH = 60, 80
DOG, CAT = 3, 7  # their ids; in the file the cat comes first
TWO_DOGS, ONE_CAT, NOTHING, CROWD = 11, 12, 13, 14  # ids of the images

LEFT, RIGHT, MIDDLE = [5, 5, 20, 20], [45, 30, 20, 20], [20, 10, 40, 40]  # boxes, XYWH


def polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(id, image_id, category_id, box, **more):
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": polygon(box),
    } | more


def content():
    """Two dogs, one cat, nothing, and a dog beside a crowd of them."""
    return {
        "images": [
            {"id": id, "file_name": f"{id}.png", "height": HEIGHT, "width": WIDTH}
            for id in (TWO_DOGS, ONE_CAT, NOTHING, CROWD)
        ],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            annotation(1, TWO_DOGS, DOG, LEFT),
            annotation(2, TWO_DOGS, DOG, RIGHT),
            annotation(3, ONE_CAT, CAT, MIDDLE),
            annotation(4, CROWD, DOG, LEFT),
            annotation(5, CROWD, DOG, RIGHT, iscrowd=1),
        ],
    }


def detection(image_id, category_id, box, score=0.9, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score} | more


def perfect():
    return [
        detection(TWO_DOGS, DOG, LEFT),
        detection(TWO_DOGS, DOG, RIGHT),
        detection(ONE_CAT, CAT, MIDDLE),
        detection(CROWD, DOG, LEFT),
    ]


def write_json(path: Path, value) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def write_dataset(folder: Path, dataset=None, name="pets") -> tuple[str, str, str]:
    """Returns what --dataset takes."""
    dataset = dataset or content()
    images = folder / "images"
    images.mkdir(parents=True)
    for image in dataset["images"]:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(images / image["file_name"])
    return name, write_json(folder / "pets.json", dataset), str(images)


def write_tested_run(folder: Path, results, test="('pets',)", **overrides) -> str:
    run = write_run(folder, DATASETS__TEST=test, **overrides)
    write_json(folder / "inference" / "coco_instances_results.json", results)
    return run


@contextmanager
def forgotten(name: str) -> Iterator[str]:
    """Within, a dataset may be registered under that name."""
    try:
        yield name
    finally:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
