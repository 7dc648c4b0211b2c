"""
Which backend makes the passes over the data: PyTorch's own operators (passes.py), which cover
everything, or Triton's kernels (triton_kernels/), where they are quicker or asked for.
"""

import functools
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from torch import Tensor

from . import passes

BACKENDS = ("auto", "torch", "triton")
OLDEST_TRITON = (3, 4)  # older ones have not been tried with these kernels

Result = TypeVar("Result")
_chosen: str | None = None
_triton_fails = False  # to compile a kernel; found out in this process


class CannotCompile(RuntimeError):
    """A kernel that Triton does not compile, or the GPU does not hold."""


def set_backend(name: str | None) -> None:
    """
    Chooses what computes Group Whitening in this process.

    Args:
        name: "torch"; "triton" (where its kernels do not cover an input, PyTorch computes it);
            "auto", which takes Triton where it has been measured to be quicker; None for what the
            environment variable GW_BACKEND says, "auto" by default.

    Raises:
        ValueError: on another name, or "triton" where it is not installed or too old.
    """
    global _chosen
    if name is not None:
        _require(name, "backend")
    _chosen = name


def by_backend(function: Callable[..., Result], x: Tensor, num_groups: int, *arguments) -> Result:
    """
    function(backend, x, num_groups, *arguments), with what computes x. Where Triton was not asked
    for and cannot compile a kernel, PyTorch computes this and all that follows.
    """
    global _triton_fails
    try:
        return function(backend_for(x, num_groups), x, num_groups, *arguments)
    except CannotCompile as error:
        if _name() != "auto":
            raise
        _triton_fails = True
        warnings.warn(f"Group Whitening goes on without Triton's kernels: {error}", stacklevel=2)
        return function(passes, x, num_groups, *arguments)


def backend_for(x: Tensor, num_groups: int) -> ModuleType:
    """What computes x: a module with the functions of passes.py."""
    name = _name()
    _require(name, "GW_BACKEND")
    if name == "torch":
        return passes
    if name == "auto" and (not x.is_cuda or _triton_fails or _reason_against_triton()):
        return passes
    from . import triton_kernels

    if not triton_kernels.covers(x, num_groups):
        return passes
    if name == "auto" and not triton_kernels.are_quicker(x):
        return passes
    return triton_kernels


def _name() -> str:
    return _chosen or os.environ.get("GW_BACKEND") or "auto"


def _require(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, not {name!r}")
    if name == "triton" and (reason := _reason_against_triton()):
        raise ValueError(f'{where} "triton": {reason}')


@functools.cache
def _reason_against_triton() -> str:
    """Why the kernels cannot be had here; empty if they can."""
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return (
            f"the kernels need Triton {oldest}, and {triton.__version__} is installed, which "
            "PyTorch brings: take a newer PyTorch"
        )
    return ""
