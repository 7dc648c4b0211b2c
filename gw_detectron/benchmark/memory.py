"""Memory that a call takes."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes", "saved_bytes"]


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """
    What autograd keeps for the backward: every storage once and whole, whatever part of it is seen.

    Args:
        forward: run once.
        parameters: not counted, since they are there anyway.
    """
    not_counted = {p.untyped_storage().data_ptr() for p in parameters}
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


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """
    The most memory that is allocated at once during a call, above what was there before.

    On the CPU it is what PyTorch's allocator hands out, so without what MKL or oneDNN take for
    themselves.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines on stderr
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Profiler clears events")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as f:
            events = json.load(f)["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    allocated = highest = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        highest = max(highest, allocated)
    return highest
