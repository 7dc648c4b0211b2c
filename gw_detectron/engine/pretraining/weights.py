"""A classifier's weights: out of its checkpoint, and into a file that detectors start from."""

import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from ...checkpoint import WeightsCheckpointer
from ...errors import UsageError


class ClassifierCheckpointer(WeightsCheckpointer):
    """WeightsCheckpointer that takes the whole classifier or nothing."""

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        for name, found, expected in incompatible.incorrect_shapes:
            raise UsageError(f"the weights' {name} is {found}, the classifier's {expected}")
        if incompatible.missing_keys:
            raise UsageError(
                f"the weights lack {incompatible.missing_keys[0]}, so they are not a classifier's; "
                "evaluate model_final.pth or another checkpoint of this tool"
            )
        return incompatible


def save_backbone(model: nn.Module, path: str) -> None:
    """
    Writes the backbone of an :class:`ImageClassifier` in the format of Detectron2's model zoo.

    The names are the backbone's own; "matching_heuristics" makes Detectron2 find them in any
    detector. Batch norm's count of batches is left out: FrozenBN has none, and BN does without.
    """
    weights = {
        name: value.cpu()
        for name, value in model.backbone.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }
    with PathManager.open(path, "wb") as file:
        torch.save(
            {"model": weights, "__author__": "gw_detectron", "matching_heuristics": True}, file
        )
