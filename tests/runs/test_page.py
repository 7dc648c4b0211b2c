"""The page, from detections and a dataset to what is on it."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("detectron2")

import pycocotools.mask as mask_util
from detectron2.utils.colormap import colormap
from PIL import Image

from gw_detectron.errors import UsageError
from gw_detectron.runs.detections import load_ground_truth, read_results
from gw_detectron.runs.page import save_page

from .pets import (
    CAT,
    CROWD,
    DOG,
    HEIGHT,
    LEFT,
    MIDDLE,
    NOTHING,
    ONE_CAT,
    RIGHT,
    TWO_DOGS,
    WIDTH,
    detection,
    perfect,
    polygon,
    write_json,
)


class Page:
    def __init__(self, path):
        self.root = ElementTree.parse(path)  # every tag is closed, as HTML would not need

    def texts(self, tag):
        return [" ".join("".join(element.itertext()).split()) for element in self.root.iter(tag)]

    def alts(self):
        return [image.get("alt") for image in self.root.iter("img")]

    def pictures(self):
        """In the colors of the image in its own pixels, (H, W, 3), less the gray that it has."""
        for image in self.root.iter("img"):
            head, _, data = image.get("src").partition(",")
            assert head == "data:image/jpeg;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            yield np.asarray(picture.resize((WIDTH, HEIGHT))).astype(float) - 90


def show(tmp_path, results, **arguments):
    """The page of results by their labels."""
    truth = load_ground_truth("pets")
    runs = [
        read_results(label, write_json(tmp_path / f"{i}.json", found), truth)
        for i, (label, found) in enumerate(results.items())
    ]
    save_page(str(tmp_path / "index.html"), runs, **arguments)
    return Page(tmp_path / "index.html")


def without(*image_ids):
    return [found for found in perfect() if found["image_id"] not in image_ids]


def with_mask(found):
    (rle,) = mask_util.frPyObjects(polygon(found["bbox"]), HEIGHT, WIDTH)
    return found | {"segmentation": {**rle, "counts": rle["counts"].decode()}}


def test_images_come_by_how_much_the_runs_differ(pets, tmp_path):
    half = [*without(TWO_DOGS), detection(TWO_DOGS, DOG, LEFT)]  # 49.5 less on the two dogs
    none = [found for found in half if found["image_id"] != CROWD]  # and 100 on the crowd
    page = show(tmp_path, {"all": perfect(), "half": half, "none": none})
    assert page.texts("h2") == ["1. 14.png", "2. 11.png", "3. 12.png", "4. 13.png"]
    assert "Of 4 images, those on which the runs' box AP differs most" in page.texts("p")[0]


def test_images_of_one_run_come_from_the_lowest_ap_on(pets, tmp_path):
    half = [*without(TWO_DOGS, ONE_CAT), detection(TWO_DOGS, DOG, LEFT)]
    page = show(tmp_path, {"half": half})
    assert page.texts("h2") == ["1. 12.png", "2. 11.png", "3. 14.png", "4. 13.png"]
    assert "those with the lowest box AP come first" in page.texts("p")[0]


def test_every_picture_says_what_is_on_it(pets, tmp_path):
    wrong = [
        detection(NOTHING, CAT, MIDDLE),
        detection(CROWD, DOG, LEFT),
        detection(CROWD, DOG, RIGHT),
    ]
    page = show(tmp_path, {"GN": wrong, "GW": [with_mask(found) for found in perfect()]})
    assert page.alts() == [
        "11.png, ground truth: 2 dog",
        "11.png, GN: box AP 0.00; nothing",
        "11.png, GW: box AP 100.00, mask AP 100.00; 2 dog",
        "12.png, ground truth: 1 cat",
        "12.png, GN: box AP 0.00; nothing",
        "12.png, GW: box AP 100.00, mask AP 100.00; 1 cat",
        "14.png, ground truth: 2 dog",
        "14.png, GN: box AP 100.00; 2 dog",
        "14.png, GW: box AP 100.00, mask AP 100.00; 1 dog",
        "13.png, ground truth: nothing",
        "13.png, GN: box AP nan; 1 cat",
        "13.png, GW: box AP nan, mask AP nan; nothing",
    ]
    for alt, title, caption in zip(
        page.alts(), page.texts("b"), page.texts("figcaption"), strict=True
    ):
        assert f"{title}{alt.partition(f', {title}: ')[2]}" == caption
    # 101 recalls of the dogs' precision 1 up to recall 1/3, and no cat
    assert page.texts("li") == [
        f"GN: box AP {50 * 34 / 101:.2f} on pets, from {tmp_path}/0.json",
        f"GW: box AP 100.00, mask AP 100.00 on pets, from {tmp_path}/1.json",
    ]


def test_the_page_needs_nothing_but_itself_and_names_stay_text(pets, tmp_path):
    page = show(tmp_path, {'<b>&"GN"</b>': perfect()})
    assert len(list(page.pictures())) == 8  # each of them is in it
    assert not page.texts("link") and not page.texts("script")
    assert not re.search("url\\(|@import", " ".join(page.texts("style")))
    assert page.texts("b") == ["ground truth", '<b>&"GN"</b>'] * 4
    assert '14.png, <b>&"GN"</b>: box AP 100.00; 1 dog' in page.alts()


def test_only_the_images_asked_for_are_read_and_drawn(pets, tmp_path):
    for path in (tmp_path / "data" / "images").iterdir():
        if path.name != f"{ONE_CAT}.png":
            path.unlink()
    results = {"all": perfect(), "no cat": without(ONE_CAT)}
    page = show(tmp_path, results, num_images=1)
    assert page.texts("h2") == ["1. 12.png"]
    before = (tmp_path / "index.html").read_text()
    with pytest.raises(UsageError, match="the image .*11.png can't be read"):
        show(tmp_path, results)
    assert (tmp_path / "index.html").read_text() == before


@pytest.mark.parametrize("threshold, drawn", [(0.5, "nothing"), (0.3, "1 cat")])
def test_detections_below_the_threshold_count_and_are_not_drawn(pets, tmp_path, threshold, drawn):
    faint = [{**found, "score": 0.3} for found in perfect()]
    page = show(tmp_path, {"faint": faint}, threshold=threshold)
    assert f"12.png, faint: box AP 100.00; {drawn}" in page.alts()
    assert f"a score of at least {threshold} are drawn" in page.texts("p")[0]


def colored(picture, class_index):
    """(H, W): where it is the color of the class, blended with the gray."""
    direction = 255 * colormap(rgb=True, maximum=1)[class_index] - 90
    along = picture @ direction / np.linalg.norm(direction) ** 2
    return (along > 0.15) & (np.abs(picture - along[..., None] * direction).max(-1) < 15)


def test_a_class_has_one_color_in_all_columns_and_boxes_are_where_they_are(pets, tmp_path):
    right_edge = (slice(35, 48), slice(62, 68))  # of the box RIGHT, clear of labels
    bottom_of_middle = (slice(48, 52), slice(25, 42))
    both = [detection(TWO_DOGS, CAT, MIDDLE), detection(TWO_DOGS, DOG, RIGHT)]
    page = show(tmp_path, {"both": both, "dog": both[1:]})
    first = 3 * page.texts("h2").index("1. 11.png")
    pictures = list(page.pictures())[first : first + 3]
    for picture, has_cat in zip(pictures, (False, True, False), strict=True):
        assert colored(picture, 0)[right_edge].any(axis=1).all()
        assert colored(picture, 1)[bottom_of_middle].any(axis=0).all() == has_cat


@pytest.mark.parametrize("has_masks", [False, True])
def test_masks_are_drawn_where_a_run_has_them_and_then_on_the_truth_too(pets, tmp_path, has_masks):
    found = detection(ONE_CAT, CAT, MIDDLE)
    page = show(
        tmp_path, {"GW": [with_mask(found) if has_masks else found], "none": []}, num_images=1
    )
    for picture in list(page.pictures())[:2]:
        assert colored(picture, 1)[35:45, 30:50].mean() == has_masks
