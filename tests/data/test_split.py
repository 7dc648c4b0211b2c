import copy

import pytest

pytest.importorskip("detectron2")

from gw_detectron.data.split import split
from gw_detectron.errors import UsageError


def content(num_images=20):
    """Every image has as many objects as the last digit of its id says."""
    images = [{"id": 100 + i, "file_name": f"{i}.png"} for i in range(num_images)]
    owners = [image["id"] for image in images for _ in range(image["id"] % 10)]
    objects = [{"id": i, "image_id": owner} for i, owner in enumerate(owners[::-1], 1)]
    categories = [{"id": 1, "name": "cat"}]
    return {"info": {"year": 2021}, "images": images, "annotations": objects} | {
        "categories": categories
    }


def test_every_image_is_in_one_part_with_all_of_its_annotations():
    whole = content()
    train, val = split(copy.deepcopy(whole), 0.2, seed=1)
    assert [len(part["images"]) for part in (train, val)] == [16, 4]
    for name in ("images", "annotations"):
        assert [e for e in whole[name] if e in val[name]] == val[name]  # in the file's order
        assert [e for e in whole[name] if e not in val[name]] == train[name]
    for part in (train, val):
        owners = [annotation["image_id"] for annotation in part["annotations"]]
        for image in part["images"]:
            assert owners.count(image["id"]) == image["id"] % 10
        assert part["categories"] == whole["categories"] and part["info"] == whole["info"]


def test_the_seed_alone_decides_which_images():
    first, again, other = (
        [image["id"] for image in split(content(), 0.3, seed)[1]["images"]] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_ids_may_be_numbers_written_as_text():
    whole = content()
    for annotation in whole["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    train, val = split(whole, 0.5, seed=1)
    for part in (train, val):
        known = {str(image["id"]) for image in part["images"]}
        assert {annotation["image_id"] for annotation in part["annotations"]} <= known


@pytest.mark.parametrize("fraction", [-0.1, 0, 1, 1.5, float("nan"), float("inf")])
def test_a_fraction_has_to_be_between_0_and_1(fraction):
    with pytest.raises(UsageError, match=f"the fraction is {fraction}, not a number between 0"):
        split(content(), fraction, seed=1)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_part_without_images_is_an_error(fraction):
    with pytest.raises(UsageError, match=f"{fraction} of 20 images are .*a part would be empty"):
        split(content(), fraction, seed=1)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda c: [], "the file is not an object"),
        (lambda c: {"images": []}, 'no "annotations"'),
        (lambda c: c | {"images": {}}, '"images" is {}, not a list'),
        (lambda c: c | {"images": [7] * 9}, "entry 0 of"),
        (lambda c: c | {"annotations": [7]}, "annotation 0 is not an object"),
        (lambda c: c | {"annotations": [{"id": 1}]}, 'annotation 0 has no "image_id"'),
        (lambda c: c | {"annotations": [{"image_id": 5}]}, "image_id of annotation 0 is 5, not"),
        (lambda c: c | {"images": c["images"][:9] + c["images"][:1]}, "have the id 100"),
    ],
)
def test_what_is_not_a_coco_file_is_an_error(break_it, message):
    with pytest.raises(UsageError, match=message):
        split(break_it(content()), 0.2, seed=1)
