"""What the norms do during training, as scalars beside the losses."""

import statistics

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import nn

from .diagnostics import NormMeter, common_groups
from .probe import watch_next_pass

_SCALARS = (
    "condition before",
    "condition after",
    "first_share before",
    "first_share after",
    "variance after",
)


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
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        self._model, self._period = model, period
        self._num_groups = common_groups([model])

    def before_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            meter = NormMeter(self._num_groups)
            watch_next_pass(self._model, meter.look, lambda: _write(meter))


def _write(meter: NormMeter) -> None:
    rows = [row for row in meter.rows() if row["samples"]]
    for scalar in _SCALARS if rows else ():
        values = {row["layer"]: row[scalar] for row in rows}
        values["median"] = statistics.median(values.values())
        for name, value in values.items():
            prefix = f"norm_{scalar.replace(' ', '_')}"
            get_event_storage().put_scalar(f"{prefix}/{name}", value, smoothing_hint=False)
