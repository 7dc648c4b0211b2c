"""
Detectron2's ResNets with whitening at chosen positions, and another norm everywhere else.

Group Whitening, CVPR 2021, section 5.1: GW after the stem's convolution and the second one of every
residual block (S1-B2) did best; the other positions keep batch norm (frozen, in a detector). The
builders here build Detectron2's own backbones with MODEL.GW.BASE_NORM and then put
MODEL.RESNETS.NORM at MODEL.GW.POSITIONS.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    ResNet,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from torch import nn

from ..errors import UsageError
from .norm import get_norm
from .weight_standardization import replace_norm

_BLOCK_POSITIONS = ("B1", "B2", "B3", "B12", "B13", "B23", "B123")
POSITIONS = ("S1", *_BLOCK_POSITIONS, *(f"S1-{block}" for block in _BLOCK_POSITIONS))


def build_gw_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's build_resnet_backbone with MODEL.RESNETS.NORM at MODEL.GW.POSITIONS only."""
    resnet = build_resnet_backbone(_with_base_norm(cfg), input_shape)
    _place_norms(cfg, resnet)
    return resnet


def build_gw_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's build_resnet_fpn_backbone over :func:`build_gw_resnet_backbone`'s ResNet."""
    fpn = build_resnet_fpn_backbone(_with_base_norm(cfg), input_shape)
    _place_norms(cfg, fpn.bottom_up)
    return fpn


def build_gw_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's build_retinanet_resnet_fpn_backbone, likewise."""
    fpn = build_retinanet_resnet_fpn_backbone(_with_base_norm(cfg), input_shape)
    _place_norms(cfg, fpn.bottom_up)
    return fpn


for build in (
    build_gw_resnet_backbone,
    build_gw_resnet_fpn_backbone,
    build_gw_retinanet_resnet_fpn_backbone,
):
    if build.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(build)


def build_gw_resnet(
    *, norm: str = "GW", positions: str = "S1-B2", freeze_at: int = 0, **kwargs
) -> ResNet:
    """
    A ResNet with norm at positions; the `_target_` of a LazyConfig's ResNet.

    Args:
        norm, positions: as in :func:`place_norms`.
        freeze_at, kwargs: ResNet's own arguments. At all other positions the norms of its stem and
            stages stay.
    """
    resnet = ResNet(**kwargs)
    place_norms(resnet, norm, positions)
    return resnet.freeze(freeze_at)


def place_norms(resnet: ResNet, norm: str, positions: str = "S1-B2") -> None:
    """
    Replaces, in place, the norms of a built ResNet at the given positions.

    In a bottleneck block, B and a digit mean the norm after that convolution (1x1, 3x3, 1x1). A
    basic block (ResNet-18/34) has two 3x3 convolutions: one digit, whichever, means the first, as
    the authors have it; several digits mean both. The shortcut's norm is never replaced.

    Args:
        norm: what :func:`get_norm` takes.
        positions: one of :data:`POSITIONS`.

    Raises:
        UsageError: on positions or a norm that isn't one.
    """
    stem, digits = parse_positions(positions)
    if stem:
        _replace_norm(resnet.stem.conv1, norm)
    for stage in resnet.stages:
        for block in stage:
            if hasattr(block, "conv3"):
                convs = [getattr(block, f"conv{digit}") for digit in digits]
            else:
                convs = [block.conv1, block.conv2][: len(digits)]
            for conv in convs:
                _replace_norm(conv, norm)


def parse_positions(positions: str) -> tuple[bool, tuple[int, ...]]:
    """
    Reads MODEL.GW.POSITIONS: (whether the stem is in it, the numbers of the blocks' convolutions).

    Raises:
        UsageError: if it is none of :data:`POSITIONS`.
    """
    if positions not in POSITIONS:
        raise UsageError(
            f'MODEL.GW.POSITIONS "{positions}" is not a place for norms; it is one of '
            + ", ".join(POSITIONS)
        )
    return positions.startswith("S1"), tuple(map(int, positions.partition("B")[2]))


def _replace_norm(conv: nn.Module, norm: str) -> None:
    reference = conv.weight
    replace_norm(conv, get_norm(norm, conv.out_channels).to(reference.device, reference.dtype))


def _with_base_norm(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.GW.BASE_NORM
    return cfg


def _place_norms(cfg: CfgNode, resnet: ResNet) -> None:
    place_norms(resnet, cfg.MODEL.RESNETS.NORM, cfg.MODEL.GW.POSITIONS)
    resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)  # again, for the new norms
