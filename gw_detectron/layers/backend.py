"""
Which backend makes the passes over the data: PyTorch's own operators (passes.py), which cover
everything, or Triton's kernels (triton_kernels/), where asked for.
"""

import os
from types import ModuleType

from torch import Tensor

from . import passes

BACKENDS = ("torch", "triton")
OLDEST_TRITON = (3, 7)  # 3.4 and older can't compile the kernels, the ones between were not tried

_chosen: str | None = None


def set_backend(name: str | None) -> None:
    """
    Chooses what computes Group Whitening in this process.

    Args:
        name: "torch" or "triton" (where its kernels do not cover an input, PyTorch computes as
            before); None for what the environment variable GW_BACKEND says, "torch" by default.

    Raises:
        ValueError: on another name, or "triton" where it is not installed or too old.
    """
    global _chosen
    if name is not None:
        _require(name, "backend")
    _chosen = name


def backend_for(x: Tensor, num_groups: int) -> ModuleType:
    """What computes x: a module with the functions of passes.py."""
    name = _chosen or os.environ.get("GW_BACKEND") or "torch"
    _require(name, "GW_BACKEND")
    if name == "triton":
        from . import triton_kernels

        if triton_kernels.covers(x, num_groups):
            return triton_kernels
    return passes


def _require(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, not {name!r}")
    if name == "triton":
        try:
            import triton
        except ImportError as error:
            raise ValueError(f'{where} "triton": triton is not installed') from error
        if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
            oldest = ".".join(map(str, OLDEST_TRITON))
            raise ValueError(
                f'{where} "triton": the kernels need Triton {oldest}, and {triton.__version__} is '
                "installed, which PyTorch brings: take a newer PyTorch"
            )
