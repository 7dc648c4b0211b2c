import pytest
import torch

from gw_detectron.engine.pretraining.trainer import TopKEvaluator

# seven classes; the comments rank them from the likeliest
LOGITS = torch.tensor(
    [
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],  # 0 1 2 3 4 | 5 6
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],  # 6 5 4 3 2 | 1 0
        [0.0, 9.0, 0.1, 0.2, 8.0, 0.3, 0.4],  # 1 4 6 5 3 | 2 0
        [-5.0, -4.0, -3.0, -2.0, -1.0, -6.0, -7.0],  # 4 3 2 1 0 | 5 6
    ]
)


@pytest.mark.parametrize(
    "labels, top1, top5",
    [
        ([0, 6, 1, 4], 100, 100),
        ([0, 2, 3, 0], 25, 100),
        ([4, 1, 2, 5], 0, 25),
        ([5, 6, 4, 3], 25, 75),
    ],
)
def test_top1_and_top5_are_those_counted_by_hand(labels, top1, top5):
    evaluator = TopKEvaluator()
    evaluator.reset()
    labels = torch.tensor(labels)
    for part in (slice(0, 1), slice(1, 4)):  # batches of different sizes
        evaluator.process({"label": labels[part]}, LOGITS[part])
    assert evaluator.evaluate() == {"classification": {"top1": top1, "top5": top5}}


def test_a_new_round_forgets_the_last():
    evaluator = TopKEvaluator()
    for label, expected in ((0, 100), (1, 0)):
        evaluator.reset()
        evaluator.process({"label": torch.tensor([label])}, LOGITS[:1])
        assert evaluator.evaluate()["classification"]["top1"] == expected


def test_with_few_classes_every_image_is_right_among_five():
    evaluator = TopKEvaluator()
    evaluator.reset()
    evaluator.process({"label": torch.tensor([2, 1])}, torch.eye(3)[:2])
    assert evaluator.evaluate() == {"classification": {"top1": 50, "top5": 100}}
