"""A training step and an inference of whole models that differ in their norms."""

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from ..config import flatten
from ..errors import UsageError
from ..layers import GroupWhitening, set_backend
from ..runs.config_norms import parse_entries
from .inputs import find_inputs, require_triton
from .machine import Machine
from .memory import peak_bytes, saved_bytes
from .plot import Panel
from .report import Cost, Results, cells, table
from .textbook import use_textbook
from .timing import interleaved
from .workload import build, describe, image_size, load_config, make_images

__all__ = ["ModelResults", "measure_models"]

_TIMES = ("training step", "inference")
_SAVED = "saved for the backward"
_PEAKS = ("peak of the training step", "peak of inference")  # on a GPU


@dataclass
class ModelResults(Results):
    """
    Attributes:
        costs: of each model, by name; ratios are to the first.
    """

    costs: dict[str, Cost] = field(default_factory=dict)

    def sections(self) -> dict[str, str]:
        return {
            "Time, ms": self._table(_TIMES),
            "Memory beside the weights, MB": self._table(self._memory()),
        }

    def panels(self) -> list[Panel]:
        return [
            Panel(
                quantity,
                list(self.costs),
                [("", [cost.value(quantity).number for cost in self.costs.values()])],
            )
            for quantity in (*_TIMES, *self._memory())
        ]

    def raw(self) -> dict[str, Any]:
        return {name: vars(cost) for name, cost in self.costs.items()}

    def _memory(self) -> list[str]:
        return list(next(iter(self.costs.values())).memory)

    def _table(self, quantities: Sequence[str]) -> str:
        columns = [cells([cost.value(q) for cost in self.costs.values()]) for q in quantities]
        rows = [list(row) for row in zip(self.costs, *columns, strict=True)]
        return table(["model", *quantities], rows)


def measure_models(
    config_files: Sequence[str],
    opts: Sequence[str],
    machine: Machine,
    norms: Sequence[str],
    with_textbook: bool,
    size: tuple[int, int] | None,
    num_images: int,
    rounds: int,
    backends: Mapping[str, str] | None = None,
    seconds: float = math.inf,
) -> ModelResults:
    """
    Measures Detectron2's own training step and inference of several models on the same images.
    Where it is interrupted, the results are those of the rounds before. A model that fails is noted
    and left out.

    Args:
        config_files: a model each; or one, of which norms make the models.
        opts: overrides of all configs: KEY, VALUE, ...
        norms: entries, see :func:`parse_entries`; none to take the configs as they are.
        with_textbook: beside each model with GW, also the same with the textbook's layer.
        size: (height, width) of the images; None for the first config's.
        backends: what computes GW, by what is added to a model's name: each model with GW is
            measured with each. None for the one that GW_BACKEND names.
        seconds: after which no other round is begun.

    Raises:
        UsageError: on a mistake in any of these.
    """
    end = time.monotonic() + seconds
    if machine.dtype is not torch.float32 and machine.device.type == "cpu":
        raise UsageError(
            f"--dtype {machine.arithmetic}: Detectron2's mixed precision needs a GPU; "
            "the layers can be measured without one"
        )
    configs = _configs(config_files, opts, norms, machine.device)
    size = size or image_size(next(iter(configs.values())))
    images = make_images(size, num_images)
    works = {}
    variants: dict[str, dict[str, Any]] = {
        f", {label}": {"backend": backend} for label, backend in (backends or {}).items()
    } or {"": {}}
    if with_textbook:
        variants[", textbook"] = {"textbook": True}
    for name, cfg in configs.items():
        for suffix, options in variants.items():
            work = _Work(cfg, images, machine, **options)
            if not work.has_gw:
                works[name] = work
                break
            works[name + suffix] = work
    if with_textbook and not any(work.has_gw for work in works.values()):
        raise UsageError("--textbook: there is no GW layer in any of the models")
    results = ModelResults(
        about=describe(config_files, opts, size, num_images, rounds) | machine.describe()
    )
    memory: dict[str, dict[str, int]] = {}
    with tqdm(total=rounds, unit="round") as progress, EventStorage():
        try:
            for name, work in works.items():
                progress.set_description(name)
                try:
                    memory[name] = work.memory()
                except Exception as error:
                    results.fail(name, error)
            works = {name: works[name] for name in memory}
            progress.set_description("all models")
            for times in interleaved(works, rounds, machine.device):
                results.costs = {name: Cost(times[name], memory[name]) for name in works}
                progress.update()
                if time.monotonic() > end and progress.n < rounds:
                    results.notes.append(f"The time was up after {progress.n} of {rounds} rounds.")
                    break
        except KeyboardInterrupt:
            results.stopped = True
            results.notes.append(f"Stopped after {progress.n} of {rounds} rounds.")
        except Exception as error:
            results.fail("the rounds that were left", error)
        finally:
            set_backend(None)
    return results


def _configs(
    files: Sequence[str], opts: Sequence[str], norms: Sequence[str], device: torch.device
) -> dict[str, CfgNode]:
    """By the models' names."""
    if not norms:
        names = [os.path.splitext(os.path.basename(file))[0] for file in files]
        names = names if len(set(names)) == len(names) else files
        return {
            name: load_config(file, opts, device) for name, file in zip(names, files, strict=True)
        }
    if len(files) > 1:
        raise UsageError(
            "--norms makes models of one config: name one --config-file, or no --norms"
        )
    config = flatten(yaml.safe_load(load_config(files[0], opts, device).dump()))
    return {
        entry.name: load_config(files[0], [*opts, *entry.overrides], device)
        for entry in parse_entries(norms, config)
    }


class _Work:
    """
    A Subject: a training step and an inference of a model with Detectron2's optimizer.

    Args:
        textbook: whether the textbook's layer takes the place of GW.
        backend: what computes GW, see :func:`set_backend`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        images: Sequence[dict[str, Any]],
        machine: Machine,
        textbook: bool = False,
        backend: str | None = None,
    ) -> None:
        self.images, self.machine = images, machine
        self.model = build(cfg, images).to(memory_format=machine.memory_format)
        self.has_gw = any(isinstance(module, GroupWhitening) for module in self.model.modules())
        self.backend = backend if self.has_gw else None
        if textbook:
            use_textbook(self.model)
        self.mixed = machine.dtype is not torch.float32
        arguments = self.model, itertools.repeat(images), build_optimizer(cfg, self.model)
        if self.mixed:
            self.trainer = AMPTrainer(*arguments, precision=machine.dtype)
        else:
            self.trainer = SimpleTrainer(*arguments)

    def __call__(self, lap: Callable[[str], None]) -> None:
        set_backend(self.backend)
        lap("")
        self.train()
        lap("training step")
        self.infer()
        lap("inference")

    def train(self) -> None:
        self.model.train()
        self.trainer.run_step()

    def infer(self) -> None:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            self.model(self.images)

    def memory(self) -> dict[str, int]:
        if self.backend == "triton":
            self._require_triton()
        set_backend(self.backend)
        self.train()  # the optimizer makes its state
        self.trainer.optimizer.zero_grad()
        not_counted = [*self.model.parameters(), *self.model.buffers()]
        with self._autocast():
            memory = {_SAVED: saved_bytes(lambda: self.model(self.images), not_counted)}
        if self.machine.on_gpu:
            for peak, call in zip(_PEAKS, (self.train, self.infer), strict=True):
                self.trainer.optimizer.zero_grad()
                memory[peak] = peak_bytes(call, self.machine.device)
        return memory

    def _require_triton(self) -> None:
        for at in find_inputs(self.model, self.images):
            x = torch.empty(at.shape, dtype=self.machine.dtype, device=self.machine.device)
            require_triton(x, at.layer.num_groups)

    def _autocast(self) -> torch.autocast | nullcontext:
        return torch.autocast("cuda", self.machine.dtype) if self.mixed else nullcontext()
