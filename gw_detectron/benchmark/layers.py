"""The work of a model's GW layers, done by GW and by other norms on inputs of the same shapes."""

import copy
import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UsageError
from ..layers import GroupWhitening, set_backend
from .inputs import LayerInput, find_inputs, require_triton
from .machine import Machine
from .memory import peak_bytes, saved_bytes
from .plot import Panel
from .report import Cost, Results, Value, cells, geometric_mean, table
from .textbook import TextbookGroupWhitening
from .timing import Replay, copy_bandwidth, interleaved
from .workload import build, describe, image_size, load_config, make_images

__all__ = [
    "BACKENDS",
    "LAYERS_CONFIG",
    "LAYERS_OPTS",
    "NORMS",
    "LayerResults",
    "measure_layers",
]

# GW in every part of Mask R-CNN that takes a norm
LAYERS_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw.yaml"
LAYERS_OPTS = (
    "MODEL.ROI_BOX_HEAD.NUM_CONV", "4", "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
    "MODEL.ROI_BOX_HEAD.NORM", "GW",
)  # fmt: skip

# Name -> a norm in the place of a GW layer
NORMS: dict[str, Callable[[GroupWhitening], nn.Module]] = {
    "GW": copy.deepcopy,
    "GW Triton": copy.deepcopy,
    "GW PyTorch": copy.deepcopy,
    "textbook": lambda layer: TextbookGroupWhitening(copy.deepcopy(layer)),
    "compiled": lambda layer: torch.compile(NORMS["textbook"](layer), dynamic=False),
    "GN": lambda layer: get_norm("GN", layer.num_channels),
    "FrozenBN": lambda layer: get_norm("FrozenBN", layer.num_channels),
}

# Those that a backend computes; the others have the one that GW_BACKEND names, or none
BACKENDS = {"GW Triton": "triton", "GW PyTorch": "torch"}

# Phase -> how often GW has at least to read or write something of x's size: the forward reads x for
# the statistics, and again to write y; the backward reads x and dy, and both again to write dx
_BOTH, _GPU_ALONE = "forward + backward", "forward + backward, GPU alone"
_TRAFFIC = {"inference": 3, _BOTH: 8, "backward": 5, _GPU_ALONE: 8}
_SAVED = "saved for the backward"
_PEAKS = ("peak of inference", "peak of forward + backward")


@dataclass
class LayerResults(Results):
    """
    Attributes:
        norms: names; ratios are to the first.
        costs: an input, and what each norm costs on it, but for those that fail.
        itemsize: bytes of an input's value.
        bandwidth: bytes read and written a second by a copy on the GPU; None on a CPU.
    """

    norms: list[str] = field(default_factory=list)
    costs: list[tuple[LayerInput, dict[str, Cost]]] = field(default_factory=list)
    itemsize: int = 4
    bandwidth: float | None = None

    def sections(self) -> dict[str, str]:
        phases = [phase for phase in _TRAFFIC if self._has(phase)]
        times = {f"{phase[0].upper()}{phase[1:]}, ms": self._times(phase) for phase in phases}
        peaks = {f"Memory at the {peak}, MB": self._table(self._rows(peak)) for peak in _PEAKS}
        return times | {f"Memory {_SAVED}, MB": self._saved()} | peaks

    def panels(self) -> list[Panel]:
        return [self._panel(quantity) for quantity in ("inference", _BOTH, _SAVED)]

    def speed(self) -> list[Panel]:
        """The time of a forward and a backward, and its geometric mean."""
        phases = {_GPU_ALONE: _GPU_ALONE, _BOTH: f"{_BOTH}, eager"}
        panels = []
        for phase, title in phases.items():
            if self._has(phase):
                panel = self._panel(phase)
                means = [value and value.number for value in self._means(phase)]
                groups = [*panel.groups, ("geometric mean", means)]
                panels.append(Panel(title, self.norms, groups))
        return panels

    def raw(self) -> list[dict[str, Any]]:
        return [
            {
                "shape": at.shape,
                "options": at.layer.extra_repr(),
                "layers": at.names,
                "costs": {norm: vars(cost) for norm, cost in by_norm.items()},
            }
            for at, by_norm in self.costs
        ]

    def _times(self, phase: str) -> str:
        rows = [*self._rows(phase), ["geometric mean", "", "", *cells(self._means(phase))]]
        measured = [norm for norm in ("GW", *BACKENDS) if self.bandwidth and norm in self.norms]
        for norm in measured:
            shares = [self._share(phase, at, by_norm.get(norm)) for at, by_norm in self.costs]
            rows = [[*row, share] for row, share in zip(rows, [*shares, ""], strict=True)]
        return self._table(rows, *(f"{norm}'s share of copy bandwidth" for norm in measured))

    def _share(self, phase: str, at: LayerInput, cost: Cost | None) -> str:
        value = cost and cost.value(phase)
        if value is None:
            return "-"
        seconds = _TRAFFIC[phase] * math.prod(at.shape) * self.itemsize / self.bandwidth
        return f"{100 * seconds / (value.number / 1e3):.0f}%"

    def _means(self, phase: str) -> list[Value | None]:
        return [geometric_mean(column) for column in self._columns(phase)]

    def _saved(self) -> str:
        """With the sum over all the model's layers."""
        counts = [len(at.names) for at, _ in self.costs]
        sums = []
        for column in self._columns(_SAVED):
            known = None not in column
            pairs = zip(counts, column, strict=True)
            sums.append(Value(sum(n * value.number for n, value in pairs)) if known else None)
        rows = [*self._rows(_SAVED), ["all layers", "", str(sum(counts)), *cells(sums)]]
        return self._table(rows)

    def _has(self, phase: str) -> bool:
        return any(phase in cost.times for _, by_norm in self.costs for cost in by_norm.values())

    def _panel(self, quantity: str) -> Panel:
        groups = [
            (at.label, [value and value.number for value in self._values(by_norm, quantity)])
            for at, by_norm in self.costs
        ]
        return Panel(quantity, self.norms, groups)

    def _rows(self, quantity: str) -> list[list[str]]:
        return [
            [at.label, str(at.layer.num_groups), str(len(at.names))]
            + cells(self._values(by_norm, quantity))
            for at, by_norm in self.costs
        ]

    def _columns(self, quantity: str) -> list[tuple[Value | None, ...]]:
        """By norm."""
        rows = [self._values(by_norm, quantity) for _, by_norm in self.costs]
        return list(zip(*rows, strict=True))

    def _values(self, by_norm: dict[str, Cost], quantity: str) -> list[Value | None]:
        return [by_norm[n].value(quantity) if n in by_norm else None for n in self.norms]

    def _table(self, rows: list[list[str]], *more: str) -> str:
        return table(["input", "g", "layers", *self.norms, *more], rows)


def measure_layers(
    config_file: str,
    opts: Sequence[str],
    machine: Machine,
    norms: Sequence[str],
    size: tuple[int, int] | None,
    num_images: int,
    rounds: int,
    seconds: float = math.inf,
) -> LayerResults:
    """
    Measures the norms on every distinct input that a GW layer of the config's model has in a
    training step. Where it is interrupted, the results are those of the inputs before. What fails
    is noted and left out.

    Args:
        opts: overrides of the config: KEY, VALUE, ...
        norms: names of NORMS, the first to compare the others with.
        size: (height, width) of the images; None for the config's.
        seconds: after which no other input is begun.

    Raises:
        UsageError: on a mistake in the config or the overrides, or if there is no GW layer.
    """
    end = time.monotonic() + seconds
    inputs, size = _inputs(config_file, tuple(opts), machine.device, size, num_images)
    if not inputs:
        raise UsageError(f"{config_file}: there is no GW layer in the model to measure")
    results = LayerResults(
        about=describe([config_file], opts, size, num_images, rounds) | machine.describe(),
        norms=list(norms),
        itemsize=machine.dtype.itemsize,
    )
    if machine.on_gpu:
        results.bandwidth = copy_bandwidth(machine.device)
        results.about["copy bandwidth"] = f"{results.bandwidth / 1e9:.0f} GB/s"
    with tqdm(total=len(inputs) * rounds, unit="round") as progress:
        try:
            for at in inputs:
                if time.monotonic() > end:
                    results.notes.append(_incomplete("The time was up", results, inputs))
                    break
                progress.set_description(at.label)
                try:
                    costs = _costs(at, results, machine, rounds, progress)
                except Exception as error:
                    results.fail("all norms", error, at.label)
                else:
                    results.costs.append((at, costs))
        except KeyboardInterrupt:
            results.stopped = True
            results.notes.append(_incomplete("Stopped", results, inputs))
        finally:
            set_backend(None)
    _leave_out_what_always_fails(results)
    return results


@functools.cache
def _inputs(
    config_file: str,
    opts: tuple[str, ...],
    device: torch.device,
    size: tuple[int, int] | None,
    num_images: int,
) -> tuple[list[LayerInput], tuple[int, int]]:
    """The inputs, and the images' size."""
    cfg = load_config(config_file, opts, device)
    size = size or image_size(cfg)
    images = make_images(size, num_images)
    return find_inputs(build(cfg, images), images), size


def _incomplete(why: str, results: LayerResults, inputs: Sequence[LayerInput]) -> str:
    return f"{why} after {len(results.costs)} of {len(inputs)} inputs."


def _leave_out_what_always_fails(results: LayerResults) -> None:
    measured = {norm for _, by_norm in results.costs for norm in by_norm}
    results.norms = [norm for norm in results.norms if norm in measured]
    for failure in results.failures.values():
        if len(failure.places) == len(results.costs):
            failure.places.clear()


def _costs(
    at: LayerInput, results: LayerResults, machine: Machine, rounds: int, progress: tqdm
) -> dict[str, Cost]:
    """By norm."""
    works = _works(at, results, machine)
    memory = {norm: work.memory(machine.device) for norm, work in works.items()}
    replays = _replays(at, works, results) if machine.on_gpu else {}
    subjects = works | {f"{norm}, replayed": replay for norm, replay in replays.items()}
    for times in interleaved(subjects, rounds, machine.device):  # noqa: B007
        progress.update()
    for norm in replays:
        of_replay = times[f"{norm}, replayed"][Replay.phase]
        times[norm][_GPU_ALONE] = [seconds / Replay.steps for seconds in of_replay]
    return {norm: _cost(times[norm], memory[norm]) for norm in works}


def _works(at: LayerInput, results: LayerResults, machine: Machine) -> dict[str, "_Work"]:
    """By norm, without those that fail."""
    x = torch.randn(at.shape, device=machine.device, dtype=machine.dtype)
    if x.dim() == 4:
        x = x.to(memory_format=machine.memory_format)
    torch.compiler.reset()  # or it would give up after some shapes
    works = {}
    for norm in results.norms:
        try:
            layer = NORMS[norm](at.layer).to(machine.device, machine.dtype)
            work = _Work(layer, x, BACKENDS.get(norm))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of the compiler about itself
                work(lambda phase: None)
            works[norm] = work
        except Exception as error:
            results.fail(norm, error, at.label)
    return works


def _replays(at: LayerInput, works: dict[str, "_Work"], results: LayerResults) -> dict[str, Replay]:
    """By norm, without those that a CUDA graph can't hold."""
    replays = {}
    for norm, work in works.items():
        try:
            set_backend(work.backend)
            replays[norm] = Replay(work.train)
        except Exception as error:
            results.fail(f"the time of {norm} on the GPU alone", error, at.label)
    return replays


class _Work:
    """
    A Subject: inference, forward and backward of a layer.

    Args:
        layer: all of whose parameters are trained.
        x: its input, which in training needs a gradient too.
        backend: what computes GW, see :func:`set_backend`.
    """

    def __init__(self, layer: nn.Module, x: Tensor, backend: str | None = None) -> None:
        if backend == "triton":
            require_triton(x, layer.num_groups)
        self.layer, self.backend = layer.requires_grad_(), backend
        self.x, self.dy = x, torch.randn_like(x)
        self.trained_x = x.detach().requires_grad_()
        self.sources = [self.trained_x, *layer.parameters()]

    def __call__(self, lap: Callable[[str], None]) -> None:
        set_backend(self.backend)
        lap("")
        self.infer()
        lap("inference")
        y = self.layer(self.trained_x)
        lap("forward")
        torch.autograd.grad(y, self.sources, self.dy)
        lap("backward")

    def infer(self) -> None:
        with torch.no_grad():
            self.layer(self.x)

    def train(self) -> None:
        torch.autograd.grad(self.layer(self.trained_x), self.sources, self.dy)

    def memory(self, device: torch.device) -> dict[str, int]:
        set_backend(self.backend)
        parameters = [*self.layer.parameters(), *self.layer.buffers()]
        peaks = (peak_bytes(call, device) for call in (self.infer, self.train))
        saved = saved_bytes(lambda: self.layer(self.trained_x), parameters)
        return {_SAVED: saved} | dict(zip(_PEAKS, peaks, strict=True))


def _cost(times: dict[str, list[float]], memory: dict[str, int]) -> Cost:
    pairs = zip(times["forward"], times["backward"], strict=True)
    return Cost(times | {"forward + backward": [sum(pair) for pair in pairs]}, memory)
