"""tools/crop_objects.py, from COCO files to what tools/pretrain_imagenet.py reads."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from gw_detectron.engine.pretraining.data import list_images

SCRIPT = Path(__file__).parents[2] / "tools" / "crop_objects.py"


@pytest.fixture
def crop_objects(tmp_path, monkeypatch, capsys):
    """
    Runs the script in this process on data of its own, crops_train and crops_val, and gives
    (exit status, output, error output without the progress).
    """
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    boxes = {1: [2, 3, 8, 9], 2: [10, 3, 12, 6]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": box, "area": 72, "iscrowd": 0}
            for i, box in boxes.items()
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    names = ("crops_train", "crops_val")

    def run(*arguments):
        datasets = [("--dataset", n, str(tmp_path / "data.json"), str(tmp_path)) for n in names]
        argv = [str(SCRIPT), *(part for d in datasets for part in d), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as exit:
            status = exit.code
        output, errors = capsys.readouterr()
        return (
            status,
            output,
            [line for line in errors.splitlines() if line and "image/s" not in line],
        )

    yield run
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_pretraining_finds_the_crops_in_their_classes(crop_objects, tmp_path):
    status, output, errors = crop_objects(
        "--train", "crops_train", "--val", "crops_val", "--output", tmp_path / "crops"
    )
    assert (status, errors) == (0, [])
    assert "train: 2 images: cat 1, dog 1" in output
    found = [(Path(path).parent.name, label) for path, label in list_images(tmp_path / "crops/val")]
    assert found == [("cat", 0), ("dog", 1)]


def test_a_mistake_is_one_line(crop_objects, tmp_path):
    status, _, errors = crop_objects(
        "--train", "crops_trian", "--val", "crops_val", "--output", tmp_path / "crops"
    )
    assert status == 2
    assert len(errors) == 1 and "crops_trian" in errors[0] and "crops_train" in errors[0]
    assert not (tmp_path / "crops").exists()
