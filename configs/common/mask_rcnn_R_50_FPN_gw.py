"""Mask R-CNN R-50-FPN with GW at the backbone's S1-B2: ../Base-RCNN-FPN.yaml as a LazyConfig."""

from detectron2.model_zoo import get_config

from gw_detectron.modeling.backbone import build_gw_resnet

constants = get_config("common/data/constants.py").constants
dataloader = get_config("common/data/coco.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
model = get_config("common/models/mask_rcnn_fpn.py").model
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train

model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
dataloader.train.mapper.image_format = "RGB"

model.backbone.bottom_up.update(_target_=build_gw_resnet, norm="GW", positions="S1-B2", freeze_at=2)
model.backbone.bottom_up.stages.stride_in_1x1 = False
train.init_checkpoint = "gw://R-50-GW.pth"
