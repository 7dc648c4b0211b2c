"""Faster R-CNN as in the paper's tables: ../Base-RCNN-FPN-paper.yaml as a LazyConfig."""

from .mask_rcnn_R_50_FPN_gw import dataloader, lr_multiplier, model, optimizer, train

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[key]
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)

model.proposal_generator.anchor_boundary_thresh = 0
model.proposal_generator.smooth_l1_beta = 0.1111
model.roi_heads.box_predictor.smooth_l1_beta = 1.0
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.box_pooler.pooler_type = "ROIAlign"

optimizer.params.update(base_lr="${..lr}", bias_lr_factor=2.0, weight_decay_bias=0.0)
optimizer.params.weight_decay_norm = optimizer.weight_decay
lr_multiplier.update(warmup_factor=0.3333, warmup_length=500 / train.max_iter)
