import pytest
import torch

from gw_detectron.export.report import Detections, compare, score_limit


def detections(*rows, masks=None):
    """From (x0, y0, x1, y1, score, class) each."""
    rows = torch.tensor(rows).view(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].long(), masks)


A = (10.0, 10.0, 50.0, 50.0, 0.9, 1.0)
B = (60.0, 60.0, 90.0, 90.0, 0.6, 1.0)
C = (60.0, 60.0, 90.0, 90.0, 0.3, 2.0)


def moved(row, box=0.0, score=0.0, label=0.0):
    return row[0] + box, *row[1:4], row[4] + score, row[5] + label


def test_the_same_in_another_order_agrees():
    result = compare(detections(A, B, C), detections(C, A, B), limit=0.05)
    assert (result.expected, result.found, result.matched) == (3, 3, 3)
    assert (result.box, result.score, result.mask, result.agrees) == (0, 0, None, True)


def test_the_largest_differences_are_given():
    found = detections(moved(A, box=0.25, score=5e-4), moved(B, box=0.375), moved(C, score=-7e-4))
    result = compare(detections(A, B, C), found, limit=0.05)
    assert result.agrees and result.matched == 3
    assert result.box == 0.375 and result.score == pytest.approx(7e-4, abs=1e-6)


@pytest.mark.parametrize(
    "found, matched",
    [
        ([A, moved(B, box=0.75), C], 2),
        ([A, B, moved(C, score=0.002)], 2),
        ([A, B, moved(C, label=1.0)], 2),
        ([A, B], 2),
        ([A, B, C, moved(C, box=20.0)], 3),
        ([(torch.nan,) * 4 + A[4:], B, C], 2),
        ([], 0),
    ],
)
def test_what_is_off_or_missing_or_more_disagrees(found, matched):
    result = compare(detections(A, B, C), detections(*found), limit=0.05)
    assert not result.agrees and result.matched == matched


@pytest.mark.parametrize(
    "expected, found", [([A, C], [A]), ([A], [A, C]), ([A, C], [A, B[:4] + (0.3, 1.0)])]
)
def test_what_is_there_or_not_by_chance_does_not_count(expected, found):
    expected, found = detections(*expected), detections(*found)
    assert compare(expected, found, limit=0.2995).agrees
    assert not compare(expected, found, limit=0.2).agrees


def test_masks_are_compared_by_pair():
    masks = torch.rand(2, 28, 28)
    expected = detections(A, B, masks=masks)
    assert compare(expected, detections(B, A, masks=masks.flip(0)), limit=0.05).mask == 0
    off = masks.clone()
    off[1, 3, 4] += 0.02
    result = compare(expected, detections(A, B, masks=off), limit=0.05)
    assert result.mask == pytest.approx(0.02, abs=1e-6) and not result.agrees


def test_the_limit_is_the_threshold_or_the_last_that_had_a_place():
    assert score_limit(detections(A, B), threshold=0.05, most=100) == 0.05
    assert score_limit(detections(A, B), threshold=0.05, most=2) == pytest.approx(0.6)
