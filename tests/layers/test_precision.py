"""
How near the layer comes to the paper's definition in float64, by backend, type and memory format:
at the inputs of Mask R-CNN on a GPU, at tiny ones in Triton's interpreter.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gw_detectron.layers import group_whitening, passes

from . import textbook
from .conftest import GPU

# The largest relative error in the norm that a type may have, of the output and of each gradient.
# TF32 has 10 bits of precision, as float16 has; half types are rounded when they are written, too.
TOLERANCES = {
    "float32": 1e-5,
    "TF32": 3e-3,
    "float16": 2 * torch.finfo(torch.float16).eps,
    "bfloat16": torch.finfo(torch.bfloat16).eps,
}
# Every input of GW in Mask R-CNN R-50-FPN (configs/COCO-InstanceSegmentation) for an image of
# 200 x 333, padded to 224 x 352
OF_MASK_RCNN = [
    (1, 64, 112, 176), (1, 64, 56, 88), (1, 128, 28, 44), (1, 256, 14, 22), (1, 512, 7, 11),
    (1, 256, 7, 11), (1, 256, 28, 44), (1, 256, 56, 88), (128, 256, 14, 14),
]  # fmt: skip
# Two images; and the stem and the regions of a box head at their real size
OTHERS = [(2, 128, 28, 44), (2, 512, 7, 11), (1, 64, 400, 672), (512, 256, 7, 7)]
CASES = [
    (device, kind, shape)
    for device, kinds, shapes in (
        ("cpu torch", ("float32", "float16", "bfloat16"), [(1, 8, 12, 13), (3, 32, 7, 5)]),
        ("cpu triton", ("float32", "bfloat16"), [(2, 16, 5, 3)]),
        ("cuda torch", TOLERANCES, OF_MASK_RCNN + OTHERS),
        ("cuda triton", TOLERANCES, OF_MASK_RCNN + OTHERS),
    )
    for kind in kinds
    for shape in shapes
]


def case_id(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


@pytest.fixture
def dtype(kind):
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = kind == "TF32"
    yield torch.float32 if kind == "TF32" else getattr(torch, kind)
    matmul.allow_tf32 = False


def correlated(shape, device):
    """(x, weight, bias, dy) in float64, x with channels that are correlated and off-centre."""
    generator = torch.Generator(device).manual_seed(0)
    random = lambda *size: torch.randn(  # noqa: E731
        *size, dtype=torch.float64, device=device, generator=generator
    )
    channels = shape[1]
    mix = random(channels, channels) / channels**0.5
    x = (mix @ random(*shape).flatten(2)).view(shape) + 0.5
    return x, 1 + random(channels) / 4, random(channels), random(*shape)


def output_and_gradients(function, x, weight, bias, dy, num_groups):
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = function(x, num_groups, weight, bias)
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)


def relative_errors(x, weight, bias, dy, num_groups):
    """Of (y, dx, dweight, dbias)."""
    tensors = x, weight, bias, dy
    actual = output_and_gradients(group_whitening, *tensors, num_groups)
    expected = output_and_gradients(
        textbook.group_whitening, *(t.double() for t in tensors), num_groups
    )
    return [
        ((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)
    ]


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "device, kind, shape",
    [pytest.param(*case, marks=GPU if "cuda" in case[0] else ()) for case in CASES],
    indirect=["device"],
    ids=case_id,
)
def test_output_and_gradients_are_those_of_float64_to_the_types_precision(
    device, dtype, kind, shape, memory_format, request, record_property
):
    x, weight, bias, dy = correlated(shape, device)
    layout = getattr(torch, memory_format.replace("contiguous", "contiguous_format"))
    x, dy = (t.to(dtype, memory_format=layout) for t in (x, dy))
    errors = relative_errors(x, weight.float(), bias.float(), dy, min(64, shape[1]))
    backend = request.node.callspec.params["device"]
    for name, error in zip(("y", "dx", "dweight", "dbias"), errors, strict=True):
        record_property(f"{backend}, {kind}: {name}", error)
    assert all(error < TOLERANCES[kind] for error in errors), errors


class Calls(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_pytorchs_path_of_a_gpu_asks_for_no_value_and_converts_while_it_centres(
    kind, dtype, memory_format, monkeypatch
):
    monkeypatch.setattr(passes, "_centres_always", lambda x: True)
    x, weight, bias, dy = correlated((3, 32, 7, 5), "cpu")
    x, dy = (t.to(dtype, memory_format=memory_format) for t in (x, dy))
    tensors = x, weight.float(), bias.float(), dy
    errors = relative_errors(*tensors, 32)
    assert all(error < TOLERANCES[kind] for error in errors), errors
    with Calls() as calls:
        output_and_gradients(group_whitening, *tensors, 32)
    assert "_local_scalar_dense" not in calls.names
    # y, dy and dx; x is converted as its mean is subtracted
    assert calls.names.count("_to_copy") == (0 if kind == "float32" else 3)


@pytest.mark.gpu
def test_the_inputs_of_mask_rcnn_are_all_there():
    pytest.importorskip("detectron2")
    from gw_detectron.benchmark.workload import benchmark_config, find_inputs
    from gw_detectron.model_zoo import get_config_file

    file = get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw.yaml")
    inputs = find_inputs(benchmark_config(file, ["INPUT.MIN_SIZE_TEST", "200"]))
    assert {at.shape for at in inputs} == set(OF_MASK_RCNN)
    assert {at.layer.num_groups for at in inputs} == {64}


@pytest.mark.parametrize("offset", [1e3, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_offset_costs_no_more_than_the_roundings_of_the_input_and_its_mean(
    device, memory_format, offset
):
    x, weight, bias, dy = (t.float() for t in correlated((2, 16, 20, 12), device))
    x = (x + offset).to(memory_format=memory_format)
    of_input = 2 * offset * torch.finfo(x.dtype).eps  # of x and its mean, the deviation being 1
    errors = relative_errors(x, weight, bias, dy, 16)
    assert all(error < max(of_input, 1e-4) for error in errors), errors
