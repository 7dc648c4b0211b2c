import json
import re

import pytest

pytest.importorskip("detectron2")

import pycocotools.mask as mask_util
from PIL import Image

from gw_detectron.errors import UsageError
from gw_detectron.runs.page import find_sources, load_ground_truth, visualization, visualize

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
    perfect,
    polygon,
    write_json,
)
from .test_detections import write_trained_run


def show(tmp_path, truth, results, **arguments):
    """Of results by their labels, in files; or of a path."""
    texts = [
        found if isinstance(found, str) else write_json(tmp_path / f"{label}.json", found)
        for label, found in results.items()
    ]
    sources, _ = find_sources(texts)
    return visualize(sources, load_ground_truth(truth), str(tmp_path / "out"), **arguments)


def without(*image_ids):
    return [found for found in perfect() if found["image_id"] not in image_ids]


def test_images_come_by_how_much_the_runs_differ(pets, tmp_path):
    half = [*without(TWO_DOGS), detection(TWO_DOGS, DOG, LEFT)]  # 49.5 less on the two dogs
    none = [found for found in half if found["image_id"] != CROWD]  # and 100 on the crowd
    shown = show(tmp_path, pets, {"all": perfect(), "half": half, "none": none})
    assert shown.image_ids == [CROWD, TWO_DOGS, ONE_CAT, NOTHING]
    assert [run.label for run in shown.runs] == ["all", "half", "none"]
    assert [run.box_ap(TWO_DOGS) for run in shown.runs] == pytest.approx([100, 50.495, 50.495])
    page = (tmp_path / "out" / "index.html").read_text()
    assert re.findall("<h2>(.*)</h2>", page) == [
        "1. 14.png: box AP differs by 100.0",
        "2. 11.png: box AP differs by 49.5",
        "3. 12.png: box AP differs by 0.0",
        "4. 13.png",
    ]
    assert [run.aps["bbox"].dataset for run in shown.runs][0] == pytest.approx(100)


def test_images_of_one_run_come_from_the_lowest_ap_on(pets, tmp_path):
    half = [*without(TWO_DOGS, ONE_CAT), detection(TWO_DOGS, DOG, LEFT)]
    shown = show(tmp_path, pets, {"half": half})
    assert shown.image_ids == [ONE_CAT, TWO_DOGS, CROWD, NOTHING]


def test_only_the_images_asked_for_are_read_and_drawn(pets, tmp_path):
    for path in (tmp_path / "data" / "images").iterdir():
        if path.name != f"{ONE_CAT}.png":
            path.unlink()
    shown = show(tmp_path, pets, {"all": perfect(), "no cat": without(ONE_CAT)}, num_images=1)
    assert shown.image_ids == [ONE_CAT]


def test_detections_below_the_threshold_count_and_are_not_drawn(pets, tmp_path):
    faint = [{**found, "score": 0.3} for found in perfect()]
    for threshold, drawn in ((0.5, 0), (0.3, 4)):
        (run,) = show(tmp_path, pets, {"faint": faint}, threshold=threshold).runs
        assert sum(map(len, run.shown.values())) == drawn
        assert run.aps["bbox"].dataset == pytest.approx(100)


def test_masks_are_evaluated_where_a_run_has_them(pets, tmp_path):
    def with_mask(found):
        (rle,) = mask_util.frPyObjects(polygon(found["bbox"]), 60, 80)
        return found | {"segmentation": {**rle, "counts": rle["counts"].decode()}}

    masks = [with_mask(found) for found in perfect()]
    boxes, masked = show(tmp_path, pets, {"boxes": perfect(), "masks": masks}).runs
    assert set(boxes.aps) == {"bbox"} and not boxes.has_masks
    assert masked.aps["segm"].dataset == pytest.approx(100) and masked.has_masks


def test_a_model_is_run_and_its_detections_are_kept(pets, tmp_path):
    run = write_trained_run(tmp_path / "run")
    shown = show(tmp_path, pets, {"run": run, "all": perfect()}, threshold=0)
    assert [run.label for run in shown.runs] == ["FrozenBN", "all"]
    kept = tmp_path / "out" / "FrozenBN.json"
    assert shown.runs[0].source == str(kept)
    assert len(json.loads(kept.read_text())) == 20
    again = show(tmp_path, pets, {"kept": str(kept)}, threshold=0)
    assert again.runs[0].shown == shown.runs[0].shown


def test_mistakes_in_files_are_found_before_a_model_is_run(pets, tmp_path, monkeypatch):
    run = write_trained_run(tmp_path / "run")
    monkeypatch.setattr(visualization, "run_model", lambda *_: pytest.fail("it was run"))
    with pytest.raises(UsageError, match="image_id 99"):
        show(tmp_path, pets, {"run": run, "bad": [detection(99, DOG, LEFT)]})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_images": 0}, "--images 0"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"threshold": float("nan")}, "--threshold nan"),
    ],
)
def test_numbers_that_make_no_sense_are_mistakes(pets, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        show(tmp_path, pets, {"all": perfect()}, **arguments)


def test_an_output_that_is_a_file_is_a_mistake(pets, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="--output .*out can't be made"):
        show(tmp_path, pets, {"all": perfect()})


def test_detections_where_nothing_is_and_runs_without_any_are_drawn(pets, tmp_path):
    wrong = [detection(NOTHING, CAT, MIDDLE), detection(NOTHING, DOG, RIGHT)]
    shown = show(tmp_path, pets, {"wrong": wrong, "none": []})
    assert shown.image_ids == [TWO_DOGS, ONE_CAT, CROWD, NOTHING]
    (sheet,) = shown.sheets
    with Image.open(sheet) as image:
        assert image.width > 3 * 500 and image.height > 4 * 380
