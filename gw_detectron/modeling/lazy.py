"""The GW backbone for LazyConfigs, where no cfg says which norm goes where."""

from detectron2.modeling import ResNet

from .backbone import place_norms


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
