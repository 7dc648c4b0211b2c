"""
A Detectron2 detector as a function from tensors to tensors, which can be exported whole.

Detectron2's own inference makes Python objects and decides by values on its way. Here its networks
(backbone, heads, predictors) are called as they are, and what lies between them is done by
operators.py, to the same results.
"""

import copy

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN, RetinaNet, StandardROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from ..errors import UsageError
from .operators import (
    anchors_of,
    by_anchor,
    clipped,
    highest,
    nms,
    nms_by_class,
    nonempty,
    padded,
    pooled,
)


def exportable(model: nn.Module) -> "Detector":
    """
    What detects as `model` does, on a copy of its networks.

    Raises:
        UsageError: model is not a Faster R-CNN, Mask R-CNN or RetinaNet of Detectron2's.
    """
    for part, kinds in _parts(model):
        if type(part) not in kinds:
            raise UsageError(
                "export takes Detectron2's Faster R-CNN, Mask R-CNN and RetinaNet; this model has "
                f"a {type(part).__name__} where they have a {kinds[0].__name__}"
            )
    if model.backbone.padding_constraints.get("square_size"):
        raise UsageError("export takes images of any size; this model's backbone takes squares")
    return RetinaNetDetector(model) if type(model) is RetinaNet else RCNNDetector(model)


def _parts(model: nn.Module):
    """Yields the parts of a model that its inference depends on, and what each may be."""
    yield model, (GeneralizedRCNN, RetinaNet)
    if type(model) is RetinaNet:
        yield model.anchor_generator, (DefaultAnchorGenerator,)
        yield model.box2box_transform, (Box2BoxTransform,)
        return
    rpn, heads = model.proposal_generator, model.roi_heads
    yield rpn, (RPN,)
    yield rpn.anchor_generator, (DefaultAnchorGenerator,)
    yield rpn.box2box_transform, (Box2BoxTransform,)
    yield heads, (StandardROIHeads,)
    yield heads.box_predictor, (FastRCNNOutputLayers,)
    yield heads.box_predictor.box2box_transform, (Box2BoxTransform,)
    yield heads.box_pooler.level_poolers[0], (ROIAlign,)
    if heads.mask_on:
        yield heads.mask_pooler.level_poolers[0], (ROIAlign,)
        yield heads.mask_head, (MaskRCNNConvUpsampleHead,)
    if heads.keypoint_on:
        yield heads.keypoint_head, (type(None),)


class Detector(nn.Module):
    """
    Detects in one image, float32 of shape (C, H, W) as Detectron2's models take it: not yet
    normalised, values 0 to 255, channels in the order of INPUT.FORMAT. Returns

        boxes: (D, 4), x0 y0 x1 y1 in pixels of that image
        scores: (D,), highest first
        classes: (D,), int64
        masks: (D, M, M), probabilities in a grid over the box; of a model with masks only

    Attributes:
        output_names: of those.
        num_classes, score_threshold, most_detections: the model's; -1 detections for any number.
        coarsest_stride: of the feature maps, in pixels of the image.
    """

    output_names: tuple[str, ...] = ("boxes", "scores", "classes")
    num_classes: int
    score_threshold: float
    most_detections: int

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        if isinstance(getattr(self.model.backbone, "top_block", None), LastLevelMaxPool):
            self.model.backbone.top_block = _EverySecond(model.backbone.top_block)
        self.coarsest_stride = max(shape.stride for shape in model.backbone.output_shape().values())
        self.eval().requires_grad_(False)

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        image = (image - self.model.pixel_mean) / self.model.pixel_std
        return self.model.backbone(padded(image, max(self.model.backbone.size_divisibility, 1)))


class _EverySecond(nn.Module):
    """LastLevelMaxPool, whose max_pool2d of size 1 torch.export takes for different in odd maps."""

    def __init__(self, block: LastLevelMaxPool) -> None:
        super().__init__()
        self.num_levels, self.in_feature = block.num_levels, block.in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[..., ::2, ::2]]


class RCNNDetector(Detector):
    """Faster R-CNN and Mask R-CNN."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__(model)
        predictor = model.roi_heads.box_predictor
        self.num_classes = model.roi_heads.num_classes
        self.score_threshold = predictor.test_score_thresh
        self.most_detections = predictor.test_topk_per_image
        if model.roi_heads.mask_on:
            self.output_names += ("masks",)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        features = self._features(image)
        proposals = self._propose(features, height, width)
        boxes, scores, classes = self._detect(features, proposals, height, width)
        if self.model.roi_heads.mask_on:
            return boxes, scores, classes, self._masks(features, boxes, classes)
        return boxes, scores, classes

    def _propose(self, features: dict[str, Tensor], height: int, width: int) -> Tensor:
        rpn = self.model.proposal_generator
        features = [features[name] for name in rpn.in_features]
        levels = zip(
            *rpn.rpn_head(features), anchors_of(rpn.anchor_generator, features), strict=True
        )
        proposals, all_scores = [], []
        for logits, deltas, anchors in levels:
            logits = by_anchor(logits, 1).flatten()
            scores, index = highest(logits, rpn.pre_nms_topk[False], -torch.inf)
            deltas = by_anchor(deltas, 4)[index]
            boxes = clipped(
                rpn.box2box_transform.apply_deltas(deltas, anchors[index]), height, width
            )
            keep = nonempty(boxes, rpn.min_box_size)
            boxes, scores = boxes[keep], scores[keep]
            keep = nms(boxes, scores, rpn.nms_thresh)
            proposals.append(boxes[keep])
            all_scores.append(scores[keep])
        best = torch.cat(all_scores).argsort(descending=True)[: rpn.post_nms_topk[False]]
        return torch.cat(proposals)[best]

    def _detect(
        self, features: dict[str, Tensor], proposals: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        maps = [features[name] for name in heads.box_in_features]
        scores, deltas = predictor(pooled(heads.box_pooler, maps, proposals, heads.box_head))
        scores = scores.sigmoid() if predictor.use_sigmoid_ce else scores.softmax(1)
        scores = scores[:, :-1]  # the last is the background's
        boxes_a_region = predictor.bbox_pred.out_features // 4  # one, or one a class
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals).unflatten(
            1, [boxes_a_region, 4]
        )
        region, classes = (scores > self.score_threshold).nonzero().unbind(1)
        scores = scores[region, classes]
        of_class = classes if boxes_a_region > 1 else torch.zeros_like(classes)
        boxes = clipped(boxes[region, of_class], height, width)
        keep = nms_by_class(boxes, scores, classes, self.num_classes, predictor.test_nms_thresh)
        if self.most_detections >= 0:
            keep = keep[: self.most_detections]
        keep = keep[nonempty(boxes[keep])]
        return boxes[keep], scores[keep], classes[keep]

    def _masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        heads = self.model.roi_heads
        maps = [features[name] for name in heads.mask_in_features]
        logits = pooled(heads.mask_pooler, maps, boxes, heads.mask_head.layers)
        if heads.mask_head.predictor.out_channels > 1:
            of_class = classes[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, of_class)
        return logits.squeeze(1).sigmoid()


class RetinaNetDetector(Detector):
    def __init__(self, model: RetinaNet) -> None:
        super().__init__(model)
        self.num_classes = model.num_classes
        self.score_threshold = model.test_score_thresh
        self.most_detections = model.max_detections_per_image

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        features = self._features(image)
        features = [features[name] for name in model.head_in_features]
        levels = zip(
            *model.head(features), anchors_of(model.anchor_generator, features), strict=True
        )
        candidates = []
        for logits, deltas, anchors in levels:
            scores = by_anchor(logits, self.num_classes).sigmoid().flatten()
            scores, index = highest(scores, model.test_topk_candidates, self.score_threshold)
            place = index // self.num_classes
            deltas = by_anchor(deltas, 4)[place]
            boxes = model.box2box_transform.apply_deltas(deltas, anchors[place])
            candidates.append((boxes, scores, index % self.num_classes))
        boxes, scores, classes = map(torch.cat, zip(*candidates, strict=True))
        keep = nms_by_class(boxes, scores, classes, self.num_classes, model.test_nms_thresh)
        keep = keep[: self.most_detections]
        boxes = clipped(boxes[keep], *image.shape[-2:])
        scores, classes = scores[keep], classes[keep]
        keep = nonempty(boxes)
        return boxes[keep], scores[keep], classes[keep]
