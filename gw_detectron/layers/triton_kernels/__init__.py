"""
The passes of Group Whitening as Triton kernels: the functions of ../passes.py, for NVIDIA GPUs, and
forward and backward, which make all of the paper's layer in fewer launches.

    layout.py           how an input lies in memory; which inputs are covered
    tiling.py           into what tiles it is cut, by how many programs
    launch.py           how a kernel is launched
    products.py         matrices, vectors and their products, inside of kernels
    newton.py           Newton's iteration and its gradient
    forward_passes.py   moments, whiten; forward
    backward_passes.py  reduce, input_gradient; backward

float32, float16 and bfloat16 are read and written as they are; everything is accumulated in
float32, in an order that is always the same. Triton's interpreter (TRITON_INTERPRET=1, set before
Triton is imported) runs all of it on the CPU. What the passes compute is derived in
docs/derivation.md.
"""

from .backward_passes import backward, input_gradient, reduce
from .forward_passes import forward, moments, whiten, without_offset
from .layout import are_quicker, covers
from .newton import MOST_STEPS, newton, newton_backward

__all__ = [
    "MOST_STEPS",
    "are_quicker",
    "backward",
    "covers",
    "forward",
    "input_gradient",
    "moments",
    "newton",
    "newton_backward",
    "reduce",
    "whiten",
    "without_offset",
]
