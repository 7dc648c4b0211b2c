"""What the norms do during training, as scalars beside the losses."""

import statistics

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import nn

from ..errors import UsageError
from .diagnostics import NormWatcher, common_groups, find_norms

__all__ = ["NormDiagnosticsHook"]


class NormDiagnosticsHook(HookBase):
    """
    Every `period` iterations, writes what the norms do to the features of that very iteration:
    norm_condition_before/LAYER, norm_condition_after/LAYER, norm_first_share_before/LAYER,
    norm_first_share_after/LAYER, norm_variance_after/LAYER, and of each the median over the norms
    as .../median; see :func:`spectrum_statistics`.

    Training itself is not changed. The scalars are written at the end of the model's forward pass,
    so the hook may stand before or after the trainer's writers.

    Args:
        model: the trainer's. With several processes each of them has to have the hook, since SyncBN
            waits for the others; what is written is of the main process's images.
        period: in iterations, at least 1.

    Raises:
        UsageError: the period is below 1, or the model has no norms.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        if period < 1:
            raise UsageError(f"MODEL.GW.DIAGNOSTICS_PERIOD must be 0 (never) or more, not {period}")
        self._model = getattr(model, "module", model)  # what DistributedDataParallel wraps
        self._period = period
        self._num_groups = common_groups([self._model])
        find_norms(self._model)  # raises now, not at the first step

    def before_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        watcher = NormWatcher(self._model, self._num_groups)
        watcher.attach()

        def finish(*_: object) -> None:
            watcher.detach()  # here already, since another hook's after_step may run the model
            end.remove()
            _write(watcher)

        end = self._model.register_forward_hook(finish)


def _write(watcher: NormWatcher) -> None:
    values: dict[str, dict[str, float]] = {}
    for norm in watcher.statistics():
        if norm.samples:
            for statistic, value in (
                ("condition_before", norm.before["condition"]),
                ("condition_after", norm.after["condition"]),
                ("first_share_before", norm.before["first_share"]),
                ("first_share_after", norm.after["first_share"]),
                ("variance_after", norm.after["variance"]),
            ):
                values.setdefault(statistic, {})[norm.name] = value
    storage = get_event_storage()
    for statistic, of_norm in values.items():
        of_norm["median"] = statistics.median(of_norm.values())
        for name, value in of_norm.items():
            storage.put_scalar(f"norm_{statistic}/{name}", value, smoothing_hint=False)
