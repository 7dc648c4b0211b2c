"""How far an export's detections are from Detectron2's own."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.modeling import RetinaNet
from torch import Tensor, nn

BOX_TOLERANCE = 0.5  # pixels
SCORE_TOLERANCE = 1e-3
MASK_TOLERANCE = 1e-2  # of a probability


class Detections(NamedTuple):
    """In one image: (D, 4), (D,), (D,) and, of a model with masks, (D, M, M)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        expected, found: the numbers of Detectron2's and of the export's detections.
        matched: of pairs, one of each, that agree in class and within the tolerances.
        box, score, mask: the largest difference of a pair, in pixels and probabilities; mask is
            None for a model without masks. Pairs at the score's limit don't count, see compare.
        agrees: every detection has its pair, and every pair is within the tolerances.
    """

    expected: int
    found: int
    matched: int
    box: float
    score: float
    mask: float | None
    agrees: bool


def detect(model: nn.Module, image: Tensor) -> Detections:
    """What a model of Detectron2's finds itself, in pixels of image, float32 (3, H, W)."""
    inputs = [{"image": image}]
    with torch.no_grad():
        if isinstance(model, RetinaNet):
            found = model(inputs)[0]["instances"]
        else:  # not processed further: masks would come in the image's size
            found = model.inference(inputs, do_postprocess=False)[0]
            found = found[found.pred_boxes.nonempty()]
    masks = found.pred_masks.squeeze(1) if found.has("pred_masks") else None
    return Detections(found.pred_boxes.tensor, found.scores, found.pred_classes, masks)


def score_limit(detections: Detections, threshold: float, most: int) -> float:
    """The score that a detection needs: the threshold, or the last one's where there are `most`."""
    full = len(detections.scores) == most
    return detections.scores.min().item() if full else threshold


def compare(expected: Detections, found: Detections, limit: float) -> Comparison:
    """
    Pairs the detections of each class, the nearest boxes first.

    Args:
        expected: not empty.
        limit: the score that a detection needs. Detections within the tolerance of it are there or
            not by chance, so what is wrong with them does not count.
    """
    distance = (expected.boxes[:, None] - found.boxes).abs().amax(2).nan_to_num(torch.inf)
    distance[expected.classes[:, None] != found.classes] = torch.inf
    clear = [d.scores > limit + SCORE_TOLERANCE for d in (expected, found)]
    matched, agrees = 0, True
    box = score = mask = 0.0
    while distance.numel() and distance.min() < torch.inf:
        i, j = divmod(distance.argmin().item(), distance.shape[1])
        differences = (
            distance[i, j].item(),
            (expected.scores[i] - found.scores[j]).abs().item(),
            0.0
            if expected.masks is None
            else (expected.masks[i] - found.masks[j]).abs().max().item(),
        )
        distance[i], distance[:, j] = torch.inf, torch.inf
        within = all(
            d <= tolerance
            for d, tolerance in zip(
                differences, (BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE), strict=True
            )
        )
        matched += within
        if within or clear[0][i] or clear[1][j]:
            box, score, mask = map(max, (box, score, mask), differences)
            agrees &= within
            clear[0][i] = clear[1][j] = False
    agrees &= not (clear[0].any() or clear[1].any())
    sizes = len(expected.scores), len(found.scores)
    return Comparison(*sizes, matched, box, score, None if expected.masks is None else mask, agrees)
