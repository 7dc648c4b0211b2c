"""The tensors of a PyTorch file, read without ever running code that the file brings along."""

import argparse
import os
import re
import warnings
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

# Where training scripts keep the weights inside a checkpoint; the authors' keeps them in "model".
_CONTAINERS = ("state_dict", "model")
# What DataParallel, DistributedDataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """
    Reads a state dict saved by torch.save, in its zip or its older format.

    Checkpoints of training scripts often hold their arguments, an argparse.Namespace: a bag of
    values that brings no code, read like any other value. Whatever else is no tensor, number,
    string or container of them stops the reading.

    Args:
        path: a state dict, or a checkpoint with one under "state_dict" or "model".

    Returns:
        dict: name -> tensor on the CPU, without the prefix of DataParallel and its like.

    Raises:
        UsageError: the file can't be read, needs code to be run, or holds no state dict.
    """
    content = load_values(path)
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path} holds a {type(content).__name__}, not a state dict")
    wrong = [name for name, value in content.items() if not _is_named_tensor(name, value)]
    if wrong:
        raise UsageError(
            f"{path} holds no state dict, a dict of named tensors, neither at its top nor under "
            f"{' or '.join(_CONTAINERS)}; no tensors are: {', '.join(map(str, wrong))}"
        )
    return _strip_wrappers(content)


def load_values(path: str | os.PathLike) -> Any:
    """
    torch.load of a file that holds tensors, numbers, strings, an argparse.Namespace and containers
    of them, on the CPU.

    Raises:
        UsageError: the file can't be read, or needs code to be run.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns before it raises
            try:
                with torch.serialization.safe_globals([argparse.Namespace]):
                    return torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # any kind, on a file that isn't what it should be
                raise UsageError(f"{path} {_explain(error)}") from error
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


def _explain(error: Exception) -> str:
    message = str(error)
    code = re.search(r"GLOBAL '?([\w.]+)", message)
    if code:
        return (
            f"can't be read without running code ({code[1]}), so it was not read; "
            "where it can be trusted, save the model's state_dict() alone and use that"
        )
    if "TorchScript" in message:
        return "is a TorchScript program, which brings code; save the model's state_dict() instead"
    return "is not a file of torch.save, or it is cut short or damaged"


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _strip_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS * 2:  # one may lie inside the other
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
