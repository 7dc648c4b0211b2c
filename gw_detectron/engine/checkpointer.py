"""Checkpoints that are there whole or not at all, whenever the process is killed."""

import contextlib
import glob
import os
from collections.abc import Iterator
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager

from ..checkpoint import WeightsCheckpointer

_UNFINISHED = ".unfinished"


class Checkpointer(WeightsCheckpointer):
    """
    WeightsCheckpointer under which a file has its old content or all of its new one, and
    `last_checkpoint` names a checkpoint that is whole; weights that are not finite are not saved.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.path_manager = _WholeFiles()

    def save(self, name: str, **kwargs: Any) -> None:
        """
        Raises:
            FloatingPointError: a weight is inf or nan.
        """
        for parameter, value in self.model.named_parameters():
            if not torch.isfinite(value).all():
                raise FloatingPointError(f"{parameter} became infinite or NaN")
        super().save(name, **kwargs)


class _WholeFiles:
    """Detectron2's PathManager, but for how local files are written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> contextlib.AbstractContextManager:
        if "w" in mode and "://" not in path:
            return _written_beside(path, mode)
        return PathManager.open(path, mode, **kwargs)


@contextlib.contextmanager
def _written_beside(path: str, mode: str) -> Iterator[IO]:
    unfinished = path + _UNFINISHED
    try:
        with open(unfinished, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name changes, lest a power failure leave it empty
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise
    os.replace(unfinished, path)


def remove_unfinished(folder: str) -> None:
    """Removes what a process that was killed while it wrote has left."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"*{_UNFINISHED}")):
        os.remove(path)
