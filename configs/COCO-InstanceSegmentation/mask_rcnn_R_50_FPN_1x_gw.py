from ..common.mask_rcnn_R_50_FPN_gw import (  # noqa: F401
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.norm = "GW"
model.roi_heads.mask_head.conv_norm = "GW"
