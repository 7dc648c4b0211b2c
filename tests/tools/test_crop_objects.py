"""tools/crop_objects.py, from COCO files to what tools/pretrain_imagenet.py reads."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torchvision.datasets import ImageFolder

import crop_objects
from gw_detectron.errors import UsageError

NAMES = ("crops_train", "crops_val")


@pytest.fixture
def run(tmp_path):
    """Runs the tool on data of its own, crops_train and crops_val, into tmp_path / "crops"."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    boxes = {1: [2, 3, 8, 9], 2: [10, 3, 12, 6]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": box} for i, box in boxes.items()
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    datasets = [("--dataset", n, str(tmp_path / "data.json"), str(tmp_path)) for n in NAMES]

    def call(train):
        arguments = ["--train", train, "--val", "crops_val", "--output", str(tmp_path / "crops")]
        arguments += [part for dataset in datasets for part in dataset]
        crop_objects.main(crop_objects.argument_parser().parse_args(arguments))

    yield call
    for name in NAMES:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_pretraining_finds_the_crops_in_their_classes(run, tmp_path, capsys):
    run("crops_train")
    assert "train: 2 images: cat 1, dog 1" in capsys.readouterr().out
    found = [
        (Path(path).parent.name, label)
        for path, label in ImageFolder(tmp_path / "crops/val").samples
    ]
    assert found == [("cat", 0), ("dog", 1)]


def test_a_mistake_is_told_and_nothing_left(run, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="crops_trian .* crops_train"):
        run("crops_trian")
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "crops").mkdir()
    with pytest.raises(UsageError, match="crops can't be written: File exists"):
        run("crops_train")
