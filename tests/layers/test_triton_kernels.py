"""
Every kernel against a formula in float64: in Triton's interpreter (tests/conftest.py), or on a GPU
where there is one.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from gw_detectron.layers import group_whitening, passes, set_backend
from gw_detectron.layers.backend import OLDEST_TRITON, CannotCompile

from . import textbook

triton = pytest.importorskip("triton")
if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
    pytest.skip(f"Triton {triton.__version__} is refused", allow_module_level=True)
from gw_detectron.layers import triton_kernels as kernels  # noqa: E402
from gw_detectron.layers.triton_kernels import launch, tiling  # noqa: E402

float64 = torch.float64
EPS = 0.01
CONTIGUOUS = torch.contiguous_format
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":
    pytestmark = pytest.mark.gpu

# (shape, groups, memory format)
SHAPES = {
    "two channels a group": ((2, 32, 6, 7), 16, None),
    "two channels a group, channels_last": ((2, 32, 6, 7), 16, torch.channels_last),
    "odd": ((1, 21, 5, 9), 7, None),
    "odd, channels_last": ((1, 21, 5, 9), 7, torch.channels_last),
    "divided among programs": ((1, 18, 25, 16), 6, None),
    "divided among programs, channels_last": ((1, 18, 25, 16), 6, torch.channels_last),
    "more samples than programs": ((9, 8, 7, 7), 4, None),
    "many channels a group": ((2, 50, 3, 3), 2, None),
    "many channels a group, channels_last": ((2, 50, 3, 3), 2, torch.channels_last),
    "1x1": ((3, 40, 1, 1), 20, None),
    "fully connected": ((3, 48), 16, None),
    "1-D, fewer values than groups": ((2, 33, 3), 33, None),
    "3-D": ((2, 24, 2, 3, 4), 12, None),
    "3-D, channels_last": ((2, 24, 2, 3, 4), 12, torch.channels_last_3d),
    "64 groups": ((1, 64, 5, 5), 64, None),
}


FEW = list(SHAPES)[:2]
CASES = [(name, dtype) for dtype in ("float32", "bfloat16") for name in SHAPES]
CASES += [(name, dtype) for dtype in ("float32, TF32 allowed", "float16") for name in FEW]


@pytest.fixture(params=CASES, ids=", ".join)
def case(request):
    """(shape, groups, memory format, type)."""
    name, dtype = request.param
    dtype, _, tf32 = dtype.partition(", ")
    with tf32_allowed(bool(tf32)):
        yield *SHAPES[name], getattr(torch, dtype)


@contextmanager
def tf32_allowed(allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def random(*shape, seed=0):
    """In float64, off-centre."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, dtype=torch.float64, generator=generator) + 0.5).to(DEVICE)


def laid_out(x, dtype, memory_format):
    return x.to(dtype, memory_format=memory_format or CONTIGUOUS)


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return ((actual.double() - expected).norm() / expected.norm()).item()


def tolerance(dtype, result=False):
    """Of sums in float32, or of a `result` that is rounded to x's type."""
    of_products = 2e-3 if tf32_is_used(dtype) and DEVICE == "cuda" else 1e-5
    return max(of_products, torch.finfo(dtype).eps) if result else of_products


def tf32_is_used(dtype):
    return dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def groups_of(x, g):
    return x.double().reshape(len(x), g, -1)


def by_channel(parameter, x):
    return parameter.view(1, -1, *[1] * (x.dim() - 2))


def whitened(x, mean, w):
    """W (X - mean) as x's shape, in float64."""
    return (w.double() @ (groups_of(x, w.shape[-1]) - mean.double())).view(x.shape)


def test_moments_are_the_groups_mean_and_covariance(case):
    shape, g, memory_format, dtype = case
    x = laid_out(random(*shape), dtype, memory_format)
    mean, covariance, *_ = kernels.moments(x, g, EPS)
    groups = groups_of(x, g)
    centred = groups - groups.mean(2, keepdim=True)
    assert mean.dtype == covariance.dtype == torch.float32
    assert relative_error(mean, groups.mean(2, keepdim=True)) < 1e-6
    sigma = centred @ centred.mT / groups.shape[2] + EPS * torch.eye(g, device=DEVICE)
    # Where columns are so few and close to each other that they get a pivot, x - pivot is rounded.
    rounded = groups.shape[2] < 4
    assert relative_error(covariance, sigma) < tolerance(dtype, result=rounded)


def test_whitening_multiplies_what_is_centred_and_applies_the_affine(case):
    shape, g, memory_format, dtype = case
    x = laid_out(random(*shape), dtype, memory_format)
    mean, w = random(shape[0], g, 1, seed=1).float(), random(shape[0], g, g, seed=2).float()
    weight, bias = random(2, shape[1], seed=3).float()
    y = kernels.whiten(x, mean, w, weight, bias)
    expected = whitened(x, mean, w) * by_channel(weight, x) + by_channel(bias, x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=memory_format or CONTIGUOUS)
    assert relative_error(y, expected) < tolerance(dtype, result=True)


def test_the_backwards_sums_are_the_gradients_of_its_parameters(case):
    shape, g, memory_format, dtype = case
    x, dy = (laid_out(random(*shape, seed=s), dtype, memory_format) for s in (0, 1))
    mean, w = random(shape[0], g, 1, seed=2).float(), random(shape[0], g, g, seed=3).float()
    weight = random(shape[1], seed=4).float()
    actual = kernels.reduce(dy, x, mean, w, weight)
    dy_groups = groups_of(dy * by_channel(weight.double(), x), g)
    but_channels = [0, *range(2, x.dim())]
    expected = (
        dy_groups @ (groups_of(x, g) - mean).mT,
        dy_groups.mean(2, keepdim=True),
        (dy.double() * whitened(x, mean, w)).sum(but_channels),
        dy.double().sum(but_channels),
    )
    # In channels_last weight * dy is rounded to dy's type before it is multiplied.
    rounded = memory_format is not None or x[0, 0].numel() == 1
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, e) < tolerance(dtype, result=rounded)


def test_the_input_gradient_has_both_its_terms(case):
    shape, g, memory_format, dtype = case
    x, dy = (laid_out(random(*shape, seed=s), dtype, memory_format) for s in (0, 1))
    mean, mean_dy = random(2, shape[0], g, 1, seed=2).float()
    w, grad_sigma = random(2, shape[0], g, g, seed=3).float()
    weight = random(shape[1], seed=4).float()
    dx = kernels.input_gradient(dy, x, mean, mean_dy, w, grad_sigma, weight)
    m = groups_of(x, g).shape[2]
    expected = whitened(dy * by_channel(weight.double(), x), mean_dy, w)
    expected = expected + 2 / m * whitened(x, mean, grad_sigma)
    assert dx.dtype == dtype and dx.is_contiguous(memory_format=memory_format or CONTIGUOUS)
    assert relative_error(dx, expected) < tolerance(dtype, result=True)


@pytest.mark.parametrize(
    "case",
    [(name, "bfloat16") for name in ("odd", "divided among programs", "1x1", "3-D, channels_last")]
    + [("odd", "float32")]
    + [(name, dtype) for name, dtype in CASES if name in FEW],
    ids=", ".join,
    indirect=True,
)
def test_whole_passes_are_the_papers_definition_and_its_gradients(case, monkeypatch):
    shape, g, memory_format, dtype = case
    x, dy = (laid_out(random(*shape, seed=s), dtype, memory_format) for s in (0, 1))
    weight, bias = random(2, shape[1], seed=4).float()
    inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = textbook.group_whitening(inputs[0], g, *inputs[1:], iterations=3, eps=EPS)
    expected = expected, *torch.autograd.grad(expected, inputs, dy.double())
    # As in the moments, few columns are rounded; what is whitened most is changed most by it.
    columns = x[0].numel() // g
    allowed = tolerance(dtype, result=True) * (2 if columns >= 4 else 4)
    for at_once in (True, False):
        multiprocessors = shape[0] if at_once else 2 * shape[0]
        monkeypatch.setattr(tiling, "multiprocessors", lambda device: multiprocessors)  # noqa: B023
        assert tiling.at_once(x) == at_once
        y, *matrices = kernels.forward(x, g, weight, bias, 3, EPS)
        actual = y, *kernels.backward(dy, x, weight, *matrices, 3)
        for a, e, like in zip(actual, expected, (x, x, weight, bias), strict=True):
            assert a.dtype == like.dtype and a.stride() == like.stride()
            assert relative_error(a, e.detach()) < allowed


def test_parameters_on_another_device_are_an_error():
    x, elsewhere = random(2, 12, 4, 5).float(), torch.empty(12, device="meta")
    for weight, bias in ((elsewhere, None), (None, elsewhere)):
        with pytest.raises(RuntimeError, match=f"input is on {DEVICE}.*, weight or bias on meta"):
            kernels.forward(x, 6, weight, bias, 5, EPS)


def test_one_program_takes_small_samples_of_which_there_are_enough(monkeypatch):
    monkeypatch.setattr(tiling, "multiprocessors", lambda device: 132)
    assert tiling.at_once(torch.empty(512, 256, 7, 7))
    assert tiling.at_once(torch.empty(116, 256, 14, 14))
    assert not tiling.at_once(torch.empty(115, 256, 14, 14))
    assert not tiling.at_once(torch.empty(256, 64, 56, 56))


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, torch.channels_last])
def test_without_an_affine_weight_is_1_and_bias_0(memory_format):
    x, dy = (laid_out(random(2, 12, 3, 5, seed=s), torch.float32, memory_format) for s in (0, 1))
    mean, w = random(2, 6, 1, seed=2).float(), random(2, 6, 6, seed=3).float()
    ones, zeros = torch.ones(12, device=DEVICE), torch.zeros(12, device=DEVICE)
    assert torch.equal(
        kernels.whiten(x, mean, w, None, None), kernels.whiten(x, mean, w, ones, zeros)
    )
    for without, with_ones in zip(
        kernels.reduce(dy, x, mean, w, None), kernels.reduce(dy, x, mean, w, ones), strict=True
    ):
        assert torch.equal(without, with_ones)
    arguments = dy, x, mean, mean, w, w
    assert torch.equal(
        kernels.input_gradient(*arguments, None), kernels.input_gradient(*arguments, ones)
    )


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, torch.channels_last])
def test_a_gradient_that_lies_otherwise_than_the_input_is_read_rightly(memory_format):
    x = laid_out(random(2, 8, 4, 5), torch.float32, memory_format)
    mean, w = random(2, 4, 1, seed=1).float(), random(2, 4, 4, seed=2).float()
    dy = random(2, 8, 4, 5, seed=3).float()
    for other in (dy.to(memory_format=torch.channels_last), dy.mT.contiguous().mT, dy[:, :, :1]):
        other = other.expand_as(x)
        same = laid_out(other, torch.float32, memory_format)
        for a, e in zip(
            kernels.reduce(other, x, mean, w, None),
            kernels.reduce(same, x, mean, w, None),
            strict=True,
        ):
            assert torch.equal(a, e)
        a, e = (kernels.input_gradient(t, x, mean, mean, w, w, None) for t in (other, same))
        assert torch.equal(a, e)


def test_channels_cut_out_of_more_are_read_where_they_lie():
    x = random(2, 24, 4, 5).float()[:, 3:15]
    assert kernels.covers(x, 6)
    for a, e in zip(
        kernels.moments(x, 6, EPS), kernels.moments(x.contiguous(), 6, EPS), strict=True
    ):
        assert torch.equal(a, e)


@pytest.mark.parametrize("offset", [1e3, 1e4])
@pytest.mark.parametrize("name", ["odd, channels_last", "divided among programs"])
def test_a_mean_that_is_large_against_the_deviation_costs_no_accuracy(name, offset):
    shape, g, memory_format = SHAPES[name]
    x = laid_out(random(*shape) + offset, torch.float32, memory_format)
    covariance = kernels.moments(x, g, 0.0)[1]
    centred = groups_of(x, g)
    centred = centred - centred.mean(2, keepdim=True)
    assert relative_error(covariance, centred @ centred.mT / centred.shape[2]) < 1e-5


@pytest.mark.parametrize("shape, g", [((2, 6, 1, 1), 6), ((2, 6), 6), ((2, 6, 4, 3), 6)])
def test_a_constant_group_has_no_variance(shape, g):
    x = random(*shape[:2]).float().view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
    mean, covariance, *_ = kernels.moments(x.contiguous(), g, 0.0)
    assert torch.equal(mean[:, :, 0], x.flatten(2)[:, :, 0] if x.dim() > 2 else x)
    assert not covariance.any()


def test_a_sample_that_is_not_finite_spoils_no_other():
    x = random(3, 8, 5, 5).float()
    x[1, 0, 0, 0] = torch.nan
    mean, covariance, *_ = kernels.moments(x, 4, EPS)
    w = kernels.newton(covariance, 5)
    y = kernels.whiten(x, mean, w, None, None)
    assert y[1].isnan().all() and y[0].isfinite().all() and y[2].isfinite().all()


def test_the_same_sums_come_out_every_time():
    x, dy = random(2, 1, 12, 30, 20).float()
    mean, covariance, *_ = kernels.moments(x, 12, EPS)
    first, second = (
        (*kernels.moments(x, 12, EPS)[:2], *kernels.reduce(dy, x, mean, covariance, None))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# (matrices, groups, iterations), and whether TF32 is allowed. The kernels leave the last two to
# PyTorch, which is not to round them.
NEWTON = [(2, 16, t) for t in (0, 1, 2, 3, 5, 7)] + [(1, 2, 5), (5, 40, 0), (5, 40, 2), (3, 64, 5)]
NEWTON = [(*case, tf32) for case in NEWTON for tf32 in (False, True)]
NEWTON += [(1, 70, 3, False), (1, 16, 8, False)]


@pytest.mark.parametrize("n, g, iterations, tf32", NEWTON)
def test_newtons_iteration_and_its_gradient_equal_the_papers_definition(n, g, iterations, tf32):
    factors = random(n, g, 2 * g).cpu() * torch.logspace(0, -1, g).view(-1, 1)
    sigma, grad_w = (factors @ factors.mT).requires_grad_(), random(n, g, g, seed=1).cpu()
    w = torch.stack([textbook.inverse_sqrt(s, iterations) for s in sigma])
    (gradient,) = torch.autograd.grad(w, sigma, grad_w)
    gradient = (gradient + gradient.mT) / 2
    sigma, grad_w = (t.detach().float().to(DEVICE) for t in (sigma, grad_w))
    with tf32_allowed(tf32):
        actual_w = kernels.newton(sigma, iterations)
        actual_gradient = kernels.newton_backward(sigma, actual_w, grad_w, iterations)
    assert relative_error(actual_w.cpu(), w.detach()) < 1e-5
    assert relative_error(actual_gradient.cpu(), gradient) < 1e-5


def test_steps_beyond_what_float32_resolves_are_left_out():
    sigma = torch.eye(2, device=DEVICE)[None]
    assert torch.equal(kernels.newton(sigma, 1000), kernels.newton(sigma, 19))
    arguments = sigma, sigma, sigma
    assert torch.equal(
        kernels.newton_backward(*arguments, 1000), kernels.newton_backward(*arguments, 19)
    )


def test_a_zero_covariance_is_taken_to_have_trace_1():
    zero = torch.zeros(1, 3, 3, device=DEVICE)
    w = kernels.newton(zero, 5)
    torch.testing.assert_close(w, 1.5**5 * torch.eye(3, device=DEVICE)[None])
    assert kernels.newton_backward(zero, w, w, 5).isfinite().all()


@pytest.fixture
def triton_only(monkeypatch):
    """Group Whitening by the kernels, or not at all."""
    for name in ("moments", "whiten", "reduce", "input_gradient", "newton", "newton_backward"):
        monkeypatch.delattr(passes, name)
    set_backend("triton")
    yield
    set_backend(None)


@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"method": "zca"}])
@pytest.mark.parametrize("name", FEW)
def test_group_whitening_and_its_gradients_equal_the_papers_definition(name, options, triton_only):
    shape, g, memory_format = SHAPES[name]
    results = []
    for function, dtype in ((group_whitening, torch.float32), (textbook.group_whitening, float64)):
        x, dy = (laid_out(random(*shape, seed=s), dtype, memory_format) for s in (0, 1))
        weight, bias = random(2, shape[1], seed=2).to(dtype)
        inputs = [t.cpu() if dtype == float64 else t for t in (x, weight, bias)]
        inputs = [t.detach().requires_grad_() for t in inputs]
        y = function(inputs[0], g, *inputs[1:], eps=1e-3, **options)
        gradients = torch.autograd.grad(y, inputs, dy.to(y.device))
        results.append([t.detach().cpu() for t in (y, *gradients)])
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4, 1e-6])
@pytest.mark.parametrize("size", [1, 3])
def test_output_and_gradient_of_a_finite_input_are_finite(value, size, triton_only):
    x = torch.full((1, 8, size, size), value, device=DEVICE)
    x[0, 0, 0, 0] += value
    x.requires_grad_()
    y = group_whitening(x, 8, eps=0.0)
    y.backward(random(*x.shape).float())
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_what_is_not_covered_is_left_to_pytorch():
    x = random(2, 12, 4, 5).float()
    assert kernels.covers(x, 6)
    assert kernels.covers(x.half(), 6)
    assert kernels.covers(x.bfloat16().to(memory_format=torch.channels_last), 6)
    assert kernels.covers(x[:, :, 0, 0].contiguous(), 6)
    assert not kernels.covers(x.double(), 6)
    assert not kernels.covers(x[:0], 6)
    assert not kernels.covers(x[:, :, :0], 6)
    assert not kernels.covers(x, 1)
    assert not kernels.covers(random(1, 65, 2).float(), 65)
    assert not kernels.covers(x.mT, 6)
    assert not kernels.covers(x[..., ::2], 6)
    assert not kernels.covers(x[:, :, :2, :2], 6)
    assert not kernels.covers(random(2, 5, 12).float().mT, 6)
    assert not kernels.covers(x[:, :1].expand(2, 12, 4, 5), 6)
    if DEVICE == "cpu":  # where the interpreter is all that asks for data
        assert not kernels.covers(torch.empty(1, 64, 2**13, 2**13, device="meta"), 64)


def test_an_input_that_is_not_covered_is_computed_all_the_same():
    x = random(2, 12, 4, 5)
    expected = group_whitening(x, 6)
    set_backend("triton")
    try:
        assert torch.equal(group_whitening(x, 6), expected)
        assert group_whitening(x[:0], 6).shape == (0, 12, 4, 5)
    finally:
        set_backend(None)


KERNELS = {
    f"{name}_kernel"
    for name in (
        "moments", "add_shares", "whiten", "newton", "forward",
        "reduce", "add_gradients", "input_gradient", "newton_backward", "backward",
    )
}  # fmt: skip
WITH_NEWTONS_GRADIENT = ("newton_backward_kernel", "add_gradients_kernel", "backward_kernel")
QUICK = [
    ["--groups=64", "--dtype=float32"],
    ["--groups=64", "--dtype=bfloat16", "--tf32", "--channels-last"],
]
ALL = [
    [f"--groups={groups}", f"--dtype={kind}", f"--places={places}", layout]
    for groups in (16, 32, 61, 64)
    for kind in ("float32", "float32 --tf32", "float16", "bfloat16")
    for places in (1, 3, 8, 64)
    for layout in ("", "--channels-last")
]


@pytest.mark.parametrize(
    "arguments", QUICK + [pytest.param(a, marks=pytest.mark.slow) for a in ALL], ids=" ".join
)
def test_every_kernel_compiles_for_an_h100_and_hardly_spills(arguments, tmp_path):
    command = [sys.executable, "-m", "tests.layers.compiled_kernels", *" ".join(arguments).split()]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    of_half_types_only = {"backward_kernel"} if "float32" in " ".join(arguments) else set()
    assert {figures["kernel"] for figures in kernels} == KERNELS - of_half_types_only
    for figures in kernels:
        # Newton's gradient fills the registers: what is needed before and after it is spilled
        most = 352 if figures["kernel"] in WITH_NEWTONS_GRADIENT else 128
        assert figures["spilled bytes a thread"] <= most, figures
        assert figures["shared bytes"] < 227 * 1024, figures


class FakeKernel:
    """
    A kernel in the place of Triton's: what it is launched with, at first with options by name; and
    in the place of what that compiles, what this is run with.
    """

    __name__ = "_a_kernel"
    arg_names = ["x", "y", "number", "FIRST", "SECOND"]
    function, packed_metadata = "function", "metadata"

    def __init__(self):
        self.launches, self.runs = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches.append((grid, *arguments, options))
            return self

        return launch

    def run(self, *arguments):
        self.runs.append(arguments)


@pytest.fixture
def fake_kernel(monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    monkeypatch.setattr(launch, "_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    return FakeKernel()


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU real kernels show it")
def test_triton_looks_at_tensors_until_they_are_aligned(fake_kernel):
    run = launch.Launch(fake_kernel, 7, 0.5, SECOND=2, num_warps=4, FIRST=1)
    x = torch.zeros(64)
    options = {"SECOND": 2, "num_warps": 4, "FIRST": 1}
    for tensor in (x[1:], x, x[4:], x[1:]):  # of which the third is aligned again
        run(tensor, None)
    assert [(grid, t.data_ptr(), *rest) for grid, t, *rest in fake_kernel.launches] == [
        ((7,), tensor.data_ptr(), None, 0.5, options) for tensor in (x[1:], x, x[1:])
    ]
    handles, no_hooks = ("function", "metadata"), (None, None, None)
    arguments = x[4:].data_ptr(), None, 0.5, 1, 2
    assert fake_kernel.runs == [(7, 1, 1, "stream", *handles, *no_hooks, *arguments)]


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU real kernels show it")
@pytest.mark.skipif(not shutil.which("gcc"), reason="Triton's launcher needs gcc")
def test_tritons_launcher_hands_the_driver_the_same_at_every_launch(tmp_path):
    command = [sys.executable, "-m", "tests.layers.empty_driver", tmp_path]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    addresses, *launches = result.stdout.splitlines()
    assert launches == 2 * [f"7 1 1: {addresses} -3 0.5"]


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU real kernels show it")
def test_a_kernel_that_fails_at_its_first_launch_cannot_be_compiled(fake_kernel, monkeypatch):
    def fails(self, grid):
        raise RuntimeError("PassManager::run failed\nand a long report")

    monkeypatch.setattr(FakeKernel, "__getitem__", fails)
    with pytest.raises(CannotCompile, match="^_a_kernel fails: PassManager::run failed$"):
        launch.Launch(fake_kernel, 1)(torch.zeros(1))
