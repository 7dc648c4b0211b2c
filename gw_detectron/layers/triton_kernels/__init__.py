"""
The passes of Group Whitening as Triton kernels: the functions of ../passes.py, for NVIDIA GPUs.

    layout.py     how an input lies in memory and is cut into tiles; which inputs are covered
    passes.py     moments, whiten, reduce, input_gradient: what touches anything of the input's size
    newton.py     Newton's iteration and its gradient, each a single launch
    launch.py     how a kernel is launched

float32, float16 and bfloat16 are read and written as they are; everything is accumulated in
float32, in an order that is always the same. Triton's interpreter (TRITON_INTERPRET=1, set before
Triton is imported) runs all of it on the CPU. What the passes compute is derived in
docs/derivation.md.
"""

from .layout import are_quicker, covers
from .newton import newton, newton_backward
from .passes import data_of, input_gradient, moments, reduce, whiten, without_offset

__all__ = [
    "are_quicker",
    "covers",
    "data_of",
    "input_gradient",
    "moments",
    "newton",
    "newton_backward",
    "reduce",
    "whiten",
    "without_offset",
]
