"""
Pieces of work that are compared, and what each takes in time and memory.

They take turns: every round measures each of them once and begins with another one, so that what
slows the machine down for a while slows all of them, and ratios are of medians over the same
rounds. On a CPU with one thread the clock is the process's CPU time, which stands still while other
programs have the core.
"""

import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..layers import GroupWhitening, set_backend
from ..layers.backend import backend_for
from ..norms.probe import watching

# What is measured, e.g. "inference, ms" -> a value for each round, or a single one, of memory in MB
Costs = dict[str, list[float]]

SAVED = "memory saved for the backward, MB"
STEP = "forward + backward"  # of a layer; on a GPU it is also timed without the host
ALONE = f"{STEP} on the GPU alone, ms"


@dataclass
class Work:
    """
    Attributes:
        module: a layer or a whole model.
        forward: of training.
        timed: what is timed, by name.
        backend: what computes GW, see :func:`set_backend`.
    """

    module: nn.Module
    forward: Callable[[], object]
    timed: dict[str, Callable[[], object]]
    backend: str | None = None

    def warm_up(self) -> None:
        """
        Calls everything, for what happens in a first call only.

        Raises:
            RuntimeError: Triton's kernels were asked for, and PyTorch computes GW in their place.
        """
        asked = (GroupWhitening,) if self.backend == "triton" else ()
        with watching(self.module, _require_triton, asked), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's compiler about itself
            for call in self.timed.values():
                call()

    def memory(self, on_gpu: bool) -> Costs:
        """What the forward keeps, and on a GPU the peaks of what is timed."""
        there = [*self.module.parameters(), *self.module.buffers()]
        costs = {SAVED: [saved_bytes(self.forward, there) / 1e6]}
        for name, call in self.timed.items() if on_gpu else ():
            costs[f"peak memory of {name}, MB"] = [_peak_bytes(call) / 1e6]
        return costs

    def measures(self, on_gpu: bool) -> Iterator[tuple[str, Callable[[], float]]]:
        """(quantity, what takes its seconds)"""
        for name, call in self.timed.items():
            yield f"{name}, ms", functools.partial(_seconds, call, on_gpu)
            if on_gpu and name == STEP:
                yield ALONE, functools.partial(_seconds_alone, call)


def layer_work(layer: nn.Module, x: Tensor, backend: str | None = None) -> Work:
    """A layer, all of whose parameters are trained, with its input, which needs a gradient too."""
    layer.requires_grad_()
    x, dy = x.detach().requires_grad_(), torch.randn_like(x)
    sources = [x, *layer.parameters()]

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    def step() -> None:
        torch.autograd.grad(layer(x), sources, dy)

    forward = functools.partial(layer, x)
    return Work(layer, forward, {"inference": infer, STEP: step}, backend)


def model_work(
    model: nn.Module,
    cfg: CfgNode,
    images: list[dict[str, Any]],
    dtype: torch.dtype,
    backend: str | None = None,
) -> Work:
    """Detectron2's training step and inference of a model; half types are for mixed precision."""
    arguments = model, itertools.repeat(images), build_optimizer(cfg, model)
    mixed = dtype is not torch.float32
    trainer = AMPTrainer(*arguments, precision=dtype) if mixed else SimpleTrainer(*arguments)
    autocast = functools.partial(torch.autocast, "cuda", dtype) if mixed else nullcontext

    def step() -> None:
        model.train()
        with EventStorage():
            trainer.run_step()
        trainer.optimizer.zero_grad()  # so that no peak of memory begins with gradients

    def forward() -> object:
        model.train()
        with EventStorage(), autocast():
            return model(images)

    def infer() -> None:
        model.eval()
        with torch.no_grad(), autocast():
            model(images)

    return Work(model, forward, {"training step": step, "inference": infer}, backend)


def in_turns(
    makers: Mapping[str, Callable[[], Work]],
    rounds: int,
    on_gpu: bool,
    fail: Callable[[str, Exception], None],
) -> Iterator[dict[str, Costs]]:
    """
    Yields after each round what each piece of work has cost so far, the same dict every time.

    Args:
        makers: of the pieces, by name.
        fail: takes what failed and its error; it is left out.
    """
    works, costs = {}, {}
    try:
        for name, make in makers.items():
            try:
                work = make()
                set_backend(work.backend)
                work.warm_up()
                works[name], costs[name] = work, work.memory(on_gpu)
            except Exception as error:
                fail(name, error)
        for turn in range(rounds):
            for index in range(len(works)):
                name = list(works)[(turn + index) % len(works)]
                set_backend(works[name].backend)
                for quantity, measure in works[name].measures(on_gpu):
                    try:
                        costs[name].setdefault(quantity, []).append(1e3 * measure())
                    except Exception as error:
                        fail(f"{name}, {quantity}", error)
            yield costs
    finally:
        set_backend(None)


def _seconds(call: Callable[[], object], on_gpu: bool) -> float:
    """Of a call from Python; on a GPU many calls are queued, as in training."""
    from torch.utils.benchmark import Timer  # its import may log lines

    threads = torch.get_num_threads()
    clock = {"timer": time.process_time} if threads == 1 and not on_gpu else {}
    timer = Timer("call()", globals={"call": call}, num_threads=threads, **clock)
    return timer.blocked_autorange(min_run_time=0.002 if on_gpu else 0.01).median


def _seconds_alone(call: Callable[[], object]) -> float:
    """Of a call on the GPU without the host: a CUDA graph of several calls is replayed."""
    from triton.testing import do_bench_cudagraph

    # What waits for the GPU cannot be captured, and to try would leave PyTorch with half a graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return do_bench_cudagraph(call, rep=5, return_mode="median") / 1e3


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy on the GPU that no cache holds."""
    from triton.testing import do_bench

    source = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**28 / (do_bench(lambda: target.copy_(source), return_mode="median") / 1e3)


def saved_bytes(forward: Callable[[], object], there: Iterable[Tensor]) -> int:
    """
    What autograd keeps for the backward: every storage once and whole, whatever part of it is seen.

    Args:
        forward: run once.
        there: tensors that are not counted, since they are there anyway.
    """
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in there}
    storages = {}  # holds them, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            storages[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in storages.values())


def _peak_bytes(call: Callable[[], object]) -> int:
    """The most memory of the GPU that is allocated at once in a call, above what was before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _require_triton(name: str, layer: GroupWhitening, x: Tensor, _: Tensor) -> None:
    if not backend_for(x, layer.num_groups).__name__.endswith("triton_kernels"):
        raise RuntimeError(
            "Triton's kernels do not run here: they need a GPU or TRITON_INTERPRET=1, and an input "
            "that they cover"
        )
