from ..common.faster_rcnn_R_50_FPN_gw_paper import (  # noqa: F401
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)
