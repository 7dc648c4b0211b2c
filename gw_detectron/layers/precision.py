"""Whether PyTorch may round float32 operands of matrix products to TF32 on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_matmul = torch.backends.cuda.matmul
# In the words that PyTorch has had since 2.9, or in those before; the two must not be mixed.
_SETTING, _FULL = (
    ("fp32_precision", "ieee") if hasattr(_matmul, "fp32_precision") else ("allow_tf32", False)
)


def tf32_is_allowed() -> bool:
    return getattr(_matmul, _SETTING) in ("tf32", True)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products are not rounded to TF32 meanwhile."""
    before = getattr(_matmul, _SETTING)
    setattr(_matmul, _SETTING, _FULL)
    try:
        yield
    finally:
        setattr(_matmul, _SETTING, before)
