"""Command lines of training that take seconds on a CPU."""

import argparse
from pathlib import Path

from train_net import argument_parser

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart" / "faster_rcnn_R_18_FPN_gw.yaml")
MASK_CONFIG = str(ROOT / "configs" / "quickstart" / "mask_rcnn_R_18_FPN_gw.yaml")
TINY = [
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10",
    "SOLVER.CHECKPOINT_PERIOD", "2",
]  # fmt: skip


def command(data, output, *options, config=CONFIG, opts=()) -> list[str]:
    """
    Args:
        data: --dataset arguments, of the training and, if any, the validation images.
        opts: win over :data:`TINY`.
    """
    train, *val = data[1::4]
    return [
        "--config-file", config, *data, *options, *TINY,
        "DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"{tuple(val)}",
        "OUTPUT_DIR", str(output), *map(str, opts),
    ]  # fmt: skip


def arguments(*args, **kwargs) -> argparse.Namespace:
    return argument_parser().parse_args(command(*args, **kwargs))
