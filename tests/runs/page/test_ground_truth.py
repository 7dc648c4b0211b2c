import math
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.data.datasets import register_coco_instances
from PIL import Image

from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.runs.page import load_ground_truth
from gw_detectron.runs.page.per_image import evaluate_images

from .synthetic import (
    CAT,
    DOG,
    HEIGHT,
    MIDDLE,
    ONE_CAT,
    TWO_DOGS,
    WIDTH,
    content,
    detection,
    forgotten,
    write_dataset,
)


@pytest.fixture
def register(tmp_path):
    """Registers a dataset as Detectron2's users do, unchecked."""
    with forgotten("my_truth"):

        def call(dataset):
            _, json_file, images = write_dataset(tmp_path / "my_truth", dataset)
            register_coco_instances("my_truth", {}, json_file, images)
            return load_ground_truth("my_truth")

        yield call


def test_classes_are_in_the_order_of_their_ids(pets):
    truth = load_ground_truth(pets)
    assert truth.class_names == ["dog", "cat"]
    assert [truth.class_index(id) for id in (DOG, CAT)] == [0, 1]
    assert truth.has_masks


def test_a_dataset_without_masks_areas_and_crowd_flags_is_taken(register):
    dataset = content()
    for annotation in dataset["annotations"]:
        for key in ("segmentation", "area", "iscrowd"):
            del annotation[key]
    truth = register(dataset)
    assert not truth.has_masks
    aps = evaluate_images(truth.coco, [detection(ONE_CAT, CAT, MIDDLE)], "bbox").images
    assert aps[ONE_CAT] == pytest.approx(100) and aps[TWO_DOGS] == 0


def test_a_dataset_without_any_object_is_taken(register):
    truth = register(content() | {"annotations": []})
    aps = evaluate_images(truth.coco, [detection(ONE_CAT, CAT, MIDDLE)], "bbox")
    assert all(map(math.isnan, [aps.dataset, *aps.images.values()]))


def test_a_built_in_dataset_is_drawn_when_it_is_asked_for(tmp_path):
    with forgotten("few_train"), forgotten("few_val") as name:
        register_shapes("few", str(tmp_path), num_train=1, num_val=2)
        truth = load_ground_truth(name)
        assert len(truth.coco.imgs) == 2 and truth.has_masks
        assert truth.read_image(1).ndim == 3


def test_an_image_is_read_in_rgb(pets, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 0)).save(tmp_path / "data/images/11.png")
    image = load_ground_truth(pets).read_image(TWO_DOGS)
    assert image.shape == (HEIGHT, WIDTH, 3) and image[0, 0].tolist() == [200, 100, 0]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.unlink(), "no image file .*11.png"),
        (lambda path: path.write_text("no picture"), "11.png can't be read"),
        (lambda path: Image.new("RGB", (60, 80)).save(path), "60 x 80 .*made for 80 x 60"),
    ],
    ids=["missing", "unreadable", "of another size"],
)
def test_a_bad_image_is_one_line(pets, tmp_path, spoil, message):
    spoil(Path(tmp_path / "data/images/11.png"))
    with pytest.raises(UsageError, match=message) as error:
        load_ground_truth(pets).read_image(TWO_DOGS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("peds", "peds is not registered"),
        ("coco_2017_val", "coco_2017_val is not here: there is no .*instances_val2017.json"),
        ("voc_2007_val", "voc_2007_val is not evaluated as COCO is"),
        ("lvis_v1_val", "lvis_v1_val is not evaluated as COCO is"),
    ],
)
def test_a_dataset_that_cannot_be_shown_is_one_line(name, message):
    with pytest.raises(UsageError, match=message) as error:
        load_ground_truth(name)
    assert "\n" not in str(error.value)


def test_a_test_set_without_annotations_is_one_line(register):
    dataset = content()
    del dataset["annotations"]
    with pytest.raises(UsageError, match="my_truth has no ground truth"):
        register(dataset)
