"""The config keys of Group Whitening, in every config that Detectron2 makes after the import."""

from detectron2.config import CfgNode
from detectron2.config.defaults import _C


def add_gw_config(cfg: CfgNode) -> None:
    """Adds MODEL.GW with its defaults to cfg; does nothing where it is there already."""
    if "GW" in cfg.MODEL:
        return
    cfg.MODEL.GW = CfgNode()
    # Where the build_gw_*_backbone builders put MODEL.RESNETS.NORM: S1 = after the stem's
    # convolution, B and digits = after the 1st, 2nd, 3rd convolution of every residual block.
    # The paper's best is S1-B2
    cfg.MODEL.GW.POSITIONS = "S1-B2"
    # The norm at the backbone's other positions, the shortcuts' included
    cfg.MODEL.GW.BASE_NORM = "FrozenBN"


add_gw_config(_C)
