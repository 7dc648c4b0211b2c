import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from gw_detectron.layers import GroupWhitening, group_whitening

from . import textbook

# (shape, num_groups): what a detector gives the norm, scaled down where only the size differs
SHAPES = {
    "stem": ((2, 64, 32, 40), 64),
    "block": ((2, 256, 20, 12), 64),
    "region of interest": ((5, 256, 7, 7), 64),
    "narrow, C < g": ((2, 32, 9, 11), 64),
    "fully connected": ((4, 1024), 64),
    "1-D": ((3, 64, 50), 16),
    "3-D": ((2, 48, 4, 5, 6), 16),
    "fewer values than groups": ((2, 128, 3, 1), 64),
    "one group": ((2, 8, 5, 5), 1),
}


def correlated(shape, seed=0):
    """Channels that are correlated and off-centre, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    mix = torch.randn(shape[1], shape[1], dtype=torch.float64, generator=generator)
    return torch.einsum("ij,nj...->ni...", mix / shape[1] ** 0.5, x) + 0.5


def inputs(shape):
    generator = torch.Generator().manual_seed(1)
    random = lambda *size: torch.randn(*size, dtype=torch.float64, generator=generator)  # noqa: E731
    return correlated(shape), 1 + random(shape[1]) / 4, random(shape[1]), random(*shape)


def output_and_gradients(function, x, weight, bias, dy):
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = function(x, weight, bias)
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)


def largest_error(actual, expected):
    """Relative, in the norm, of what was computed on any device; nan if any is."""
    errors = [
        (a.cpu().double() - e).norm() / e.norm() for a, e in zip(actual, expected, strict=True)
    ]
    return torch.stack(errors).max().item()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_itn_and_its_gradients_equal_the_papers_definition(name, rescale, dtype, tolerance, device):
    shape, g = SHAPES[name]
    tensors = inputs(shape)
    options = {"eps": 0.0, "rescale": rescale}
    expected = output_and_gradients(
        lambda x, w, b: textbook.group_whitening(x, g, w, b, **options), *tensors
    )
    actual = output_and_gradients(
        lambda x, w, b: group_whitening(x, g, w, b, **options),
        *(t.to(device, dtype) for t in tensors),
    )
    assert largest_error(actual, expected) < tolerance


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 7, 9])
def test_every_number_of_iterations_equals_the_papers_definition(iterations):
    tensors = inputs((2, 48, 20, 12))
    expected, actual = (
        output_and_gradients(lambda x, w, b, f=f: f(x, 16, w, b, iterations=iterations), *tensors)
        for f in (textbook.group_whitening, group_whitening)
    )
    assert largest_error(actual, expected) < 1e-12


def test_nine_iterations_of_an_ill_conditioned_sample_are_accurate_in_float32(device):
    x, weight, bias, dy = inputs((2, 32, 9, 11))
    x = x * torch.logspace(0, -4, 32, dtype=x.dtype).view(1, -1, 1, 1)
    expected = output_and_gradients(
        lambda x, w, b: textbook.group_whitening(x, 32, w, b, 9, eps=0.0), x, weight, bias, dy
    )
    actual = output_and_gradients(
        lambda x, w, b: group_whitening(x, 32, w, b, 9, eps=0.0),
        *(t.float().to(device) for t in (x, weight, bias, dy)),
    )
    assert largest_error(actual, expected) < 1e-3


@pytest.mark.parametrize("rescale", [False, True])
def test_zca_and_its_gradients_equal_the_papers_definition(rescale, device):
    expected, actual = (
        output_and_gradients(
            lambda x, w, b, f=f: f(x, 16, w, b, eps=1e-3, method="zca", rescale=rescale),
            *(t.to(where) for t in inputs((2, 64, 20, 12))),
        )
        for f, where in ((textbook.group_whitening, "cpu"), (group_whitening, device))
    )
    assert largest_error(actual, expected) < 1e-10


def test_zca_output_is_white():
    y = group_whitening(correlated((3, 32, 40, 40)), 16, eps=0.0, method="zca").reshape(3, 16, -1)
    covariance = y @ y.mT / y.shape[-1]
    torch.testing.assert_close(covariance, torch.eye(16, dtype=y.dtype).expand(3, 16, 16))


def test_rescaled_output_has_unit_mean_variance():
    y = group_whitening(correlated((3, 64, 20, 20)), 64, eps=0.0, rescale=True)
    variance = y.reshape(3, 64, -1).var(-1, correction=0).mean(-1)
    torch.testing.assert_close(variance, torch.ones(3, dtype=y.dtype))


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("method", ["itn", "zca"])
def test_gradcheck(method, rescale):
    x = torch.randn(2, 6, 4, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64).requires_grad_()
    bias = torch.rand(6, dtype=torch.float64).requires_grad_()
    options = {"eps": 1e-2, "method": method, "rescale": rescale}
    assert gradcheck(lambda x, w, b: group_whitening(x, 3, w, b, **options), (x, weight, bias))


def test_zca_gradient_is_exact_where_eigenvalues_coincide():
    # Sigma = (1 + eps) I: every divided difference is 0 / 0
    x = torch.tensor([[[1.0, 1, -1, -1], [1, -1, 1, -1]]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: group_whitening(x, 2, method="zca"), (x,))


def test_differentiating_twice_is_a_clear_error():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(group_whitening(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "name, view",
    [
        ("channels_last", lambda x: x.contiguous(memory_format=torch.channels_last)),
        ("transposed", lambda x: x.mT.contiguous().mT),
        ("sliced", lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]]),
        ("every second column", lambda x: x.repeat_interleave(2, dim=-1)[..., ::2]),
    ],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_strides_do_not_matter(name, view, dtype, tolerance, device):
    x, weight, bias, dy = inputs((2, 64, 10, 12))
    function = lambda x, w, b: group_whitening(x, 16, w, b)  # noqa: E731
    expected = output_and_gradients(function, x, weight, bias, dy)
    x, weight, bias, dy = (t.to(device, dtype) for t in (x, weight, bias, dy))
    actual = output_and_gradients(function, view(x), weight, bias, view(dy))
    assert largest_error(actual, expected) < tolerance


def test_memory_format_is_kept(device):
    x = torch.randn(2, 64, 5, 6).to(device, memory_format=torch.channels_last).requires_grad_()
    y = group_whitening(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_only_x_is_kept_at_the_inputs_size(device):
    x = torch.randn(2, 64, 40, 40, requires_grad=True, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer = GroupWhitening(64, 16, rescale=True).to(device)
        layer(x)
    storages = {t.data_ptr(): t for t in saved}
    large = [t for t in storages.values() if t.numel() >= x.numel() / 10]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]
    others = sum(t.numel() for t in storages.values()) - x.numel()
    assert others <= 2 * (2 * 16 * 16) + 2 * 16 + 2 + 2 * 64  # Sigma, W, means, scale, affine


HOSTILE = {
    "constant": torch.full((2, 64, 5, 5), 3.0),
    "large constant": torch.full((2, 64, 5, 5), 1e4),
    "zeros": torch.zeros(2, 64, 5, 5),
    "one pixel": torch.randn(2, 64, 1, 1),
    "two values a group": torch.randn(2, 64, 2, 1),
    "duplicated channels": torch.randn(2, 1, 9, 9).expand(2, 64, 9, 9),
    "one hot pixel": F.pad(torch.full((2, 64, 1, 1), 1e4), (3, 3, 3, 3)),
    "1e4": torch.randn(2, 64, 9, 9) * 1e4,
    "1e-6": torch.randn(2, 64, 9, 9) * 1e-6,
    "offset": torch.randn(2, 64, 9, 9) + 1e3,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale": True},
        {"method": "zca"},
        {"eps": 0.0},
        {"eps": 0.0, "rescale": True},
        {"iterations": 40},
    ],
)
@pytest.mark.parametrize("name", HOSTILE)
def test_output_and_gradient_of_a_finite_input_are_finite(name, options, device):
    x = HOSTILE[name].to(device, copy=True).requires_grad_()
    y = group_whitening(x, **options)
    y.backward(torch.randn_like(y))
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"method": "zca"}, {"eps": 0.0}])
def test_a_constant_input_gives_the_bias(options, device):
    x, bias = torch.full((1, 8, 3, 3), 5.0, device=device), torch.arange(8.0, device=device)
    y = group_whitening(x, 4, bias=bias, **options).cpu()
    torch.testing.assert_close(y, torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 3, 3))


def test_a_large_offset_costs_no_accuracy_beyond_the_inputs_own(device):
    x = (correlated((2, 64, 20, 20)) + 1e3).float()
    expected = textbook.group_whitening(x.double(), 64)
    assert largest_error([group_whitening(x.to(device))], [expected]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_autocast_computes_in_float32(dtype, scale, device):
    layer = GroupWhitening(64, 16).to(device)
    x = (correlated((2, 64, 16, 16)) * scale).to(device, dtype).requires_grad_()
    dy = torch.randn(x.shape).to(dtype)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = layer(x)
        y.backward(dy.to(device))
    exact = x.detach().cpu().double().requires_grad_()
    expected = textbook.group_whitening(exact, 16)
    expected.backward(dy.double())
    resolution = torch.finfo(dtype).eps * (1 if device == "cpu" else 2)  # there W is in TF32
    assert y.dtype == dtype and layer.weight.grad.dtype == torch.float32
    assert largest_error([y], [expected.detach()]) < resolution
    assert largest_error([x.grad], [exact.grad]) < resolution


@pytest.mark.parametrize("method", ["itn", "zca"])
@pytest.mark.parametrize("shape", [(0, 256, 7, 7), (0, 64), (2, 64, 0, 3)])
def test_empty_batch_gives_empty_output_and_zero_gradients(shape, method, device):
    layer = GroupWhitening(shape[1], method=method).to(device)
    x = torch.zeros(shape, requires_grad=True, device=device)
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape and x.grad.shape == shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


def test_relu_can_follow_in_place(device):
    layer = GroupWhitening(64).to(device)
    x = torch.randn(2, 64, 4, 4, requires_grad=True, device=device)
    F.relu_(layer(x)).sum().backward()
    other = x.detach().clone().requires_grad_()
    F.relu(layer(other)).sum().backward()
    assert torch.equal(x.grad, other.grad)


def test_a_samples_output_does_not_depend_on_the_batch(device):
    x = torch.randn(4, 64, 6, 6, device=device)
    atol = 1e-6 if device == "cpu" else 1e-5
    assert torch.allclose(group_whitening(x)[2:3], group_whitening(x[2:3]), rtol=0, atol=atol)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["itn", "zca"])
def test_a_sample_that_is_not_finite_spoils_no_other(method, value, device):
    x = torch.randn(3, 64, 6, 6)
    x[1, 0, 0, 0] = value
    x = x.to(device).requires_grad_()
    y = group_whitening(x, method=method)
    y.backward(torch.ones_like(y))
    assert y[1].isnan().all()
    assert all(t[n].isfinite().all() for t in (y, x.grad) for n in (0, 2))


def test_module_equals_the_function_and_starts_at_unit_weight():
    layer = GroupWhitening(32, 8, iterations=3, eps=1e-3)
    x = torch.randn(2, 32, 5, 5)
    assert torch.equal(layer(x), group_whitening(x, 8, iterations=3, eps=1e-3))
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "weight": (32,),
        "bias": (32,),
    }


def test_without_affine_there_is_no_state():
    assert GroupWhitening(32, affine=False).state_dict() == {}


@pytest.mark.parametrize("num_channels", [1, 32])
@pytest.mark.parametrize("before, after", [((), ()), ((1,), ()), ((1,), (1, 1)), ((), (1, 1))])
def test_weights_load_with_any_number_of_ones_around_c(num_channels, before, after):
    layer = GroupWhitening(num_channels)
    values = torch.randn(2, num_channels)
    weight, bias = values.reshape(2, *before, num_channels, *after)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(torch.stack([layer.weight, layer.bias]), values)


@pytest.mark.parametrize("shape", [(), (0,), (1, 31), (1, 64, 1, 1), (4, 8), (2, 32), (1, 1)])
def test_weights_of_another_size_are_an_error(shape):
    message = f"size mismatch for weight: copying a param with shape {torch.Size(shape)}"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        GroupWhitening(32).load_state_dict({"weight": torch.ones(shape), "bias": torch.zeros(32)})


def test_output_and_gradients_equal_those_of_the_authors_module(device):
    """
    The file holds what the authors' module has computed in float64 of random numbers, with g = 64,
    T = 5 and eps = 0: x (2, 128, 5, 7), y, dy (y's gradient) and dx; weight (1, 128, 1, 1), bias,
    dweight and dbias.
    """
    arrays = np.load(Path(__file__).with_name("authors_module.npz"))
    given = {name: torch.from_numpy(arrays[name]).double() for name in arrays}
    x, dy = given["x"].to(device).requires_grad_(), given["dy"].to(device)
    layer = GroupWhitening(128, 64, iterations=5, eps=0).double().to(device)
    layer.load_state_dict({name: given[name] for name in ("weight", "bias")})
    y = layer(x)
    gradients = torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)
    of_function = group_whitening(x, 64, layer.weight, layer.bias, iterations=5, eps=0)
    expected = [given[name].squeeze() for name in ("y", "dx", "dweight", "dbias")]
    assert largest_error((y.detach(), *gradients), expected) < 1e-12
    assert torch.equal(of_function, y)


@pytest.mark.parametrize(
    "num_channels, options, message",
    [
        (256, {"num_groups": 48}, "num_groups=48 does not divide num_channels=256; "
                                  "the nearest that do are 32 and 64"),
        (256, {"num_groups": 0}, "num_groups must be a whole number of at least 1, not 0"),
        (64, {"num_groups": 8.0}, "num_groups must be a whole number of at least 1, not 8.0"),
        (64, {"iterations": -1}, "iterations must be a whole number of at least 0, not -1"),
        (64, {"eps": -1e-5}, "eps must be a finite number of at least 0, not -1e-05"),
        (64, {"eps": float("nan")}, "eps must be a finite number of at least 0, not nan"),
        (64, {"method": "pca"}, "method must be one of itn, zca, not 'pca'"),
        (0, {}, "num_channels must be a whole number of at least 1, not 0"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_one_line_that_names_value_and_choice(num_channels, options, message):
    with pytest.raises(ValueError) as error:
        GroupWhitening(num_channels, **options)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        group_whitening(torch.randn(1, num_channels, 4), **options)
    assert str(error.value) == message


@pytest.mark.parametrize("shape", [(2, 32, 4, 4), (64,), (2,)])
def test_a_wrong_channel_count_at_call_time_is_named(shape):
    with pytest.raises(ValueError, match=r"takes an input of shape \(N, 64, \*\), not"):
        GroupWhitening(64)(torch.zeros(shape))


def test_a_parameter_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"weight has shape \(8,\)"):
        group_whitening(torch.zeros(2, 16, 3), weight=torch.ones(8))


def test_the_layer_imports_where_detectron2_is_not_installed():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import torch; from gw_detectron.layers import GroupWhitening\n"
        "assert GroupWhitening(64)(torch.zeros(1, 64, 2, 2)).shape == (1, 64, 2, 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
