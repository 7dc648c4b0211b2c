"""Group Whitening as an operator: what torch.compile and the dispatcher are promised of it."""

import re

import pytest
import torch

from gw_detectron.layers import GroupWhitening, backend, group_whitening, passes, set_backend


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


OPTIONS = [{}, {"rescale": True}, {"method": "zca"}, {"affine": False}]


def output_and_gradients(layer, function, x):
    x = x.detach().clone().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))


@pytest.mark.parametrize("options", OPTIONS)
def test_it_keeps_what_its_schema_and_its_fake_implementation_promise(options):
    layer = GroupWhitening(12, 4, **options)
    options = layer.num_groups, layer.iterations, layer.eps, layer.method, layer.rescale
    for x in (
        torch.randn(2, 12, 5, 3, requires_grad=True),
        torch.randn(2, 12, 5, 3, dtype=torch.bfloat16),
        torch.randn(2, 12, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(0, 12, 7, 7),
    ):
        operator = torch.ops.gw_detectron.group_whitening.default
        torch.library.opcheck(operator, (x, layer.weight, layer.bias, *options))


@pytest.mark.parametrize("options", OPTIONS)
def test_compiled_it_is_one_graph_and_computes_the_same(options):
    layer = GroupWhitening(32, 8, **options)
    # Ahead-of-time autograd without code generation, which would need a C++ compiler
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for shape in ((2, 32, 5, 6), (3, 32, 9, 4), (1, 32, 1, 1)):
        x = torch.randn(shape)
        for a, b in zip(
            output_and_gradients(layer, compiled, x),
            output_and_gradients(layer, layer, x),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_compiled_inside_a_network_under_autocast_it_is_one_graph():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), GroupWhitening(16, 8), torch.nn.ReLU(inplace=True)
    )
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = net(x), compiled(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_a_backend_is_chosen_by_name(monkeypatch):
    x = torch.randn(2, 16, 4, 4)
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton, not 'cuda'"):
        set_backend("cuda")
    monkeypatch.setenv("GW_BACKEND", "fast")
    with pytest.raises(ValueError, match="GW_BACKEND must be one of auto, .*, not 'fast'"):
        group_whitening(x)
    set_backend("torch")
    try:
        group_whitening(x)
    finally:
        set_backend(None)


@pytest.mark.parametrize("version", ["2.3.1", "3.3.1", "3.3.1+git"])
def test_a_triton_that_cannot_compile_the_kernels_is_refused(monkeypatch, version):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    backend._reason_against_triton.cache_clear()
    try:
        with pytest.raises(ValueError, match=f"need Triton 3.4, and {re.escape(version)} is inst"):
            set_backend("triton")
    finally:
        backend._reason_against_triton.cache_clear()


def test_torch_func_differentiates_it_as_autograd_does():
    x, direction = torch.randn(2, 2, 8, 3, 3, dtype=torch.float64)
    weight = torch.rand(8, dtype=torch.float64)

    def loss(x):
        return group_whitening(x, 4, weight).pow(3).sum()

    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), expected)
    _, derivative = torch.func.jvp(loss, (x,), (direction,))
    torch.testing.assert_close(derivative, (expected * direction).sum())
    one_by_one = torch.func.vmap(lambda x: group_whitening(x[None], 4, weight)[0])(x)
    torch.testing.assert_close(one_by_one, group_whitening(x, 4, weight))


def test_without_torch_func_forward_mode_is_refused():
    forward_ad = torch.autograd.forward_ad
    x = torch.randn(2, 8, 3, 3)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        group_whitening(forward_ad.make_dual(x, torch.ones_like(x)), 4)


def test_by_default_pytorch_computes_what_lies_on_a_cpu(monkeypatch):
    monkeypatch.delenv("GW_BACKEND", raising=False)
    assert backend.backend_for(torch.randn(2, 16, 4, 4), 8) is passes


class FailingKernels:
    """In the place of Triton's, which cannot be compiled."""

    def __getattr__(self, name):
        raise backend.CannotCompile("_moments_kernel fails: PassManager::run failed")


def test_what_triton_cannot_compile_pytorch_computes_from_then_on(monkeypatch):
    x = torch.randn(2, 16, 4, 4)
    expected = group_whitening(x)
    asked = []

    def backend_for(x, num_groups):
        asked.append(x)
        return FailingKernels() if not backend._triton_fails else passes

    monkeypatch.setattr(backend, "_triton_fails", False)
    monkeypatch.setattr(backend, "backend_for", backend_for)
    with pytest.warns(UserWarning, match="without Triton's kernels: _moments_kernel fails"):
        assert torch.equal(group_whitening(x), expected)
    assert torch.equal(group_whitening(x), expected) and backend._triton_fails
    monkeypatch.setattr(backend, "_triton_fails", False)
    monkeypatch.setenv("GW_BACKEND", "triton")
    with pytest.raises(backend.CannotCompile, match="PassManager"):
        group_whitening(x)
