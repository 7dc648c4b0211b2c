"""
What happens between a detector's networks, on the tensors of one image, in operators alone.

No decision is taken by Python on a value or a size, no shape is a constant and no tensor is made on
a named device, so that all of it can be exported. Boxes are (N, 4), x0 y0 x1 y1 in pixels.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import move_device_like
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor


def padded(image: Tensor, stride: int) -> Tensor:
    """(C, H, W) as a batch of one, (1, C, H', W'), zeros below and right to multiples of stride."""
    height, width = image.shape[-2:]
    below = (height + stride - 1) // stride * stride - height
    right = (width + stride - 1) // stride * stride - width
    return F.pad(image, [0, right, 0, below]).unsqueeze(0)


def anchors_of(generator: DefaultAnchorGenerator, features: Sequence[Tensor]) -> list[Tensor]:
    """Each level's anchors, (H W A, 4), in the order of :func:`by_anchor`."""
    levels = zip(features, generator.strides, generator.cell_anchors, strict=True)
    return [_grid(feature, stride, generator.offset, cells) for feature, stride, cells in levels]


def _grid(feature: Tensor, stride: int, offset: float, cells: Tensor) -> Tensor:
    height, width = feature.shape[-2:]
    x, y = (move_device_like(torch.arange(n), cells) + offset for n in (width, height))
    y, x = torch.meshgrid(y * stride, x * stride, indexing="ij")
    return (torch.stack([x, y, x, y], 2).unsqueeze(2) + cells).flatten(0, 2)


def by_anchor(prediction: Tensor, values: int) -> Tensor:
    """A head's (1, A * values, H, W) as (H W A, values)."""
    return prediction[0].permute(1, 2, 0).unflatten(2, [-1, values]).flatten(0, 2)


def highest(scores: Tensor, count: int, above: float) -> tuple[Tensor, Tensor]:
    """The `count` highest of scores, (N,), fewer where not so many are above, and their indices."""
    scores = torch.where(scores > above, scores, above)  # nan is not above
    scores, indices = F.pad(scores, [0, count], value=above).topk(count)
    keep = scores > above
    return scores[keep], indices[keep]


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    limits = (width, height, width, height)
    columns = zip(boxes.unbind(1), limits, strict=True)
    return torch.stack([column.clamp(min=0, max=limit) for column, limit in columns], 1)


def nonempty(boxes: Tensor, side: float = 0.0) -> Tensor:
    """(N,), whether both sides are longer than `side`; false where a side is nan."""
    return (boxes[:, 2:] - boxes[:, :2] > side).all(1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The indices of the boxes that non-maximum suppression leaves, best first."""
    # torchvision has torch.export assert that two boxes or more are left. Two of no size, last by
    # their score, neither suppress nor are suppressed.
    boxes, scores = F.pad(boxes, [0, 0, 0, 2]), F.pad(scores, [0, 2], value=-torch.inf)
    return torchvision.ops.nms(boxes, scores, threshold)[:-2]


def nms_by_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, threshold: float
) -> Tensor:
    """
    The indices of what non-maximum suppression within each class leaves, best first.

    One suppression for all: the classes' boxes are moved apart, to the cells of a square, which
    costs less precision than a row of them.
    """
    corners = F.pad(boxes.flatten(), [0, 1])  # there may be no box
    extent = corners.max() - corners.min() + 1
    side = math.ceil(math.sqrt(num_classes))
    cell = torch.stack([classes % side, classes // side], 1)
    return nms(boxes + (cell * extent).repeat(1, 2), scores, threshold)


def pooled(
    pooler: ROIPooler,
    features: Sequence[Tensor],
    boxes: Tensor,
    head: Callable[[Tensor], Tensor],
) -> Tensor:
    """
    What `head` makes of the regions' features (N, C, S, S), each from the level that suits its
    size: equation (1) of the FPN paper, as in Detectron2's ROIPooler.
    """
    # One region more, of no size: where there is none, not every runtime knows the shape of a
    # reshaped result. And before each the number of its image.
    regions = F.pad(boxes, [1, 0, 0, 1])
    size = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
    level = pooler.canonical_level + torch.log2(size / pooler.canonical_box_size + 1e-8)
    level = level.floor().clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    indices = [(level == k).nonzero().flatten() for k in range(len(features))]
    parts = [
        pool(feature, regions[index])
        for pool, feature, index in zip(pooler.level_poolers, features, indices, strict=True)
    ]
    return head(torch.cat(parts)[torch.cat(indices).argsort()])[:-1]
