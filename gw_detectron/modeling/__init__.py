"""Where whitening goes in a detector: the norm's name and the backbones."""

from . import backbone, norm  # noqa: F401  both register on import
from .norm import get_norm

__all__ = ["get_norm"]
