"""
A detector and random images for it, so that models of any norm and any weights do equal work.

With random weights the number of regions would be chance: the proposals are so prescribed that
training samples its full number of regions and of masks, and inference finds as many objects as it
may return. The region proposal network does its own work all the same.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, PolygonMasks, pairwise_iou
from torch import Tensor, nn

from .. import config
from ..errors import building

__all__ = ["build", "describe", "image_size", "load_config", "make_images"]

_OBJECTS = 8  # an image; COCO has 7.3
_ASPECT_RATIO = 5 / 3  # 800 x 1333


def load_config(config_file: str, opts: Sequence[str], device: torch.device) -> CfgNode:
    """
    The config with random weights on the device, and a learning rate of 0: steps cost the same and
    the weights stay.

    Raises:
        UsageError: as `config.load_config`.
    """
    cfg = config.load_config(config_file, opts)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = device.type
    cfg.SOLVER.BASE_LR = 0.0
    return cfg


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) of a landscape of the config's test size, e.g. 800 x 1333."""
    height = cfg.INPUT.MIN_SIZE_TEST
    return height, min(cfg.INPUT.MAX_SIZE_TEST, round(_ASPECT_RATIO * height))


def describe(
    config_files: Sequence[str],
    opts: Sequence[str],
    size: tuple[int, int],
    num_images: int,
    rounds: int,
) -> dict[str, str]:
    """What a reader of the figures has to know of the work; heading -> text."""
    files = [min(file, os.path.relpath(file), key=len) for file in config_files]
    return {
        "config": " ".join([*files, *opts]),
        "images": f"{num_images} of {size[0]}x{size[1]}",
        "rounds": str(rounds),
    }


def make_images(size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    """Noise with random boxes and diamonds as masks, as Detectron2's data loader gives images."""
    height, width = size
    torch.manual_seed(0)
    images = []
    for _ in range(count):
        boxes = _random_boxes(size, _OBJECTS)
        instances = Instances(size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(_OBJECTS, dtype=torch.int64)
        x0, y0, x1, y1 = boxes.unbind(1)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        diamonds = torch.stack([x, y0, x1, y, x, y1, x0, y], dim=1).double().numpy()
        instances.gt_masks = PolygonMasks([[diamond] for diamond in diamonds])
        pixels = torch.randint(256, (3, height, width), dtype=torch.uint8)
        images.append({"image": pixels, "instances": instances})
    return images


def build(cfg: CfgNode, images: Sequence[dict[str, Any]]) -> nn.Module:
    """
    The config's model, doing the same work on these images whatever its weights.

    Raises:
        UsageError: the config makes no model.
    """
    torch.manual_seed(0)
    with building("the model"):
        model = build_model(cfg)
    if hasattr(model, "roi_heads"):
        _prescribe_proposals(model, images)
        for module in model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                module.register_forward_hook(_score_one_class_each)
    return model


def _prescribe_proposals(model: nn.Module, images: Sequence[dict[str, Any]]) -> None:
    heads, device = model.roi_heads, model.device
    positives = int(heads.batch_size_per_image * heads.positive_fraction)
    generator = model.proposal_generator
    proposals: dict[bool, list[Instances]] = {True: [], False: []}  # for training, for inference
    for image in images:
        size, objects = image["instances"].image_size, image["instances"].gt_boxes
        around = objects.tensor.repeat(-(-positives // len(objects)), 1)
        # a tenth of its sides away, a box overlaps by two thirds
        sides = around[:, 2:] - around[:, :2]
        around = around + (0.1 * sides * (2 * torch.rand(sides.shape) - 1)).repeat(1, 2)
        elsewhere = _random_boxes(size, 4 * heads.batch_size_per_image)
        elsewhere = elsewhere[pairwise_iou(Boxes(elsewhere), objects).amax(1) < 0.5]
        for_inference = _random_boxes(size, int(generator.post_nms_topk[False]))
        proposals[True].append(_as_proposals(torch.cat([around, elsewhere]), size, device))
        proposals[False].append(_as_proposals(for_inference, size, device))
    generator.register_forward_hook(
        lambda generator, _, output: (proposals[generator.training], output[1])
    )


def _as_proposals(boxes: Tensor, size: tuple[int, int], device: torch.device) -> Instances:
    instances = Instances(size)
    instances.proposal_boxes = Boxes(boxes)
    instances.objectness_logits = torch.zeros(len(boxes))
    return instances.to(device)


def _score_one_class_each(
    predictor: FastRCNNOutputLayers, _, output: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """In inference, sure of one class for each region, which stays where it is."""
    if predictor.training:
        return None
    scores, deltas = (torch.zeros_like(part) for part in output)
    regions = torch.arange(len(scores), device=scores.device)
    scores[regions, regions % (scores.shape[1] - 1)] = 10.0
    return scores, deltas


def _random_boxes(size: tuple[int, int], count: int) -> Tensor:
    """(count, 4) XYXY, with sides of 1/16 to 1/2 of the image's."""
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = extent * (1 / 16 + 7 / 16 * torch.rand(count, 2))
    corner = (extent - sides) * torch.rand(count, 2)
    return torch.cat([corner, corner + sides], dim=1)
