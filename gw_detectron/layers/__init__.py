"""The mathematics of Group Whitening: pure PyTorch, usable without Detectron2."""

from .group_whitening import GroupWhitening, group_whitening

__all__ = ["GroupWhitening", "group_whitening"]
