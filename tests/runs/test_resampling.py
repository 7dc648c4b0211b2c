import contextlib
import io

import numpy as np
import pytest

pytest.importorskip("detectron2")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gw_detectron.runs.resampling import resampled_aps

IMAGES, CLASSES = 12, (1, 2, 5)


def random_set(rng):
    """
    Ground truth and detections of some images: crowds, images without objects or detections, a
    class without objects, boxes that overlap more or less.
    """
    objects, detections = [], []
    for image in range(1, IMAGES + 1):
        for _ in range(rng.integers(0, 4)):
            box = [*rng.integers(0, 60, 2).tolist(), *rng.integers(10, 40, 2).tolist()]
            crowd = int(rng.random() < 0.15)
            objects.append((image, category := int(rng.choice(CLASSES[:2])), box, crowd))
            for _ in range(rng.integers(0, 4) if image % 5 else 0):
                near = (np.array(box) + rng.integers(-3, 4, 4)).clip(1).tolist()
                score = float(rng.random())  # ties would be in another order among copies
                found = category if rng.random() < 0.8 else int(rng.choice(CLASSES))
                detections.append((image, found, near, score))
    return objects, detections


def evaluated(objects, detections, images):
    truth = COCO()
    truth.dataset = {
        "images": [{"id": id, "height": 100, "width": 100} for id in images],
        "categories": [{"id": id, "name": str(id)} for id in CLASSES],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            | {"area": box[2] * box[3]}
            for i, (image, category, box, crowd) in enumerate(objects, 1)
        ],
    }
    keys = ("image_id", "category_id", "bbox", "score")
    results = [dict(zip(keys, detection, strict=True)) for detection in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets, evaluation.params.areaRng = [100], [[0, 1e10]]
        evaluation.evaluate()
    return evaluation


def cocos_ap(evaluation):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    precision = precision[precision > -1]
    return 100 * precision.mean() if precision.size else np.nan


def copied(entries, count):
    """Each entry of image i anew in as many images as count says; first those of image 1."""
    starts = np.cumsum([0, *count])
    return [
        (int(starts[image - 1]) + copy + 1, *rest)
        for image, *rest in entries
        for copy in range(count[image - 1])
    ]


@pytest.mark.parametrize("seed", range(8))
def test_a_sample_has_the_ap_of_a_dataset_with_these_images(seed):
    rng = np.random.default_rng(seed)
    objects, detections = random_set(rng)
    counts = rng.multinomial(IMAGES, [1 / IMAGES] * IMAGES, size=6)
    counts = np.vstack([np.ones_like(counts[:1]), counts])
    aps = resampled_aps(evaluated(objects, detections, range(1, IMAGES + 1)), counts)
    expected = []
    for count in counts:
        parts = copied(objects, count), copied(detections, count)
        expected.append(cocos_ap(evaluated(*parts, range(1, int(count.sum()) + 1))))
    assert len(set(expected)) > 3
    np.testing.assert_allclose(aps, expected, rtol=0, atol=1e-9)


def test_a_sample_without_an_object_has_no_ap():
    evaluation = evaluated([(1, 1, [5, 5, 20, 20], 0)], [(1, 1, [5, 5, 20, 20], 0.9)], (1, 2))
    aps = resampled_aps(evaluation, np.array([[2, 0], [0, 2], [1, 1]]))
    np.testing.assert_array_equal(aps, [100, np.nan, 100])
