"""Weights on their way into a detector: read without running code, and of the same network."""

import pickle
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

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
    weights of which only a part fits the backbone: Detectron2 would train the rest from scratch.

    load raises :class:`UsageError` on both, and on a file that is cut short or damaged.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        if filename.endswith(".pkl"):
            _require_arrays(filename)
        elif filename.endswith(".pyth"):
            load_values(filename)
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> Any:
        return load_values(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        theirs, ours = (_blocks(names) for names in (checkpoint["model"], self.model.state_dict()))
        for stage in sorted(theirs.keys() & ours.keys()):
            if theirs[stage] != ours[stage]:
                raise UsageError(
                    f"{self._file} has {theirs[stage]} blocks in res{stage} and the model "
                    f"{ours[stage]}: these are weights of another MODEL.RESNETS.DEPTH"
                )
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        convolutions = set(filter(_CONVOLUTION.search, self.model.state_dict()))
        shapes = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
        unfit = sorted(convolutions & {*incompatible.missing_keys, *shapes})
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
