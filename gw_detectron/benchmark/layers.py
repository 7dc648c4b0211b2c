"""The work of a model's GW layers, done by GW and by other norms on inputs of the same shapes."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UsageError
from ..layers import GroupWhitening
from .inputs import LayerInput, find_inputs
from .machine import Machine
from .memory import peak_bytes, saved_bytes
from .plot import Panel
from .report import Cost, Results, Value, cells, geometric_mean, table
from .textbook import TextbookGroupWhitening
from .timing import copy_bandwidth, interleaved
from .workload import build, describe, image_size, load_config, make_images

__all__ = ["NORMS", "LayerResults", "measure_layers"]

# Name -> a norm in the place of a GW layer
NORMS: dict[str, Callable[[GroupWhitening], nn.Module]] = {
    "GW": copy.deepcopy,
    "textbook": lambda layer: TextbookGroupWhitening(copy.deepcopy(layer)),
    "compiled": lambda layer: torch.compile(NORMS["textbook"](layer), dynamic=False),
    "GN": lambda layer: get_norm("GN", layer.num_channels),
    "FrozenBN": lambda layer: get_norm("FrozenBN", layer.num_channels),
}

# Phase -> how often GW has at least to read or write something of x's size: the forward reads x for
# the statistics, and again to write y; the backward reads x and dy, and both again to write dx
_TRAFFIC = {"inference": 3, "forward + backward": 8, "backward": 5}
_SAVED = "saved for the backward"
_PEAKS = ("peak of inference", "peak of forward + backward")


@dataclass
class LayerResults(Results):
    """
    Attributes:
        norms: names; ratios are to the first.
        costs: an input, and what each norm costs on it.
        itemsize: bytes of an input's value.
        bandwidth: bytes read and written a second by a copy on the GPU; None on a CPU.
    """

    norms: list[str] = field(default_factory=list)
    costs: list[tuple[LayerInput, dict[str, Cost]]] = field(default_factory=list)
    itemsize: int = 4
    bandwidth: float | None = None

    def sections(self) -> dict[str, str]:
        times = {f"{phase.capitalize()}, ms": self._times(phase) for phase in _TRAFFIC}
        peaks = {f"Memory at the {peak}, MB": self._table(self._rows(peak)) for peak in _PEAKS}
        return times | {f"Memory {_SAVED}, MB": self._saved()} | peaks

    def panels(self) -> list[Panel]:
        panels = []
        for quantity in ("inference", "forward + backward", _SAVED):
            groups = [
                (at.label, [value.number for value in self._values(by_norm, quantity)])
                for at, by_norm in self.costs
            ]
            panels.append(Panel(quantity, self.norms, groups))
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
        columns = zip(*(self._values(by_norm, phase) for _, by_norm in self.costs), strict=True)
        mean = ["geometric mean", "", "", *cells([geometric_mean(column) for column in columns])]
        rows = [*self._rows(phase), mean]
        if self.bandwidth is None or "GW" not in self.norms:
            return self._table(rows)
        shares = [
            _TRAFFIC[phase] * math.prod(at.shape) * self.itemsize / self.bandwidth
            / (by_norm["GW"].value(phase).number / 1e3)
            for at, by_norm in self.costs
        ]  # fmt: skip
        shares = [f"{100 * share:.0f}%" for share in shares] + [""]
        rows = [[*row, share] for row, share in zip(rows, shares, strict=True)]
        return self._table(rows, "GW's share of copy bandwidth")

    def _saved(self) -> str:
        """With the sum over all the model's layers."""
        sums = [
            Value(
                sum(len(at.names) * by_norm[n].value(_SAVED).number for at, by_norm in self.costs)
            )
            for n in self.norms
        ]
        layers = sum(len(at.names) for at, _ in self.costs)
        return self._table([*self._rows(_SAVED), ["all layers", "", str(layers), *cells(sums)]])

    def _rows(self, quantity: str) -> list[list[str]]:
        return [
            [at.label, str(at.layer.num_groups), str(len(at.names))]
            + cells(self._values(by_norm, quantity))
            for at, by_norm in self.costs
        ]

    def _values(self, by_norm: dict[str, Cost], quantity: str) -> list[Value]:
        return [by_norm[norm].value(quantity) for norm in self.norms]

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
) -> LayerResults:
    """
    Measures the norms on every distinct input that a GW layer of the config's model has in a
    training step. Where it is interrupted, the results are those of the inputs before.

    Args:
        opts: overrides of the config: KEY, VALUE, ...
        norms: names of NORMS, the first to compare the others with.
        size: (height, width) of the images; None for the config's.

    Raises:
        UsageError: on a mistake in the config or the overrides, or if there is no GW layer.
    """
    cfg = load_config(config_file, opts, machine.device)
    size = size or image_size(cfg)
    images = make_images(size, num_images)
    inputs = find_inputs(build(cfg, images), images)
    if not inputs:
        raise UsageError(f"{config_file}: there is no GW layer in the model to measure")
    results = LayerResults(
        about=describe([config_file], opts, size, num_images, rounds) | machine.describe(),
        norms=list(norms),
        itemsize=machine.dtype.itemsize,
    )
    if machine.device.type == "cuda":
        results.bandwidth = copy_bandwidth(machine.device)
        results.about["copy bandwidth"] = f"{results.bandwidth / 1e9:.0f} GB/s"
    with tqdm(total=len(inputs) * rounds, unit="round") as progress:
        try:
            for at in inputs:
                progress.set_description(at.label)
                works = _works(at, results, machine)
                memory = {norm: work.memory(machine.device) for norm, work in works.items()}
                for times in interleaved(works, rounds, machine.device):  # noqa: B007
                    progress.update()
                by_norm = {norm: _cost(times[norm], memory[norm]) for norm in works}
                results.costs.append((at, by_norm))
        except KeyboardInterrupt:
            results.stopped = True
            results.notes.append(f"Stopped after {len(results.costs)} of {len(inputs)} inputs.")
    return results


def _works(at: LayerInput, results: LayerResults, machine: Machine) -> dict[str, "_Work"]:
    """By norm. Where torch.compile fails, "compiled" goes out of the results."""
    x = torch.randn(at.shape, device=machine.device, dtype=machine.dtype)
    if x.dim() == 4:
        x = x.to(memory_format=machine.memory_format)
    torch.compiler.reset()  # or it would give up after some shapes
    works = {}
    for norm in list(results.norms):
        layer = NORMS[norm](at.layer).to(machine.device, machine.dtype)
        works[norm] = _Work(layer, x)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of the compiler about itself
                works[norm](lambda phase: None)
        except Exception as error:
            if norm != "compiled":
                raise
            reason = str(error).strip().partition("\n")[0]
            results.notes.append(f"Without torch.compile, which fails here: {reason}")
            results.norms.remove(norm)
            del works[norm]
    return works


class _Work:
    """
    A Subject: inference, forward and backward of a layer.

    Args:
        layer: all of whose parameters are trained.
        x: its input, which in training needs a gradient too.
    """

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        self.layer = layer.requires_grad_()
        self.x, self.dy = x, torch.randn_like(x)
        self.trained_x = x.detach().requires_grad_()
        self.sources = [self.trained_x, *layer.parameters()]

    def __call__(self, lap: Callable[[str], None]) -> None:
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
        parameters = [*self.layer.parameters(), *self.layer.buffers()]
        peaks = (peak_bytes(call, device) for call in (self.infer, self.train))
        saved = saved_bytes(lambda: self.layer(self.trained_x), parameters)
        return {_SAVED: saved} | dict(zip(_PEAKS, peaks, strict=True))


def _cost(times: dict[str, list[float]], memory: dict[str, int]) -> Cost:
    pairs = zip(times["forward"], times["backward"], strict=True)
    return Cost(times | {"forward + backward": [sum(pair) for pair in pairs]}, memory)
