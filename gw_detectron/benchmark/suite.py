"""What docs/performance.md has of a GPU: layers and whole models in several types, part by part."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..model_zoo import get_config_file
from .layers import BACKENDS, LAYERS_CONFIG, LAYERS_OPTS, LayerResults, measure_layers
from .machine import Machine
from .models import measure_models
from .plot import Panel
from .report import Results

__all__ = ["PARTS", "Part", "SuiteResults", "measure_parts"]


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        arithmetic: one of DTYPES.
        norms: of layers, the first to compare the others with; none to measure whole models.
        seconds: after which nothing new is begun in it.
    """

    title: str
    arithmetic: str
    norms: Sequence[str] = ()
    seconds: float = 60


_LABELS = {norm.removeprefix("GW "): backend for norm, backend in BACKENDS.items()}
_NORMS = ("GN", *BACKENDS, "textbook", "FrozenBN")
# By name, what matters most first
PARTS = {
    "layers-bfloat16": Part("Layers, bfloat16", "bfloat16", _NORMS, seconds=80),
    "models-amp": Part("Whole models, mixed precision", "float16"),  # as SOLVER.AMP has it
    "layers-tf32": Part("Layers, TF32", "tf32", _NORMS),
    "models-tf32": Part("Whole models, TF32", "tf32"),
    "layers-float32": Part("Layers, float32", "float32", _NORMS),
    "compiled": Part(
        "Layers with torch.compile, bfloat16",
        "bfloat16",
        ("GN", "GW Triton", "textbook", "compiled"),
    ),
    "models-float32": Part("Whole models, float32", "float32"),
}

_EVERYWHERE = (
    "{0} everywhere: MODEL.BACKBONE.NAME build_resnet_fpn_backbone MODEL.RESNETS.NORM {0} "
    "MODEL.FPN.NORM {0} MODEL.ROI_MASK_HEAD.NORM {0}"
)
_MODELS = (
    "FrozenBN: MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM '' MODEL.ROI_MASK_HEAD.NORM ''",
    _EVERYWHERE.format("GN"),
    "GW at S1-B2: MODEL.FPN.NORM '' MODEL.ROI_MASK_HEAD.NORM ''",
    _EVERYWHERE.format("GW"),
)
_LEAST_SECONDS = 10  # that must be left for a part to be begun


@dataclass
class SuiteResults(Results):
    """
    Attributes:
        parts: those that were measured, by title.
    """

    parts: dict[str, Results] = field(default_factory=dict)

    def sections(self) -> dict[str, str]:
        return {title: part.markdown(level=3).rstrip() for title, part in self.parts.items()}

    def panels(self) -> list[Panel]:
        """The speed of the first layers."""
        layers = [part for part in self.parts.values() if isinstance(part, LayerResults)]
        return layers[0].speed() if layers else []

    def raw(self) -> dict[str, Any]:
        return {title: part.record() for title, part in self.parts.items()}


def measure_parts(
    names: Sequence[str],
    device: str | None,
    size: tuple[int, int] | None,
    rounds: int,
    seconds: float,
    opts: Sequence[str] = (),
) -> Iterator[SuiteResults]:
    """
    Yields the results after each part, the same every time: of Mask R-CNN R-50-FPN, the layers with
    one image and the models with two. What fails is noted; after a KeyboardInterrupt the results
    are yielded once more, with what was measured until then.

    Args:
        names: of PARTS.
        device: "cpu" or "cuda"; None for the GPU where there is one.
        size: (height, width) of the images; None for the config's.
        seconds: for all parts; one that would begin after that is left out.
        opts: overrides of the config: KEY, VALUE, ...

    Raises:
        UsageError: there is no GPU for what asks for one.
    """
    Machine.prepare(device, "float32", channels_last=False)
    begin = time.monotonic()
    backends = ", ".join(f"{name} is GW_BACKEND={value}" for name, value in _LABELS.items())
    results = SuiteResults(about={"backends of GW": backends})
    for name in names:
        part, start = PARTS[name], time.monotonic()
        left = seconds - (start - begin)
        if left < _LEAST_SECONDS:
            results.notes.append(f"Without {part.title}: the time was up")
            yield results
            continue
        try:
            measured = _measure(part, device, size, rounds, opts, min(part.seconds, left))
        except KeyboardInterrupt:
            results.stopped = True
            results.notes.append(f"Stopped before anything of this was measured: {part.title}")
        except Exception as error:
            results.fail(part.title, error)
        else:
            results.stopped = measured.stopped
            _add(results, part, measured)
            measured.about["measured in"] = f"{time.monotonic() - start:.0f} s"
        results.about["measured in"] = f"{time.monotonic() - begin:.0f} s"
        yield results
        if results.stopped:
            return


def _measure(
    part: Part,
    device: str | None,
    size: tuple[int, int] | None,
    rounds: int,
    opts: Sequence[str],
    seconds: float,
) -> Results:
    machine = Machine.prepare(device, part.arithmetic, channels_last=False)
    file = get_config_file(LAYERS_CONFIG)
    if part.norms:
        return measure_layers(
            file, [*LAYERS_OPTS, *opts], machine, part.norms, size, 1, rounds, seconds
        )
    return measure_models([file], opts, machine, _MODELS, False, size, 2, rounds, _LABELS, seconds)


def _add(results: SuiteResults, part: Part, measured: Results) -> None:
    if measured.costs:
        results.parts[part.title] = measured
    else:
        results.notes += [f"{part.title}: {remark}" for remark in measured.remarks()]
