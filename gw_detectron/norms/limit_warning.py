"""A warning at the start of training where a norm leaves the features no freedom."""

import logging

from torch import nn

from .advice import over_limit
from .layers import SizeRecorder

__all__ = ["warn_over_limit"]

logger = logging.getLogger("detectron2.gw")


def warn_over_limit(model: nn.Module) -> None:
    """
    At the model's next forward pass, looks at the sizes that its norms are given and logs one
    warning if GN or GW layers are over their limit. After that nothing of it is left in the model.
    """
    model = getattr(model, "module", model)  # what DistributedDataParallel wraps
    recorder = SizeRecorder(model)

    def check(*_) -> None:
        recorder.remove()
        handle.remove()
        layers = [layer for layer in recorder.layers() if layer.is_over_limit]
        if layers:
            logger.warning(over_limit(layers))

    handle = model.register_forward_hook(check)
