"""The built-in dataset, in small variants drawn under tmp_path."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image

from gw_detectron.data import register_shapes, shapes
from gw_detectron.data.drawing import CLASSES, draw_scene
from gw_detectron.errors import UsageError


@pytest.fixture
def register(tmp_path, request):
    """Registers a small dataset of the test's own name, and forgets it afterwards."""
    name = f"shapes_{request.node.name}"

    def call(root=tmp_path, num_train=3, num_val=2, seed=0):
        register_shapes(name, str(root), num_train=num_train, num_val=num_val, seed=seed)
        return name

    def forget():
        for split in ("train", "val"):
            DatasetCatalog.pop(f"{name}_{split}", None)
            MetadataCatalog.pop(f"{name}_{split}", None)

    call.forget = forget
    yield call
    forget()


def test_importing_the_package_registers_both_splits():
    assert {"gw_shapes_train", "gw_shapes_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("gw_shapes_val").evaluator_type == "coco"


def test_registering_draws_nothing_until_first_use_and_once_then(register, tmp_path):
    name = register()
    assert os.listdir(tmp_path) == []
    DatasetCatalog.get(f"{name}_train")
    assert os.listdir(tmp_path) == [name]
    (marker := tmp_path / name / "train" / "marker").touch()
    DatasetCatalog.get(f"{name}_val")
    assert marker.exists()


def test_asking_for_the_annotation_file_first_draws_it(register, tmp_path):
    evaluator = COCOEvaluator(f"{register()}_val", output_dir=str(tmp_path))
    assert len(evaluator._coco_api.imgs) == 2


def test_files_are_laid_out_as_coco(register, tmp_path):
    name = register()
    metadata = MetadataCatalog.get(f"{name}_train")
    content = json.loads(Path(metadata.json_file).read_text())
    assert Path(metadata.json_file) == tmp_path / name / "annotations" / "instances_train.json"
    assert Path(metadata.image_root) == tmp_path / name / "train"
    assert [c["name"] for c in content["categories"]] == metadata.thing_classes
    assert sorted(os.listdir(metadata.image_root)) == [i["file_name"] for i in content["images"]]
    for image in content["images"]:
        with Image.open(Path(metadata.image_root) / image["file_name"]) as picture:
            assert (picture.width, picture.height) == (image["width"], image["height"])


def _draw(register, root, **recipe):
    """The files of a dataset that is drawn under root."""
    name = register(root, **recipe)
    DatasetCatalog.get(f"{name}_train")
    register.forget()
    folder = root / name
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_draws_give_the_same_bytes(register, tmp_path):
    first, second = (_draw(register, tmp_path / root) for root in "ab")
    assert len(first) == 3 + 2 + 2
    assert first == second


def test_an_image_depends_on_its_split_its_number_and_the_seed_alone(register, tmp_path):
    one, three = (_draw(register, tmp_path / str(n), num_train=n) for n in (1, 3))
    image = Path("train", "000001.png")
    assert one[image] == three[image]
    _draw(register, tmp_path / "seed", seed=1)
    images = [p.read_bytes() for p in tmp_path.rglob("*.png")]
    assert (len(images), len(set(images))) == (3 + 5 + 5, 5 + 5)


def test_boxes_and_areas_are_those_of_the_masks(register):
    content = json.loads(
        Path(MetadataCatalog.get(f"{register(num_train=12)}_train").json_file).read_text()
    )
    for annotation in content["annotations"]:
        polygons = mask_util.frPyObjects(annotation["segmentation"], 192, 256)
        ys, xs = np.nonzero(mask_util.decode(mask_util.merge(polygons)))
        x, y = xs.min(), ys.min()
        assert annotation["bbox"] == [x, y, xs.max() + 1 - x, ys.max() + 1 - y]
        assert annotation["area"] == len(xs)


def _rasterized(polygons):
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, 192, 256)))


def test_polygons_reproduce_every_visible_pixel_of_scenes():
    for index in range(10):
        for mask in draw_scene(np.random.default_rng(index), 192, 256).masks:
            np.testing.assert_array_equal(_rasterized(shapes._polygons(mask)), mask)


def test_polygons_reproduce_masks_with_holes_parts_and_borders():
    y, x = np.mgrid[:192, :256]
    ring = np.hypot(x - 100, y - 90) < 40
    ring &= np.hypot(x - 104, y - 93) > 17
    holes = (x < 90) & (y < 80)
    holes[10:20, 10:30] = holes[40:41, 50:51] = holes[60:70, 12:33] = False
    corners = (abs(x - 128) > 100) & (abs(y - 96) > 60)
    for mask in (ring, holes, corners, np.ones((192, 256), bool)):
        np.testing.assert_array_equal(_rasterized(shapes._polygons(mask)), mask)


def test_scenes_are_varied():
    scenes = [draw_scene(np.random.default_rng(index), 192, 256) for index in range(60)]
    counts = [len(scene.classes) for scene in scenes]
    sides = np.sqrt([mask.sum() for scene in scenes for mask in scene.masks])
    levels = [scene.image.mean() for scene in scenes]
    assert min(counts) == 1 and max(counts) == 8
    assert all(np.sum(scene.masks, axis=0).max() == 1 for scene in scenes)  # none overlap
    assert {c for scene in scenes for c in scene.classes} == set(range(len(CLASSES)))
    assert 0.1 < np.mean(sides < 16) < 0.4 and np.mean(sides > 48) > 0.05
    assert np.std(levels) > 25


def test_what_is_drawn_stays_the_same():
    """Published results and everybody's datasets/gw_shapes are of these images."""
    scenes = [draw_scene(np.random.default_rng([0, 0, index]), 192, 256) for index in range(4)]
    names = [" ".join(CLASSES[c] for c in scene.classes) for scene in scenes]
    assert names == ["cross", "star star", "star", "square ring star cross"]


def test_interrupted_drawing_leaves_nothing_behind(register, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    name = register()
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            DatasetCatalog.get(f"{name}_train")
    assert os.listdir(tmp_path) == []
    assert len(DatasetCatalog.get(f"{name}_train")) == 3


def _size_of_dataset(name):
    return len(DatasetCatalog.get(name))


def test_several_processes_at_once_all_get_whole_data(register, tmp_path):
    name = register(num_train=20)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sizes = pool.map(_size_of_dataset, [f"{name}_train"] * 3, chunksize=1)
    assert sizes == [20] * 3
    assert os.listdir(tmp_path) == [name]


def test_a_process_that_is_late_uses_the_winners_files(register, tmp_path, monkeypatch):
    name = register()
    marker = tmp_path / name / "train" / "of the winner"

    def draw_while_another_finishes(*args):
        monkeypatch.undo()
        DatasetCatalog.get(f"{name}_val")
        marker.touch()
        return draw_scene(*args)

    monkeypatch.setattr(shapes, "draw_scene", draw_while_another_finishes)
    assert len(DatasetCatalog.get(f"{name}_train")) == 3
    assert marker.exists()
    assert os.listdir(tmp_path) == [name]


def test_target_that_cannot_be_written_is_one_line(register, tmp_path):
    in_the_way = tmp_path / "a file"
    in_the_way.touch()
    name = register(in_the_way)
    with pytest.raises(UsageError) as e:
        DatasetCatalog.get(f"{name}_train")
    message = str(e.value)
    assert str(in_the_way / name) in message and "DETECTRON2_DATASETS" in message
    assert "\n" not in message


@pytest.mark.parametrize("root", ["/a/folder", "~/data", None])
def test_default_root_is_that_of_detectron2s_own_datasets(root, monkeypatch):
    if root is None:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    else:
        monkeypatch.setenv("DETECTRON2_DATASETS", root)
    expected = {"/a/folder": "/a/folder", "~/data": os.path.expanduser("~/data"), None: "datasets"}
    name = f"of {root}"
    register_shapes(name)
    try:
        folder = os.path.join(expected[root], name)
        assert MetadataCatalog.get(f"{name}_val").image_root == os.path.join(folder, "val")
    finally:
        for split in ("train", "val"):
            DatasetCatalog.pop(f"{name}_{split}")
            MetadataCatalog.pop(f"{name}_{split}")
