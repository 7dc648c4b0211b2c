"""
What is measured: a detector, images for it, and what its GW layers take.

With random weights the number of regions would be chance. Proposals and scores are therefore
prescribed, so that models of any norm and any weights do equal work: training samples its full
number of regions and of masks, inference finds as many objects as it may return. The region
proposal network does its own work all the same.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import choose_device, load_config
from ..errors import UsageError, building
from ..layers import GroupWhitening
from ..norms.probe import watching

_OBJECTS = 8  # an image; COCO has 7.3
_ASPECT_RATIO = 5 / 3  # 800 x 1333


def benchmark_config(config_file: str, opts: Sequence[str] = (), trust: bool = False) -> CfgNode:
    """
    A config without weights and with a learning rate of 0, so that every step does the same.

    Args:
        config_file, opts, trust: see :func:`load_config`.

    Raises:
        UsageError: on a mistake in any of these.
    """
    cfg = load_config(config_file, opts, trust)
    choose_device(cfg)
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.BASE_LR = 0.0
    return cfg


def noise_images(cfg: CfgNode, count: int) -> list[dict[str, Any]]:
    """
    Noise of the config's test size, landscape, with random boxes that their masks fill; as
    Detectron2's data loader gives it.
    """
    height = cfg.INPUT.MIN_SIZE_TEST
    size = height, min(cfg.INPUT.MAX_SIZE_TEST, round(_ASPECT_RATIO * height))
    torch.manual_seed(0)
    images = []
    for _ in range(count):
        boxes = _random_boxes(size, _OBJECTS)
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
        instances = Instances(
            size,
            gt_boxes=Boxes(boxes),
            gt_classes=torch.zeros(_OBJECTS, dtype=torch.int64),
            gt_masks=PolygonMasks([[polygon] for polygon in corners]),
        )
        pixels = torch.randint(256, (3, *size), dtype=torch.uint8)
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
        proposals = [_proposals(model, image["instances"]) for image in images]
        model.proposal_generator.register_forward_hook(lambda _, inputs, out: (proposals, out[1]))
        for module in model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                module.register_forward_hook(_score_one_class_each)
    return model


def _proposals(model: nn.Module, objects: Instances) -> Instances:
    """As many as in inference; of them as many are objects as training takes at most."""
    heads, count = model.roi_heads, int(model.proposal_generator.post_nms_topk[False])
    positives = math.ceil(heads.batch_size_per_image * heads.positive_fraction / len(objects))
    around = objects.gt_boxes.tensor.repeat(positives, 1)
    boxes = torch.cat([around, _random_boxes(objects.image_size, count)])[:count]
    instances = Instances(objects.image_size, proposal_boxes=Boxes(boxes))
    instances.objectness_logits = torch.zeros(count)
    return instances.to(model.device)


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


class LayerInput(NamedTuple):
    """
    What one or several GW layers with equal options take.

    Attributes:
        shape: (N, C, *spatial).
        layer: the first of them.
        count: how many they are.
    """

    shape: tuple[int, ...]
    layer: GroupWhitening
    count: int

    def __str__(self) -> str:
        """E.g. "1x256x50x84, 8 layers", with the options that are not the paper's."""
        layers = "1 layer" if self.count == 1 else f"{self.count} layers"
        usual = GroupWhitening(self.layer.num_channels).extra_repr().split(", ")
        own = [option for option in self.layer.extra_repr().split(", ") if option not in usual]
        return ", ".join(["x".join(map(str, self.shape)), layers, *own])


def find_inputs(cfg: CfgNode, num_images: int = 1) -> list[LayerInput]:
    """
    Every distinct input of the GW layers in a training step of the config's model, in the order of
    their use.

    Raises:
        UsageError: the config makes no model, or there is no GW layer in it.
    """
    images = noise_images(cfg, num_images)
    model = build(cfg, images)
    found: dict[tuple, dict[str, GroupWhitening]] = {}

    def look(name: str, layer: GroupWhitening, x: Tensor, _: Tensor) -> None:
        found.setdefault((tuple(x.shape), layer.extra_repr()), {})[name] = layer

    with watching(model, look, (GroupWhitening,)), torch.no_grad(), EventStorage():
        model.train()(images)
    if not found:
        raise UsageError("there is no GW layer in the config's model to measure")
    return [
        LayerInput(shape, next(iter(layers.values())), len(layers))
        for (shape, _), layers in found.items()
    ]
