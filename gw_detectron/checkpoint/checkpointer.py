"""Weights on their way into a detector: read without running code, and of the same network."""

import pickle
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UsageError
from .torch_file import load_values

# What the arrays of Detectron2's model zoo are pickled as
_OF_ARRAYS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
      for name in ("_reconstruct", "scalar")),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}  # fmt: skip

# A block of a ResNet, as Detectron2 and Caffe2 name it and as torchvision does
_BLOCK = re.compile(r"(?:^|\.)(?:res([2-5])[._]|layer([1-4])\.)(\d+)[._]")
_CONVOLUTION = re.compile(r"\b(?:stem|res[2-5]\.\d+)\.(?:conv\d|shortcut)\.weight$")


class WeightsCheckpointer(DetectionCheckpointer):
    """
    DetectionCheckpointer that never runs code which a file brings along, and doesn't go on with
    weights of which nothing fits the model, or only a part the backbone: Detectron2 would train
    the rest from scratch.

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
        self._file = filename
        if filename.endswith(".pkl"):
            _require_arrays(filename)
        elif filename.endswith(".pyth"):
            content = load_values(filename)
            if not isinstance(content, dict) or not isinstance(content.get("model_state"), dict):
                raise UsageError(f'{filename} has no "model_state", as pycls\'s .pyth files have')
        checkpoint = super()._load_file(filename)
        _require_weights(checkpoint["model"], filename)
        return checkpoint

    def _torch_load(self, filename: str) -> Any:
        return load_values(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._first_name = next(iter(checkpoint["model"]))
        theirs, ours = (_blocks(names) for names in (checkpoint["model"], self.model.state_dict()))
        for stage in sorted(theirs.keys() & ours.keys()):
            if theirs[stage] != ours[stage]:
                raise UsageError(
                    f"{self._file} has {theirs[stage]} blocks in res{stage} and the model "
                    f"{ours[stage]}: these are weights of another MODEL.RESNETS.DEPTH"
                )
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        names = self.model.state_dict().keys()
        shapes = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
        absent = {*incompatible.missing_keys, *shapes}
        parameters = [name for name, _ in self.model.named_parameters()]
        if parameters and absent.issuperset(parameters):
            raise UsageError(
                f"{self._file} has nothing of this model: its {self._first_name} is not there or "
                f"of another shape, and so for all; the model's names are like {parameters[0]}"
            )
        convolutions = set(filter(_CONVOLUTION.search, names))
        unfit = sorted(convolutions & absent)
        if unfit and len(unfit) < len(convolutions):
            theirs, ours = shapes.get(unfit[0], ("not there", tuple(self._shape(unfit[0]))))
            raise UsageError(
                f"{self._file} does not fit the backbone: of its {len(convolutions)} convolutions "
                f"{len(unfit)} are missing or of another shape, first {unfit[0]}, in the file "
                f"{theirs}, in the model {ours}"
            )
        super()._log_incompatible_keys(incompatible)

    def _shape(self, name: str) -> Iterable[int]:
        return self.model.state_dict()[name].shape


def _blocks(names: Iterable[str]) -> dict[int, int]:
    """Stage, 2 to 5 -> the number of its blocks."""
    matches = filter(None, map(_BLOCK.search, names))
    blocks = {(int(m[1] or int(m[2]) + 1), int(m[3])) for m in matches}
    return Counter(stage for stage, _ in blocks)


def _require_weights(content: Any, path: str) -> None:
    """Raises UsageError where it is no dict of named tensors or arrays."""
    if not isinstance(content, dict) or not content:
        kind = "nothing" if content == {} else type(content).__name__
        raise UsageError(f"{path} holds {kind} where weights by name are expected")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            raise UsageError(
                f"{path} holds a {type(value).__name__} named {name!r}, where weights by name are "
                'expected: tensors, or a dict of them under "model"'
            )


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OF_ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _require_arrays(path: str) -> None:
    """Raises UsageError where a pickle holds more than arrays, numbers, strings and containers."""
    try:
        with PathManager.open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        code = str(error)
        if re.fullmatch(r"[\w.]+", code):
            raise UsageError(
                f"{path} can't be read without running code ({code}), so it was not read"
            ) from error
        raise UsageError(f"{path} is not a pickle, or it is cut short or damaged") from error
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except Exception as error:  # any kind, on a file that isn't what it should be
        raise UsageError(f"{path} is not a pickle, or it is cut short or damaged") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, not weights by name")
