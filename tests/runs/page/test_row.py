import math

import numpy as np
import pytest

pytest.importorskip("detectron2")

from gw_detectron.engine.picture import class_color
from gw_detectron.runs.page import load_ground_truth
from gw_detectron.runs.page.per_image import ImageAPs
from gw_detectron.runs.page.row import RunDetections, draw_row

from .synthetic import (
    CAT,
    CROWD,
    DOG,
    LEFT,
    MIDDLE,
    NOTHING,
    ONE_CAT,
    RIGHT,
    TWO_DOGS,
    detection,
    polygon,
)


def run(label, ap, shown, **more):
    """A run with one AP on all images."""
    aps = ImageAPs(ap, dict.fromkeys((TWO_DOGS, ONE_CAT, NOTHING, CROWD), ap))
    by_image = {}
    for one in shown:
        by_image.setdefault(one["image_id"], []).append(one)
    return RunDetections(label, "somewhere", {"bbox": aps}, by_image, **{"has_masks": False} | more)


def captions(row):
    return [(picture.title, picture.caption) for picture in row.pictures]


def test_ground_truth_comes_first_and_each_run_says_its_ap(pets):
    runs = [run("GN", 43.21, [detection(TWO_DOGS, DOG, LEFT)]), run("GW", 60.0, [])]
    row = draw_row(load_ground_truth(pets), runs, TWO_DOGS)
    assert captions(row) == [
        ("ground truth", "2 objects"),
        ("GN", "box AP 43.2; 1 detection"),
        ("GW", "box AP 60.0; 0 detections"),
    ]
    assert row.title(3) == "3. 11.png: box AP differs by 16.8"
    assert row.pictures[0].description == "11.png, ground truth: 2 objects (2 dog)"
    assert row.pictures[1].description == "11.png, GN: box AP 43.2; 1 detection (1 dog)"


def test_an_image_with_nothing_on_it_has_no_ap_and_no_difference(pets):
    runs = [run("GN", math.nan, []), run("GW", math.nan, [detection(NOTHING, CAT, MIDDLE)])]
    row = draw_row(load_ground_truth(pets), runs, NOTHING)
    assert captions(row) == [
        ("ground truth", "0 objects"),
        ("GN", "no box AP; 0 detections"),
        ("GW", "no box AP; 1 detection"),
    ]
    assert row.title(1) == "1. 13.png"


def test_one_run_has_nothing_to_differ_from(pets):
    assert (
        draw_row(load_ground_truth(pets), [run("GN", 40.0, [])], TWO_DOGS).title(1) == "1. 11.png"
    )


def test_crowd_regions_are_told_from_objects(pets):
    row = draw_row(load_ground_truth(pets), [run("GN", 0.0, [])], CROWD)
    assert row.pictures[0].caption == "1 object, 1 crowd region"


def test_mask_ap_is_said_where_there_is_one(pets):
    found = run("GN", 40.0, [])
    found = RunDetections("GN", "", {**found.aps, "segm": run("", 30.0, []).aps["bbox"]}, {}, True)
    row = draw_row(load_ground_truth(pets), [found], ONE_CAT)
    assert row.pictures[1].caption == "box AP 40.0, mask AP 30.0; 0 detections"


def colored(picture, color):
    """(H, W), scaled back to the image's pixels: where it is the color, blended with the gray."""
    pixels = np.asarray(picture.image.resize((80, 60))).astype(float) - 90
    direction = 255 * color - 90
    along = pixels @ direction / np.linalg.norm(direction) ** 2
    return (along > 0.15) & (np.abs(pixels - along[..., None] * direction).max(-1) < 15)


def test_a_class_has_one_color_in_all_columns_and_boxes_are_where_they_are(pets):
    truth = load_ground_truth(pets)
    runs = [
        run("GN", 0.0, [detection(TWO_DOGS, CAT, MIDDLE), detection(TWO_DOGS, DOG, RIGHT)]),
        run("GW", 0.0, [detection(TWO_DOGS, DOG, RIGHT)]),
    ]
    pictures = draw_row(truth, runs, TWO_DOGS).pictures
    right_edge = (slice(35, 48), slice(62, 68))  # of the box RIGHT, clear of labels
    bottom_of_middle = (slice(48, 52), slice(25, 42))
    for picture in pictures:
        assert colored(picture, class_color(0))[right_edge].any(axis=1).all()
    for picture, has_cat in zip(pictures, (False, True, False), strict=True):
        assert colored(picture, class_color(1))[bottom_of_middle].any(axis=0).all() == has_cat


def test_masks_are_drawn_where_a_run_has_them_and_then_on_the_truth_too(pets):
    truth = load_ground_truth(pets)
    for has_masks in (False, True):
        found = detection(ONE_CAT, CAT, MIDDLE, segmentation=polygon(MIDDLE))
        row = draw_row(truth, [run("GW", 0.0, [found], has_masks=has_masks)], ONE_CAT)
        for picture in row.pictures:
            inside = colored(picture, class_color(1))[35:45, 30:50]
            assert inside.mean() == has_masks


@pytest.mark.parametrize("shape, expected", [((60, 80), (520, 390)), ((80, 60), (390, 520))])
def test_pictures_fit_into_a_square(pets, monkeypatch, shape, expected):
    image = np.zeros((*shape, 3), np.uint8)
    truth = load_ground_truth(pets)
    monkeypatch.setattr(type(truth), "read_image", lambda *_: image)
    assert draw_row(truth, [run("GN", 0.0, [])], NOTHING).pictures[0].image.size == expected
