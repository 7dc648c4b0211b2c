"""AP of single images, against values computed by hand."""

import copy
import math

import pytest

pytest.importorskip("detectron2")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gw_detectron.runs.page.per_image import evaluate_images

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
    content,
    detection,
    perfect,
    polygon,
)


def coco(dataset):
    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    return truth


def evaluate(results, iou_type="bbox", dataset=None, **arguments):
    return evaluate_images(coco(dataset or content()), results, iou_type, **arguments)


def ap(image_id, results):
    return evaluate(results).images[image_id]


def test_perfect_detections_have_ap_100():
    assert evaluate(perfect()).images == {
        TWO_DOGS: pytest.approx(100),
        ONE_CAT: pytest.approx(100),
        NOTHING: pytest.approx(math.nan, nan_ok=True),
        CROWD: pytest.approx(100),
    }


def test_half_of_the_objects_missed_leaves_precision_1_up_to_recall_one_half():
    # at 51 of the 101 recalls 0, 0.01, ... 1
    assert ap(TWO_DOGS, [detection(TWO_DOGS, DOG, LEFT)]) == pytest.approx(100 * 51 / 101)


def test_false_positive_with_the_higher_score_halves_the_precision():
    wrong = detection(ONE_CAT, CAT, [0, 0, 5, 5], score=0.95)
    assert ap(ONE_CAT, [wrong, detection(ONE_CAT, CAT, MIDDLE)]) == pytest.approx(50)
    wrong["score"] = 0.1
    assert ap(ONE_CAT, [wrong, detection(ONE_CAT, CAT, MIDDLE)]) == pytest.approx(100)


def test_a_loose_box_counts_at_the_ious_that_it_reaches():
    x, y, w, h = MIDDLE
    loose = [x, y, w, 0.78 * h]  # IoU 0.78: 0.5, 0.55, ... 0.75, that is 6 of 10
    assert ap(ONE_CAT, [detection(ONE_CAT, CAT, loose)]) == pytest.approx(60)


def test_nothing_found_is_0_and_nothing_there_is_nan():
    images = evaluate([]).images
    assert [images[id] for id in (TWO_DOGS, ONE_CAT, CROWD)] == [0, 0, 0]
    assert math.isnan(images[NOTHING])
    assert math.isnan(ap(NOTHING, [detection(NOTHING, DOG, LEFT)]))


def test_detections_in_a_crowd_are_neither_right_nor_wrong():
    inside = detection(CROWD, DOG, RIGHT, score=0.99)
    assert ap(CROWD, [inside, detection(CROWD, DOG, LEFT)]) == pytest.approx(100)
    beside = detection(CROWD, DOG, [30, 0, 10, 10], score=0.99)
    assert ap(CROWD, [beside, detection(CROWD, DOG, LEFT)]) == pytest.approx(50)


def test_image_with_a_crowd_only_has_no_ap():
    dataset = content()
    dataset["annotations"] = [dataset["annotations"][-1]]
    assert math.isnan(evaluate([], dataset=dataset).images[CROWD])


def test_classes_of_an_image_count_the_same_and_others_do_not():
    dataset = content()
    dataset["annotations"][1]["category_id"] = CAT  # so that a dog and a cat are on the image
    found = [detection(TWO_DOGS, DOG, LEFT)]
    assert evaluate(found, dataset=dataset).images[TWO_DOGS] == pytest.approx(50)
    strange = detection(ONE_CAT, DOG, LEFT, score=0.99)
    assert ap(ONE_CAT, [strange, detection(ONE_CAT, CAT, MIDDLE)]) == pytest.approx(100)


def test_masks_are_compared_where_asked_for():
    x, y, w, h = MIDDLE
    part = detection(ONE_CAT, CAT, MIDDLE, segmentation=polygon([x, y, w, h * 5 // 8]))
    assert evaluate([dict(part)], "bbox").images[ONE_CAT] == pytest.approx(100)
    # IoU 0.625: 0.5, 0.55, 0.6
    assert evaluate([dict(part)], "segm").images[ONE_CAT] == pytest.approx(30)


def test_ap_of_the_dataset_is_cocos_own():
    found = [
        detection(TWO_DOGS, DOG, [6, 5, 20, 20], 0.7),
        detection(TWO_DOGS, DOG, [40, 30, 20, 20], 0.8),
        detection(ONE_CAT, CAT, MIDDLE, 0.3),
        detection(ONE_CAT, CAT, LEFT, 0.6),
        detection(NOTHING, DOG, LEFT, 0.75),
        detection(CROWD, DOG, [5, 7, 20, 20], 0.65),
    ]
    truth = coco(content())
    standard = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "bbox")
    standard.evaluate()
    standard.accumulate()
    standard.summarize()
    assert 0 < standard.stats[0] < 1
    assert evaluate(found).dataset == pytest.approx(100 * standard.stats[0])


def test_each_image_is_reported():
    seen = []
    evaluate(perfect(), each_image=lambda: seen.append(1))
    assert len(seen) == 4
