"""What a checkpoint holds beside its weights, and which rows of the weights belong to a class."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from ..version import __version__

KEY = "gw_detectron"  # of the facts in a checkpoint, beside "model"
_SHOWN = 4  # names of a longer list of classes


def facts(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint says of cfg's model, in values that torch.load(weights_only=True) takes."""
    return {
        "classes": list(cfg.MODEL.GW.CLASSES),
        "norm": cfg.MODEL.RESNETS.NORM,
        "base_norm": cfg.MODEL.GW.BASE_NORM if "build_gw_" in cfg.MODEL.BACKBONE.NAME else None,
        "input_format": cfg.INPUT.FORMAT,
        "version": __version__,
    }


def class_rows(model: nn.Module, order: Sequence[int]) -> dict[str, Tensor]:
    """
    The indices that bring the classes of a model's weights into another order.

    Args:
        order: of the model's K classes: the number that the class at each place had before.

    Returns:
        name in the state dict -> indices into the first dimension, for every tensor with rows for
        single classes in Detectron2's heads of Faster, Mask and Cascade R-CNN, C4 and RetinaNet.
    """
    found = {}
    for prefix, module in model.named_modules():
        layers = {}  # that have rows of classes -> rows of each class, one after another
        if isinstance(module, FastRCNNOutputLayers):
            box = len(module.box2box_transform.weights)
            layers = {"cls_score": 1, "bbox_pred": box, "fed_loss_cls_weights": 1}
        elif isinstance(module, MaskRCNNConvUpsampleHead):
            layers = {"predictor": 1}
        elif isinstance(module, RetinaNetHead):
            layers = {"cls_score": 1}  # of the first anchor, then of the second, ...
        for name, tensor in module.state_dict().items():
            if each := layers.get(name.partition(".")[0]):
                rows = torch.arange(len(tensor))
                # The background's is left over; all are where one box or mask is for all classes
                of_classes = rows[: len(rows) - len(rows) % (len(order) * each)]
                of_classes[:] = of_classes.view(-1, len(order), each)[:, list(order)].flatten()
                found[f"{prefix}.{name}"] = rows
    return found


def describe(classes: Sequence[str], others: Sequence[str]) -> str:
    """A list of classes in a few words; of a long one first the names that others don't have."""
    shown = list(classes)
    if len(shown) > _SHOWN:
        shown = sorted(shown, key=set(others).__contains__)[:_SHOWN]
    more = ", ..." if len(shown) < len(classes) else ""
    return f"{len(classes)} classes ({', '.join(shown)}{more})"
