"""
What holds for every input, on inputs that hypothesis makes up; on a GPU in PyTorch alone, since
for inputs of so many kinds most of the time would be compiling.
"""

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from gw_detectron.layers import group_whitening

from .conftest import DEVICES

in_pytorch = pytest.mark.parametrize("device", DEVICES[:2], indirect=True)
# The device stays the same from example to example
settings.register_profile(
    "ours", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ours")

# The strength of a group of inputs, and what is done to it, in powers of ten
SCALES = st.integers(-8, 8).map(lambda power: 10.0**power)
OFFSETS = st.sampled_from([0.0, 1.0, -30.0, 1e3])
METHODS = st.sampled_from([{}, {"rescale": True}, {"method": "zca"}, {"iterations": 12}])
FLAWS = st.sampled_from(
    ["none", "constant channel", "duplicated channels", "hot pixel", "all equal"]
)


@st.composite
def groupings(draw):
    """(number of groups, channels a group, spatial shape)."""
    spatial = draw(st.lists(st.integers(1, 7), min_size=0, max_size=3))
    return draw(st.integers(1, 12)), draw(st.integers(1, 3)), tuple(spatial)


@st.composite
def inputs(draw, dtypes=(torch.float32,), scales=SCALES, offsets=OFFSETS, flaws=FLAWS):
    """(x, number of groups)."""
    g, c, spatial = draw(groupings())
    shape = (draw(st.integers(1, 3)), g * c, *spatial)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + draw(offsets)
    flaw = draw(flaws)
    if flaw == "constant channel":
        x[:, 0] = 1.0
    elif flaw == "duplicated channels":
        x[:, 1:] = x[:, :1]
    elif flaw == "hot pixel":
        x.view(shape[0], -1)[:, 0] = 1e4
    elif flaw == "all equal":
        x.fill_(0.3)
    x = (x * draw(scales)).to(draw(st.sampled_from(dtypes)))
    if len(spatial) == 2 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    elif spatial and draw(st.booleans()):
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    return x, g


def groups_of(x, g):
    return x.double().reshape(len(x), g, -1)


@in_pytorch
@settings(max_examples=100)
@given(inputs(dtypes=(torch.float32, torch.bfloat16, torch.float64)), METHODS)
def test_output_and_gradient_are_finite_for_every_finite_input(device, x_and_g, options):
    x, g = x_and_g
    x = x.to(device).detach().requires_grad_()
    y = group_whitening(x, g, **options)
    y.backward(torch.ones_like(y).uniform_(-1, 1))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert y.isfinite().all() and x.grad.isfinite().all()


@in_pytorch
@settings(max_examples=100)
@given(inputs(dtypes=(torch.float64,)), st.integers(0, 9))
def test_no_direction_comes_out_with_more_than_unit_variance(device, x_and_g, iterations):
    """p_T(l)^2 l <= 1 for every share l of the trace, in the paper's Newton iteration as in ZCA."""
    x, g = x_and_g
    for options in ({"iterations": iterations}, {"method": "zca"}):
        y = groups_of(group_whitening(x.to(device), g, **options), g).cpu()
        y = y - y.mean(-1, keepdim=True)
        eigenvalues = torch.linalg.eigvalsh(y @ y.mT / y.shape[-1])
        assert eigenvalues.min() >= -1e-9
        assert eigenvalues.max() <= 1 + 1e-6


@in_pytorch
@settings(max_examples=40)
@given(inputs(dtypes=(torch.float64,), scales=st.just(1.0), flaws=st.just("none")), METHODS)
def test_a_constant_added_to_a_group_changes_nothing(device, x_and_g, options):
    x, g = x_and_g
    shift = torch.linspace(-2, 3, g, dtype=x.dtype).repeat_interleave(x.shape[1] // g)
    shifted = x + shift.view(1, -1, *[1] * (x.dim() - 2))
    actual, expected = (group_whitening(t.to(device), g, eps=1e-2, **options) for t in (shifted, x))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@in_pytorch
@settings(max_examples=40)
@given(inputs(dtypes=(torch.float64,), scales=st.just(1.0), flaws=st.just("none")), METHODS, SCALES)
def test_scaling_the_input_changes_nothing_but_eps(device, x_and_g, options, scale):
    x, g = x_and_g
    x = x.to(device)
    actual = group_whitening(x * scale, g, eps=1e-2 * scale**2, **options)
    expected = group_whitening(x, g, eps=1e-2, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@in_pytorch
@settings(max_examples=40)
@given(
    inputs(dtypes=(torch.float64,), scales=st.just(1.0), flaws=st.just("none")),
    METHODS,
    st.randoms(use_true_random=False),
)
def test_permuted_groups_come_out_permuted(device, x_and_g, options, random):
    x, g = x_and_g
    x = x.to(device)
    order = list(range(g))
    random.shuffle(order)
    permute = lambda t: t.unflatten(1, (g, -1))[:, order].flatten(1, 2)  # noqa: E731
    actual = group_whitening(permute(x), g, eps=1e-2, **options)
    expected = permute(group_whitening(x, g, eps=1e-2, **options))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@in_pytorch
@settings(max_examples=40)
@given(inputs(), METHODS, st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_what_is_not_finite_stays_in_its_own_sample(device, x_and_g, options, value):
    x, g = x_and_g
    x = torch.cat([x, x + 1, x])
    spoilt = x.to(device, copy=True)
    spoilt[(0,) + (-1,) * (x.dim() - 1)] = value
    spoilt.requires_grad_()
    y = group_whitening(spoilt, g, **options)
    y.backward(torch.ones_like(y))
    assert y[0].isnan().any()
    assert y[1:].isfinite().all() and spoilt.grad[1:].isfinite().all()


@in_pytorch
@settings(max_examples=40)
@given(inputs(), METHODS)
def test_a_sample_does_not_see_the_others_bit_for_bit(device, x_and_g, options):
    if device == "cuda" and options.get("method") == "zca":
        reject()  # cuSOLVER doesn't promise it
    x, g = x_and_g
    x = x.to(device)
    others = torch.randn_like(x) * 1e3
    first = group_whitening(torch.cat([x, others]), g, **options)[: len(x)]
    second = group_whitening(torch.cat([x, x.flip(0)]), g, **options)[: len(x)]
    assert torch.equal(first, second)


@pytest.fixture
def one_thread():
    """With several, BLAS may part a lone sample's sums among them and not a batch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(3, 64, 40, 30), (5, 256, 7, 7), (3, 128, 1, 1), (2, 512, 9)])
@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"method": "zca"}])
@pytest.mark.parametrize("num_groups", [4, 16, 64])
def test_a_sample_alone_comes_out_as_in_a_batch_bit_for_bit(shape, options, num_groups, one_thread):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    x[0] += 9
    weight, bias = torch.randn(2, shape[1], generator=generator)
    dy = torch.randn(shape, generator=generator)

    def output_and_gradient(x, dy):
        x = x.detach().requires_grad_()
        y = group_whitening(x, num_groups, weight=weight, bias=bias, **options)
        return y, *torch.autograd.grad(y, x, dy)

    in_batch = output_and_gradient(x, dy)
    alone = [output_and_gradient(x[n : n + 1], dy[n : n + 1]) for n in range(len(x))]
    for k, expected in enumerate(in_batch):
        assert torch.equal(torch.cat([results[k] for results in alone]), expected)


@pytest.mark.parametrize("shape", [(2, 64, 40, 30), (40, 64, 7, 7), (3, 128, 1, 1)])
def test_the_same_input_gives_the_same_bits(shape, device):
    torch.use_deterministic_algorithms(True)
    try:
        x = torch.randn(shape, requires_grad=True, device=device)
        dy = torch.randn(shape, device=device)
        runs = []
        for _ in range(2):
            y = group_whitening(x)
            runs.append((y, *torch.autograd.grad(y, x, dy)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
