import pytest
import torch

from gw_detectron.export.report import Detections, compare


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
    result = compare(detections(A, B, C), detections(C, A, B))
    assert (result.expected, result.found, result.matched) == (3, 3, 3)
    assert (result.box, result.score, result.mask, result.agrees) == (0, 0, None, True)


def test_the_largest_differences_are_given():
    found = detections(moved(A, box=0.25, score=5e-4), moved(B, box=0.375), moved(C, score=-7e-4))
    result = compare(detections(A, B, C), found)
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
    result = compare(detections(A, B, C), detections(*found))
    assert not result.agrees and result.matched == matched


@pytest.mark.parametrize(
    "expected, found, agrees", [(20, 19, True), (20, 18, False), (19, 20, True)]
)
def test_of_twenty_detections_one_may_differ_by_chance(expected, found, agrees):
    rows = [(*(v + 100 * i for v in A[:4]), *A[4:]) for i in range(20)]
    result = compare(detections(*rows[:expected]), detections(*rows[:found]))
    assert result.agrees is agrees and result.matched == min(expected, found)


def test_what_differs_by_chance_is_no_difference_of_those_that_match():
    rows = [(*(v + 100 * i for v in A[:4]), *A[4:]) for i in range(20)]
    result = compare(detections(*rows), detections(*rows[1:], moved(A, box=20.0)))
    assert result.agrees and (result.matched, result.box) == (19, 0)
    result = compare(detections(*rows), detections(*rows[2:], moved(A, box=20.0)))
    assert not result.agrees and result.box == 20


def test_masks_are_compared_by_pair():
    masks = torch.rand(2, 28, 28)
    expected = detections(A, B, masks=masks)
    assert compare(expected, detections(B, A, masks=masks.flip(0))).mask == 0
    off = masks.clone()
    off[1, 3, 4] += 0.02
    result = compare(expected, detections(A, B, masks=off))
    assert result.mask == pytest.approx(0.02, abs=1e-6) and not result.agrees
