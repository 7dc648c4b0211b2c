import numpy as np
import pytest
import torch

from gw_detectron.layers import set_backend

GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda torch", marks=GPU), pytest.param("cuda triton", marks=GPU)]


@pytest.fixture(params=DEVICES)
def device(request):
    """
    "cpu" or "cuda", the latter with each backend. Others can be asked for, as "cpu triton", by
    parametrize("device", ..., indirect=True).
    """
    device, _, backend = request.param.partition(" ")
    if (device, backend) == ("cpu", "triton"):
        require_interpreter()
    if backend:
        try:
            set_backend(backend)
        except ValueError as error:  # no Triton, or too old a one
            pytest.skip(str(error))
    yield device
    set_backend(None)


def require_interpreter():
    triton = pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton is for the GPU here")
    old = [int(part) for part in triton.__version__.split(".")[:2]] < [3, 7]
    if old and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton before 3.7 fails with NumPy 2.4 and newer")


@pytest.fixture(autouse=True, scope="session")
def bfloat16_in_tritons_interpreter():
    """Triton's interpreter has bfloat16 as its bits, and would multiply those as whole numbers."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        yield
        return

    def as_float32(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    create_dot = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(
        self, as_float32(a), as_float32(b), *rest
    )
    yield
    interpreter.InterpreterBuilder.create_dot = create_dot
