# As the paper's row was run: GN in the FPN
from ..common.faster_rcnn_R_50_FPN_gw_paper import (  # noqa: F401
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.norm = "GN"
model.roi_heads.box_head.update(conv_dims=[256] * 4, fc_dims=[1024], conv_norm="GW")
