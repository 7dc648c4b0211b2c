"""Checkpoints that are there whole or not at all, whenever the process is killed."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from ..checkpoint import WeightsCheckpointer
from ..checkpoint.facts import KEY
from ..files import whole_file


class Checkpointer(WeightsCheckpointer):
    """
    WeightsCheckpointer under which a file has its old content or all of its new one, and
    `last_checkpoint` names a checkpoint that is whole; weights that are not finite are not saved.
    Each also holds the facts of its model; a run is resumed only with all of the model's weights.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.path_manager = _WholeFiles()

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        self.whole = resume and self.has_checkpoint()
        return super().resume_or_load(path, resume=resume)

    def save(self, name: str, **kwargs: Any) -> None:
        """
        Raises:
            FloatingPointError: a weight is inf or nan.
        """
        for parameter, value in self.model.named_parameters():
            if not torch.isfinite(value).all():
                raise FloatingPointError(f"{parameter} became infinite or NaN")
        super().save(name, **{KEY: self._facts}, **kwargs)


class _WholeFiles:
    """Detectron2's PathManager, but for how local files are written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> AbstractContextManager:
        if "w" in mode and "://" not in path:
            return whole_file(path, mode)
        return PathManager.open(path, mode, **kwargs)
