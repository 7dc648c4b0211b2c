"""The mathematics of Group Whitening: pure PyTorch, usable without Detectron2."""

from .backend import set_backend
from .group_whitening import GroupWhitening, group_whitening

__all__ = ["GroupWhitening", "group_whitening", "set_backend"]
