import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torchvision.ops import nms

from gw_detectron.export import operators


def random_boxes(count, extent=200.0, seed=0):
    torch.manual_seed(seed)
    corner = torch.rand(count, 2) * extent
    return torch.cat([corner, corner + torch.rand(count, 2) * extent / 2], 1)


def test_anchors_are_detectron2s():
    generator = DefaultAnchorGenerator(
        sizes=[[32, 48], [64, 96]], aspect_ratios=[0.5, 1.0], strides=[4, 8], offset=0.5
    )
    features = [torch.zeros(1, 3, 5, 7), torch.zeros(1, 3, 3, 4)]
    for ours, theirs in zip(
        operators.anchors_of(generator, features), generator(features), strict=True
    ):
        assert torch.equal(ours, theirs.tensor)


def test_predictions_are_in_the_anchors_order():
    prediction = torch.randn(1, 3 * 4, 5, 7)
    assert torch.equal(
        operators.by_anchor(prediction, 4), permute_to_N_HWA_K(prediction, 4).squeeze(0)
    )


def test_images_are_padded_below_and_right():
    image = torch.ones(3, 33, 64)
    padded = operators.padded(image, 32)
    assert padded.shape == (1, 3, 64, 64)
    assert torch.equal(padded[0, :, :33], image) and padded[0, :, 33:].eq(0).all()


@pytest.mark.parametrize(
    "scores, count, above, expected",
    [
        ([0.1, 0.9, 0.5], 2, 0.0, [1, 2]),
        ([0.1, 0.9, 0.5], 5, 0.0, [1, 2, 0]),
        ([0.1, 0.9, 0.5], 5, 0.5, [1]),
        ([torch.nan, 0.9, -torch.inf], 1, -torch.inf, [1]),
        ([], 2, 0.0, []),
    ],
)
def test_the_highest_scores_are_those_above(scores, count, above, expected):
    scores = torch.tensor(scores)
    values, indices = operators.highest(scores, count, above)
    assert indices.tolist() == expected
    assert torch.equal(values, scores[indices])


@pytest.mark.parametrize("num_classes", [1, 2, 80, 1203])
def test_suppression_is_within_each_class(num_classes):
    boxes = random_boxes(300) - 50  # some reach beyond the image
    scores, classes = torch.rand(300), torch.randint(num_classes, (300,))
    kept = []
    for k in range(num_classes):
        of_class = (classes == k).nonzero().flatten()
        kept.append(of_class[nms(boxes[of_class], scores[of_class], 0.5)])
    kept = torch.cat(kept)
    expected = kept[scores[kept].argsort(descending=True)]
    assert torch.equal(operators.nms_by_class(boxes, scores, classes, num_classes, 0.5), expected)


def test_nothing_is_left_of_no_boxes():
    none = torch.zeros(0)
    kept = operators.nms_by_class(none.view(0, 4), none, none.long(), 80, 0.5)
    assert kept.shape == (0,)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_regions_are_pooled_from_detectron2s_levels(count):
    pooler = ROIPooler(7, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")
    features = [torch.randn(1, 5, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)]
    boxes = random_boxes(count, extent=250.0)
    boxes[::2, 2:] = boxes[::2, :2] + 9  # small ones as well
    seen = []
    ours = operators.pooled(pooler, features, boxes, lambda x: seen.append(len(x)) or x)
    assert torch.equal(ours, pooler(features, [Boxes(boxes)]))
    assert seen == [count + 1]  # the head never meets an empty batch


def test_an_empty_or_undefined_box_is_empty():
    boxes = torch.tensor([[0, 0, 2, 3], [1, 1, 1, 5], [0, 0, torch.nan, 5]])
    assert operators.nonempty(boxes).tolist() == [True, False, False]
    assert operators.nonempty(boxes, 2.5).tolist() == [False] * 3
