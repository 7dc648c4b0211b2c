import math
import re

import numpy as np
import pytest

pytest.importorskip("detectron2")

from gw_detectron.runs.difference import ap_differences
from gw_detectron.runs.run import read_run

from .pets import CAT, DOG, MIDDLE, ONE_CAT, detection, perfect, polygon, write_tested_run
from .synthetic import write_run


@pytest.fixture
def runs_of(tmp_path):
    """Runs by norm, from {norm: {seed: AP}}."""

    def make(aps, **overrides):
        return {
            norm: [
                read_run(write_run(tmp_path / norm / str(seed), ap=ap, SEED=seed, **overrides))
                for seed, ap in of_norm.items()
            ]
            for norm, of_norm in aps.items()
        }

    return make


def test_seeds_are_paired_and_the_interval_is_students(runs_of):
    aps = {"GN": {1: 40.0, 2: 44.0, 3: 39.0}, "GW": {3: 42.0, 1: 41.0, 2: 46.0}}
    (found,) = ap_differences(runs_of(aps), "val")
    # 1, 2, 3: mean 2, standard deviation 1; 4.303 is Student's 97.5 % quantile of 2 degrees
    half = 4.303 / math.sqrt(3)
    assert (found.norm, found.other, found.num_pairs) == ("GW", "GN", 3)
    assert found.mean == pytest.approx(2) and found.over_images is None
    assert found.over_seeds == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert found.is_none
    assert str(found) == "GW - GN: none, +2.0, [-0.5, 4.5] over 3 seeds"


def test_a_difference_that_no_interval_denies_is_not_none(runs_of):
    runs = runs_of({"GN": {1: 40.0, 2: 41.0}, "GW": {1: 43.0, 2: 44.2}})
    (found,) = ap_differences(runs, "val")
    assert not found.is_none and str(found) == "GW - GN: +3.1, [1.8, 4.4] over 2 seeds"
    (back,) = ap_differences(dict(reversed(runs.items())), "val")
    assert not back.is_none and str(back) == "GN - GW: -3.1, [-4.4, -1.8] over 2 seeds"


def test_runs_without_their_counterpart_are_left_out(runs_of):
    aps = {"GN": {1: 40.0, 2: 41.0, 4: 90.0}, "GW": {1: 43.0, 2: 44.1, 3: 0.0}}
    (found,) = ap_differences(runs_of(aps), "val")
    assert found.num_pairs == 2 and found.mean == pytest.approx(3.05)


@pytest.mark.parametrize("seeds, pairs", [((1,), 1), ((7,), 0), ((-1,), 0)])
def test_without_pairs_there_is_a_difference_and_no_interval(runs_of, seeds, pairs):
    aps = {"GN": {-1: 40.0} if seeds == (-1,) else {1: 40.0}, "GW": dict.fromkeys(seeds, 42.5)}
    (found,) = ap_differences(runs_of(aps), "val")
    assert (found.mean, found.num_pairs, found.over_seeds) == (2.5, pairs, None)
    assert str(found) == "GW - GN: +2.5" and not found.is_none


def test_every_two_norms_are_compared(runs_of):
    aps = {norm: {1: ap} for norm, ap in (("BN", 1.0), ("GN", 2.0), ("GW", 4.0))}
    texts = list(map(str, ap_differences(runs_of(aps), "val")))
    assert texts == ["GN - BN: +1.0", "GW - BN: +3.0", "GW - GN: +2.0"]


def test_the_interval_over_images_is_that_of_samples_of_them(pets, tmp_path):
    """
    Of four images, one has a cat and two have dogs. A detector finds all, another no cat: its AP is
    100 on samples without the cat, with it 50 where there are dogs and 0 where there are none.
    """
    no_cat = [found for found in perfect() if found["category_id"] != CAT]
    runs = {
        norm: [read_run(write_tested_run(tmp_path / norm, results, ap=ap))]
        for norm, results, ap in (("no cat", no_cat, 50.0), ("all", perfect(), 100.0))
    }
    (found,) = ap_differences(runs, pets)
    # Without the cat in (3/4)^4 = 32 % of the samples; cat and no dog in (2/4)^4 - (1/4)^4 = 6 %
    assert found.over_images == (0, 100)
    assert found.is_none and str(found) == "all - no cat: none, +50.0, [0.0, 100.0] over images"


def test_masks_are_compared_by_their_own_ap(pets, tmp_path):
    thin = [found | {"segmentation": [[1, 1, 9, 1, 9, 3, 1, 3]]} for found in perfect()]
    right = [found | {"segmentation": polygon(found["bbox"])} for found in perfect()]
    runs = {}
    for norm, results, ap in (("thin", thin, 0.0), ("right", right, 100.0)):
        path = write_tested_run(tmp_path / norm, results, ap=100.0)
        run = read_run(path)
        run.evaluations[pets][200]["segm/AP"] = ap
        runs[norm] = [run]
    boxes, masks = (ap_differences(runs, pets, task)[0] for task in ("bbox", "segm"))
    assert (boxes.mean, boxes.over_images) == (0, (0, 0))
    assert (masks.mean, masks.over_images) == (100, (100, 100))


def test_all_runs_see_the_same_samples(pets, tmp_path):
    """With the same detections there is no difference on any of them."""
    results = [*perfect()[:2], detection(ONE_CAT, DOG, MIDDLE)]
    runs = {n: [read_run(write_tested_run(tmp_path / n, results, ap=50.0))] for n in "ab"}
    (found,) = ap_differences(runs, pets)
    np.testing.assert_array_equal(found.over_images, (0, 0))


def test_a_norm_alone_has_no_differences_and_no_warning(runs_of, caplog):
    assert ap_differences(runs_of({"GN": {1: 40.0, 2: 41.0}}), "val") == [] and not caplog.records


def test_boxes_have_no_interval_of_masks(pets, tmp_path, caplog):
    runs = {n: [read_run(write_tested_run(tmp_path / n, perfect()))] for n in "ab"}
    for (run,) in runs.values():
        run.evaluations[pets][200]["segm/AP"] = 50.0
    (found,) = ap_differences(runs, pets, "segm")
    assert found.over_images is None and "have masks" in caplog.text


@pytest.mark.parametrize(
    "test, reason",
    [("('unknown',)", "unknown is not registered: .*--dataset unknown"), (None, "kept no detec")],
)
def test_what_is_missing_for_the_interval_over_images_is_said(test, reason, pets, tmp_path, caplog):
    paths = [write_tested_run(tmp_path / n, perfect(), test or "('pets',)") for n in "ab"]
    if test is None:
        (tmp_path / "b" / "inference" / "coco_instances_results.json").unlink()
    runs = {path[-1]: [read_run(path)] for path in paths}
    (found,) = ap_differences(runs, "unknown" if test else pets)
    assert found.over_images is None
    (record,) = caplog.records
    assert re.search(f"^no intervals over the images of .*{reason}", record.getMessage())
