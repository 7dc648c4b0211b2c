"""Small detectors of each architecture, and where their configs are."""

from pathlib import Path

from detectron2 import model_zoo
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import nn

from gw_detectron.layers import GroupWhitening

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart" / "mask_rcnn_R_18_FPN_gw.yaml")
RETINANET = str(CONFIGS / "COCO-Detection" / "retinanet_R_50_FPN_1x_gw.yaml")
CASCADE = str(CONFIGS / "Misc" / "cascade_mask_rcnn_R_50_FPN_1x_gw.yaml")
C4 = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml")
R_18 = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]


@ROI_BOX_HEAD_REGISTRY.register()
class WhitenedFullyConnectedHead(nn.Module):
    """A box head with GW after its fully connected layer, as the paper advises against."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        size = input_shape.channels * input_shape.height * input_shape.width
        self.fc = nn.Linear(size, 1024)
        self.norm = GroupWhitening(1024)
        self.output_shape = type(input_shape)(channels=1024)

    def forward(self, x):
        return self.norm(self.fc(x.flatten(1))).relu_()


FULLY_CONNECTED = ["MODEL.ROI_BOX_HEAD.NAME", "WhitenedFullyConnectedHead"]
