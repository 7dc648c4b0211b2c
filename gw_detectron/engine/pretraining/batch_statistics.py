"""
Batch norm's running statistics, the same on every GPU.

Detectron2's trainers let each process keep its own. What is evaluated would then be another model
on every GPU, and what is saved the statistics of the first GPU's images alone.
"""

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def share_batch_statistics(model: nn.Module) -> None:
    """
    Sets every process's running means and variances to those over all processes' images.

    The variance over all is the mean of the variances plus the variance of the means.
    """
    if comm.get_world_size() == 1:
        return
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.track_running_stats:
            mean = norm.running_mean.double()
            moments = torch.stack([mean, norm.running_var.double() + mean.square()])
            distributed.all_reduce(moments)
            mean, square = moments / comm.get_world_size()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(square - mean.square())


class ShareBatchStatistics(HookBase):
    """Calls :func:`share_batch_statistics` at every multiple of the periods and at the end."""

    def __init__(self, models: list[nn.Module], periods: tuple[int, ...]):
        """
        Args:
            periods: in iterations; 0 means never.
        """
        self._models = models
        self._periods = [period for period in periods if period]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            for model in self._models:
                share_batch_statistics(model)
