"""The classification set that is cut out of detection data, from images with one known pixel."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from gw_detectron.data.crops import crop_objects
from gw_detectron.errors import UsageError


@pytest.fixture
def dataset(tmp_path):
    """Registers one image, 40 x 60, of pixels (row, column, 7), with these objects."""
    registered = []

    def call(name, objects, classes=("cat", "dog")):
        path = tmp_path / f"{name}.png"
        rows, columns = np.mgrid[:40, :60]
        pixels = np.stack([rows, columns, np.full_like(rows, 7)], 2).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, **others}
            for box, category, others in objects
        ]
        record = {"file_name": str(path), "image_id": 3, "width": 60, "height": 40}
        record["annotations"] = annotations
        DatasetCatalog.register(name, lambda: [record])
        MetadataCatalog.get(name).thing_classes = list(classes)
        registered.append(name)
        return name

    yield call
    for name in registered:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def _pixels(path):
    return np.asarray(Image.open(path))


CAT = ([20, 10, 8, 16], 0, {})
DOG = ([0, 0, 10, 10], 1, {})


def test_an_object_becomes_the_square_around_it_in_its_class_folder(dataset, tmp_path):
    assert crop_objects([dataset("a", [CAT, DOG])], tmp_path / "out") == {"cat": 1, "dog": 1}
    square = _pixels(tmp_path / "out" / "cat" / "a_3_0.png")
    # the longer side, 16, with a quarter more: 20, around the box's centre at row 18, column 24
    assert square.shape == (20, 20, 3)
    assert (square[0, 0] == (8, 14, 7)).all() and (square[-1, -1] == (27, 33, 7)).all()


def test_a_square_at_the_border_is_moved_into_the_image(dataset, tmp_path):
    crop_objects([dataset("a", [DOG])], tmp_path / "out")
    square = _pixels(tmp_path / "out" / "dog" / "a_3_0.png")
    assert square.shape == (12, 12, 3) and (square[0, 0] == (0, 0, 7)).all()


def test_an_object_larger_than_the_image_allows_is_cut_at_the_image(dataset, tmp_path):
    crop_objects([dataset("a", [([5, 0, 50, 40], 0, {})])], tmp_path / "out")
    assert _pixels(tmp_path / "out" / "cat" / "a_3_0.png").shape == (40, 60, 3)


def test_crowds_and_specks_are_left_out(dataset, tmp_path):
    speck, crowd = ([5, 5, 7, 7], 0, {}), ([5, 5, 20, 20], 0, {"iscrowd": 1})
    assert crop_objects([dataset("a", [speck, crowd, DOG])], tmp_path / "out") == {"dog": 1}


def test_classes_of_the_same_name_in_two_datasets_become_one(dataset, tmp_path):
    names = [dataset("a", [CAT, DOG]), dataset("b", [DOG], classes=("bird", "cat"))]
    assert crop_objects(names, tmp_path / "out") == {"cat": 2, "dog": 1}


def test_an_image_that_cannot_be_read_is_named(dataset, tmp_path):
    name = dataset("a", [CAT])
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="a.png can't be read"):
        crop_objects([name], tmp_path / "out")


def test_annotations_of_the_stored_image_are_not_cut_out_of_the_upright_one(dataset, tmp_path):
    name = dataset("a", [CAT])
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "a.png", exif=exif)
    with pytest.raises(UsageError, match="a.png, turned by its EXIF orientation 6: .*got .40, 60"):
        crop_objects([name], tmp_path / "out")
