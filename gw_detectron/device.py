"""Where a model runs: on the GPUs, or on the CPU where there is none."""

import torch
from detectron2.config import CfgNode

from .errors import UsageError


def choose_device(cfg: CfgNode, num_processes: int = 1) -> bool:
    """
    Makes MODEL.DEVICE the CPU where there is no GPU, which several processes have to be asked for.

    Args:
        cfg: not frozen.
        num_processes: that run the model together, on all machines.

    Returns:
        bool: whether it has changed MODEL.DEVICE.

    Raises:
        UsageError: that many processes can't run on MODEL.DEVICE.
    """
    wants_gpu, has_gpu = cfg.MODEL.DEVICE.startswith("cuda"), torch.cuda.is_available()
    if num_processes > 1 and wants_gpu and not has_gpu:
        raise UsageError(
            f"{num_processes} processes need a GPU each, and this machine has none; add "
            "MODEL.DEVICE cpu to run them on the CPU"
        )
    if num_processes > 1 and has_gpu and not wants_gpu:
        raise UsageError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: {num_processes} processes would share the GPUs of "
            "this machine; hide them with CUDA_VISIBLE_DEVICES= in the environment"
        )
    if not wants_gpu or has_gpu:
        return False
    cfg.MODEL.DEVICE = "cpu"
    return True
