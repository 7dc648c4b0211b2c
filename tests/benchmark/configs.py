"""A model small enough for tests, and its layers by hand."""

from gw_detectron.model_zoo import get_config_file

CONFIG = get_config_file("quickstart/mask_rcnn_R_18_FPN_gw.yaml")

# GW(num_groups=16) at every norm of R-18 and the FPN, in one convolution of each region head; 32 of
# 128 sampled regions have a mask; images of 50 x 64
OPTS = [
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.NUM_CONV", "1",
    "MODEL.ROI_BOX_HEAD.CONV_DIM", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_BOX_HEAD.NORM", "GW(num_groups=8)", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.ROI_MASK_HEAD.NORM", "GW(num_groups=16)",
    "INPUT.MIN_SIZE_TEST", "50", "INPUT.MAX_SIZE_TEST", "64",
]  # fmt: skip

# (shape, groups) -> how many layers, for one image, padded to 64 x 64. The stem halves, and so do
# the max pooling before res2 and every stage after it. A stage has two blocks of two convolutions,
# from res3 on with a shortcut; an FPN level has a lateral and an output convolution.
LAYERS = {
    ((1, 64, 32, 32), 16): 1,
    ((1, 64, 16, 16), 16): 4,
    ((1, 128, 8, 8), 16): 5,
    ((1, 256, 4, 4), 16): 5,
    ((1, 512, 2, 2), 16): 5,
    ((1, 32, 2, 2), 16): 2,
    ((1, 32, 4, 4), 16): 2,
    ((1, 32, 8, 8), 16): 2,
    ((1, 32, 16, 16), 16): 2,
    ((128, 64, 7, 7), 8): 1,
    ((32, 32, 14, 14), 16): 1,
}
