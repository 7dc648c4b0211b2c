"""Weights, read without running code that their file brings along, and of the same network."""

import argparse
import contextlib
import logging
import os
import pickle
import re
import reprlib
import shlex
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..config import differences, predicting_head
from ..errors import UsageError
from .facts import KEY, class_rows, describe, facts

logger = logging.getLogger("detectron2.gw")

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

# The variants of batch norm, which can take each other's weights
_BATCH_NORM = re.compile(r"^(?:Frozen|Sync|nnSync|naiveSync)BN(?:_N)?")

# What DataParallel, DistributedDataParallel and torch.compile put before every name
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")


class WeightsCheckpointer(DetectionCheckpointer):
    """
    DetectionCheckpointer that never runs code which a file brings along, and refuses weights of
    which nothing fits the model, or only a part the backbone: Detectron2 would train the rest from
    scratch. It reads .safetensors, too.

    Where a file names its classes, their weights go to the model's classes of the same names,
    whatever the order of either.

    load raises :class:`UsageError` on all that is refused, and on a file that cannot be had, that
    is cut short or damaged, or that holds no weights.

    Attributes:
        whole: whether files are refused that lack a weight of the model, or are of other classes.
        stored: the :func:`facts` in the file that was loaded last; {} where it has none.
        class_rows: see :func:`class_rows`; {} where that file had the classes in the model's order.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        whole: bool = False,
        **kwargs: Any,
    ):
        """
        Args:
            cfg: of the model; None for a model without classes.
            kwargs: of DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self.whole = whole
        self.stored: dict[str, Any] = {}
        self.class_rows: dict[str, Tensor] = {}
        self._facts = facts(cfg) if cfg else {}
        self._num_classes = cfg.MODEL[predicting_head(cfg)].NUM_CLASSES if cfg else 0

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
            self.stored = dict(checkpoint.get(KEY, {}))
        _require_weights(checkpoint["model"], filename, _conversion(filename))
        self._file, self._first_name = filename, next(iter(checkpoint["model"]))
        return checkpoint

    def _torch_load(self, filename: str) -> Any:
        return load_values(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        theirs, ours = self.stored.get("classes"), self._facts.get("classes")
        self.class_rows, self._others = {}, ""
        if theirs and ours and theirs != ours:
            if sorted(theirs) == sorted(ours) and len({*ours}) == self._num_classes:
                self.class_rows = class_rows(self.model, [theirs.index(name) for name in ours])
            if self.class_rows:
                logger.info(
                    f"The classes of {self._file} are matched by name: here they are in another "
                    "order"
                )
            else:
                self._others = f"{self._file} was trained on {describe(theirs, ours)}, and here "
                self._others += f"are {describe(ours, theirs)}"
        if self._others and self.whole:
            raise UsageError(
                f"{self._others}: take the data that it was trained on, or weights that were "
                "trained on this data"
            )
        state = checkpoint["model"]
        for name, rows in self.class_rows.items():
            if name in state and len(state[name]) == len(rows):
                state[name] = state[name][rows]
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        unfit = {
            name: f"is {theirs} in the file and {ours} in the model"
            for name, theirs, ours in incompatible.incorrect_shapes
        }
        missing = [name for name in incompatible.missing_keys if name not in unfit]
        unfit |= dict.fromkeys(missing, "is not in the file")
        parameters = {name for name, _ in self.model.named_parameters()}
        if parameters and parameters.issubset(missing):
            raise UsageError(
                f"{self._file} has nothing of this model: its names are like {self._first_name}, "
                f"the model's like {min(parameters)}{_conversion(self._file)}"
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
                f"{_conversion(self._file)}"
            )
        # Only BN has this count, and it works without it
        unfit = {n: text for n, text in unfit.items() if not n.endswith(".num_batches_tracked")}
        if self.whole:
            self._require_whole(unfit)
        elif self._others:
            self._tell_what_begins_anew(unfit)
        self._warn_of_other_settings()
        super()._log_incompatible_keys(incompatible)

    def _require_whole(self, unfit: dict[str, str]) -> None:
        if unfit:
            name, problem = next(iter(unfit.items()))
            raise UsageError(
                f"{self._file} does not have this whole model: {name} {problem}, the first of "
                f"{len(unfit)} such weights; take a checkpoint of the whole trained model, as "
                "model_final.pth, with its own config"
            )

    def _warn_of_other_settings(self) -> None:
        """Most norms have weights of the same names and shapes, so nothing else would show it."""
        theirs, ours = _settings(self.stored), _settings(self._facts)
        known = [key for key in theirs if theirs[key] and ours.get(key)]
        theirs, ours = differences([{key: of[key] for key in known} for of in (theirs, ours)])
        if theirs:
            logger.warning(f"{self._file} was trained with {theirs}, and here is {ours}")

    def _tell_what_begins_anew(self, unfit: dict[str, str]) -> None:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in unfit))
        more = ", ..." if len(layers) > 5 else ""
        anew = f"{', '.join(layers[:5])}{more} begin anew" if layers else "no layer begins anew"
        if len(self.stored["classes"]) == len(self._facts["classes"]):
            anew += ", and the predictor begins with the weights of other classes"
        logger.info(f"{self._others}: {anew}")


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """
    Reads a state dict saved by torch.save, in its zip or its older format, or as .safetensors.

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
    torch.load of a file that holds tensors, numbers, strings, and containers of them, on the CPU;
    of .safetensors the tensors by name.

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
        if str(path).endswith(".safetensors"):
            return safetensors.torch.load_file(path)
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


def _settings(facts: dict[str, Any]) -> dict[str, Any]:
    """By the keys of the config. Detectors freeze the batch norm of a pre-trained backbone."""
    settings = {
        "MODEL.RESNETS.NORM": facts.get("norm"),
        "MODEL.GW.BASE_NORM": facts.get("base_norm"),
        "INPUT.FORMAT": facts.get("input_format"),
    }
    return {key: _BATCH_NORM.sub("BN", value or "") for key, value in settings.items()}


def _conversion(path: str) -> str:
    """The end of a message on weights that may be another tool's."""
    return (
        "; weights in torchvision's names are converted by: python tools/convert_weights.py "
        f"{shlex.quote(path)} OUT.pth"
    )


def _require_weights(content: Any, path: str | os.PathLike, hint: str = "") -> None:
    is_named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not (is_named and content) or not all(
        isinstance(value, (Tensor, np.ndarray)) for value in content.values()
    ):
        raise UsageError(
            f"{path} holds {reprlib.repr(content)} where weights by name are expected: tensors, "
            f'or a dict of them under "model" or "state_dict"{hint}'
        )
