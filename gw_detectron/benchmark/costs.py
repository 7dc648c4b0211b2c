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
from collections import deque
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
from tqdm import tqdm

from ..errors import one_line
from ..layers import GroupWhitening, set_backend
from ..layers.backend import backend_for
from ..norms.probe import watching

SAVED = "memory saved for the backward, MB"
INFERENCE = "inference, ms"
STEP = "forward + backward, ms"  # of a layer; on a GPU it is also timed without the host
ALONE = "forward + backward on the GPU alone, ms"


@dataclass
class Work:
    """
    Attributes:
        module: a layer or a whole model.
        forward: of training, for what it saves.
        timed: what is timed, by its quantity.
        backend: what computes GW, see :func:`set_backend`.
    """

    module: nn.Module
    forward: Callable[[], object]
    timed: dict[str, Callable[[], object]]
    backend: str | None = None


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

    return Work(layer, functools.partial(layer, x), {INFERENCE: infer, STEP: step}, backend)


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

    return Work(model, forward, {"training step, ms": step, INFERENCE: infer}, backend)


def in_turns(
    makers: Mapping[str, Callable[[], Work]], rounds: int, on_gpu: bool, **place: str
) -> Iterator[dict[str, Any]]:
    """
    Yields each value when it is measured, times in ms and memory in MB, as {"name", "quantity",
    "round", "value"} and the place. What fails has a "failure" instead of the value, and no
    quantity where nothing of that name can be measured.

    Args:
        makers: of the pieces of work, by name.
        place: what every row has, and the progress bar shows.
    """
    works: deque[tuple[str, Work]] = deque()
    try:
        for name, make in makers.items():
            try:
                work = make()
                set_backend(work.backend)
                _warm_up(work)
                memory = _memory(work, on_gpu).items()
                rows = [{"quantity": of, "round": 0, "value": value} for of, value in memory]
                works.append((name, work))
            except Exception as error:
                rows = [{"quantity": "", "failure": one_line(error)}]
            yield from ({**place, "name": name, **row} for row in rows)
        for turn in tqdm(range(rounds), desc=", ".join(place.values()), unit="round"):
            for name, work in works:
                set_backend(work.backend)
                for quantity, measure in _times(work, on_gpu):
                    row = {**place, "name": name, "quantity": quantity, "round": turn}
                    try:
                        yield {**row, "value": measure()}
                    except Exception as error:
                        yield {**row, "failure": one_line(error)}
            works.rotate(-1)
    finally:
        set_backend(None)


def _warm_up(work: Work) -> None:
    """Calls everything, for what happens in a first call only."""
    asked = (GroupWhitening,) if work.backend == "triton" else ()
    with watching(work.module, _require_triton, asked), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's compiler about itself
        for call in work.timed.values():
            call()


def _require_triton(name: str, layer: GroupWhitening, x: Tensor, _: Tensor) -> None:
    if not backend_for(x, layer.num_groups).__name__.endswith("triton_kernels"):
        raise RuntimeError(
            "Triton's kernels do not run here: they need a GPU or TRITON_INTERPRET=1, and an input "
            "that they cover"
        )


def _memory(work: Work, on_gpu: bool) -> dict[str, float]:
    """What the forward keeps, and on a GPU the peaks of what is timed."""
    there = [*work.module.parameters(), *work.module.buffers()]
    memory = {SAVED: saved_bytes(work.forward, there) / 1e6}
    for quantity, call in work.timed.items() if on_gpu else ():
        memory[f"peak memory of {quantity.removesuffix(', ms')}, MB"] = _peak_bytes(call) / 1e6
    return memory


def _times(work: Work, on_gpu: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    """(quantity, what measures it)"""
    for quantity, call in work.timed.items():
        yield quantity, functools.partial(_milliseconds, call, on_gpu)
        if on_gpu and quantity == STEP:
            yield ALONE, functools.partial(_milliseconds_alone, call)


def _milliseconds(call: Callable[[], object], on_gpu: bool) -> float:
    """Of a call from Python; on a GPU many calls are queued, as in training."""
    from torch.utils.benchmark import Timer  # its import may log lines

    threads = torch.get_num_threads()
    clock = {"timer": time.process_time} if threads == 1 and not on_gpu else {}
    timer = Timer("call()", globals={"call": call}, num_threads=threads, **clock)
    return 1e3 * timer.blocked_autorange(min_run_time=0.002 if on_gpu else 0.01).median


def _milliseconds_alone(call: Callable[[], object]) -> float:
    """Of a call on the GPU without the host: a CUDA graph of several calls is replayed."""
    from triton.testing import do_bench_cudagraph

    # What waits for the GPU cannot be captured, and to try would leave PyTorch with half a graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return do_bench_cudagraph(call, rep=5, return_mode="median")


def copy_bandwidth() -> float:
    """Bytes that a copy on the GPU, too large for a cache, reads and writes in a millisecond."""
    from triton.testing import do_bench

    source = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**28 / do_bench(lambda: target.copy_(source), return_mode="median")


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
