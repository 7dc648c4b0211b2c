"""The exponential moving average of a model's weights, as a hook of Detectron2's trainers."""

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(HookBase):
    """
    Averages the weights, and batch norms' statistics, after every iteration.

    It is saved with the trainer, so resuming goes on with it.

    Attributes:
        model: of the averages; not the one that is trained.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._trained = model
        self._average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        )

    @property
    def model(self) -> nn.Module:
        return self._average.module

    def after_step(self) -> None:
        self._average.update_parameters(self._trained)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        self._average.load_state_dict(state_dict)
