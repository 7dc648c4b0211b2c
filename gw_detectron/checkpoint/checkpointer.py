"""Weights, read without running code that their file brings along, and of the same network."""

import argparse
import contextlib
import os
import pickle
import re
import reprlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from ..errors import UsageError

# What the arrays of Detectron2's model zoo are pickled as
_OF_ARRAYS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
      for name in ("_reconstruct", "scalar")),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}  # fmt: skip

# A convolution of a ResNet by Detectron2's name, with its stage
_CONVOLUTION = re.compile(r"\b(stem|res[2-5])\.(?:\d+\.)?(?:conv\d|shortcut)\.weight$")

# What DataParallel, DistributedDataParallel and torch.compile put before every name
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")


class WeightsCheckpointer(DetectionCheckpointer):
    """
    DetectionCheckpointer that never runs code which a file brings along, and refuses weights of
    which nothing fits the model, or only a part the backbone: Detectron2 would train the rest from
    scratch.

    load raises :class:`UsageError` on all of these, and on a file that cannot be had, that is cut
    short or damaged, or that holds no weights.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:  # URLError among them
            reason = getattr(error, "reason", None) or error.strerror or error
            raise UsageError(f"the weights {path} can't be had: {reason}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        with _errors_in_one_line(filename):
            # Detectron2 reads these two by itself, once they are known to bring no code
            if filename.endswith(".pkl"):
                with open(filename, "rb") as file:
                    _ArraysOnly(file, encoding="latin1").load()
            elif filename.endswith(".pyth"):
                load_values(filename)
            checkpoint = super()._load_file(filename)
        _require_weights(checkpoint["model"], filename)
        self._file, self._first_name = filename, next(iter(checkpoint["model"]))
        return checkpoint

    def _torch_load(self, filename: str) -> Any:
        return load_values(filename)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        unfit = {
            name: f"is {theirs} in the file and {ours} in the model"
            for name, theirs, ours in incompatible.incorrect_shapes
        }
        missing = set(incompatible.missing_keys) - unfit.keys()
        unfit |= dict.fromkeys(missing, "is not in the file")
        parameters = {name for name, _ in self.model.named_parameters()}
        if parameters and parameters <= missing:
            raise UsageError(
                f"{self._file} has nothing of this model: its names are like {self._first_name}, "
                f"the model's like {min(parameters)}"
            )
        stages = {n: f[1] for n in self.model.state_dict() if (f := _CONVOLUTION.search(n))}
        wrong = [f"{name} {unfit[name]}" for name in stages if name in unfit]
        wrong += [
            f"{name} is not in the model"
            for name in incompatible.unexpected_keys
            if (found := _CONVOLUTION.search(name)) and found[1] in stages.values()
        ]
        if wrong:
            raise UsageError(
                f"{self._file} does not fit the backbone: {wrong[0]}, the first of {len(wrong)} "
                "such convolutions; is it of another MODEL.RESNETS.DEPTH?"
            )
        super()._log_incompatible_keys(incompatible)


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """
    Reads a state dict saved by torch.save, in its zip or its older format.

    Args:
        path: a state dict, or a checkpoint with one under "state_dict" or "model".

    Returns:
        dict: name -> tensor on the CPU, without the prefix of DataParallel and its like.

    Raises:
        UsageError: the file can't be read, needs code to be run, or holds no state dict.
    """
    content = load_values(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    _require_weights(content, path)
    return {_WRAPPERS.sub("", name): tensor for name, tensor in content.items()}


def load_values(path: str | os.PathLike) -> Any:
    """
    torch.load of a file that holds tensors, numbers, strings, and containers of them, on the CPU.

    Checkpoints of training scripts often hold their arguments, an argparse.Namespace: a bag of
    values that brings no code, read like any other value. Anything else stops the reading.

    Raises:
        UsageError: the file can't be read, or needs code to be run.
    """
    with (
        _errors_in_one_line(path),
        open(path, "rb") as file,
        warnings.catch_warnings(),
        torch.serialization.safe_globals([argparse.Namespace]),
    ):
        warnings.simplefilter("ignore")  # torch.load warns before it raises
        return torch.load(file, map_location="cpu", weights_only=True)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OF_ARRAYS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # as torch.load words it
        return super().find_class(module, name)


@contextlib.contextmanager
def _errors_in_one_line(path: str | os.PathLike) -> Iterator[None]:
    """Around what reads a file, whose bytes can make it raise anything."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:
        code = re.search(r"GLOBAL '?([\w.]+)", str(error))
        reason = "is not a file of weights, or it is cut short or damaged"
        if code:
            reason = (
                f"can't be read without running code ({code[1]}), so it was not read; where it "
                "can be trusted, save the model's state_dict() alone and use that"
            )
        raise UsageError(f"{path} {reason}") from error


def _require_weights(content: Any, path: str | os.PathLike) -> None:
    is_named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not (is_named and content) or not all(
        isinstance(value, (Tensor, np.ndarray)) for value in content.values()
    ):
        raise UsageError(
            f"{path} holds {reprlib.repr(content)} where weights by name are expected: tensors, "
            'or a dict of them under "model" or "state_dict"'
        )
