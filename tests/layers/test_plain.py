"""The layer where PyTorch writes a model down, or copies it."""

import copy
import io
import pickle

import pytest
import torch

from gw_detectron.layers import GroupWhitening

OPTIONS = [
    {},
    {"rescale": True},
    {"method": "zca", "eps": 1e-2},
    {"affine": False},
    {"iterations": 9},
]
OTHER_SHAPES = [(3, 32, 9, 4), (1, 32, 1, 1), (0, 32, 7, 7)]


def layer_of(options):
    layer = GroupWhitening(32, 8, **options)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


def assert_same(layer, other, shapes=OTHER_SHAPES, device="cpu"):
    for shape in shapes:
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(other(x), layer(x), rtol=1e-4, atol=1e-5)


def operators_of_the_package(graph):
    return [str(n.target) for n in graph.nodes if "gw_detectron" in str(n.target)]


@pytest.mark.parametrize("options", OPTIONS)
def test_scripted_it_is_saved_and_loaded_without_this_package(options, device):
    layer = layer_of(options).to(device)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "gw_detectron::" not in str(loaded.inlined_graph)
    # On a GPU TorchScript's own fuser fails with "Global alloc not supported yet" (PyTorch 2.11).
    with torch.jit.optimized_execution(device == "cpu"):
        assert_same(layer, loaded, device=device)


@pytest.mark.parametrize("options", OPTIONS)
def test_traced_it_takes_other_sizes(options, device):
    layer = layer_of(options).to(device)
    traced = torch.jit.trace(layer, torch.randn(2, 32, 5, 6, device=device))
    assert "gw_detectron::" not in str(traced.inlined_graph)
    assert_same(layer, traced, device=device)


@pytest.mark.parametrize("options", OPTIONS)
def test_exported_it_takes_other_sizes_and_holds_no_operator_of_this_package(options, device):
    layer = layer_of(options).to(device)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    x = torch.randn(2, 32, 5, 6, device=device)
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,))
    if hasattr(torch.compiler, "is_exporting"):  # before PyTorch 2.7 the layer can't know
        assert not operators_of_the_package(program.graph)
    assert_same(layer, program.module(), [(3, 32, 9, 4), (4, 32, 2, 3)], device)


@pytest.mark.parametrize("sides", [{2: "h", 3: "w"}, {2: None}, {3: None}, {0: "n"}])
def test_exported_behind_a_strided_convolution_it_takes_other_sizes(sides):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, stride=2, padding=1), layer_of({}))
    Dim = torch.export.Dim
    sizes = {axis: Dim(name, min=3) if name else Dim.AUTO for axis, name in sides.items()}
    program = torch.export.export(net, (torch.randn(3, 3, 32, 40),), dynamic_shapes=(sizes,))
    for added in (2, 7):
        shape = [size + added * (axis in sides) for axis, size in enumerate((3, 3, 32, 40))]
        assert_same(net, program.module(), [shape])


def test_to_fx_it_is_one_node():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), GroupWhitening(32, 8), torch.nn.ReLU())
    traced = torch.fx.symbolic_trace(net)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), net(x))
    calls = [node.name for node in traced.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), net(x))


@pytest.mark.parametrize("options", OPTIONS)
def test_autograd_differentiates_what_is_exported_as_the_layer_differentiates_itself(
    options, device
):
    options = {"eps": 1e-3} | options
    layer = layer_of(options).to(device, torch.float64)
    scripted = torch.jit.script(layer)
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64, device=device)
    dy = torch.randn_like(x)
    gradients = []
    for function in (layer, scripted):
        x = x.detach().requires_grad_()
        gradients.append(torch.autograd.grad(function(x), (x, *function.parameters()), dy))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: None]
)
def test_copies_compute_the_same_bits(copied):
    layer = layer_of({"rescale": True, "iterations": 3})
    other = copied(layer)
    if other is None:
        other = GroupWhitening(32, 8, rescale=True, iterations=3)
        other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 32, 6, 6)
    assert torch.equal(other(x), layer(x))
    assert repr(other) == repr(layer)


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_half_precision_parameters_are_taken(convert, device):
    layer, exact = layer_of({}).to(device), layer_of({}).to(device)
    exact.load_state_dict(convert(layer).state_dict())
    x = torch.randn(2, 32, 6, 6, device=device).to(layer.weight.dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == layer.weight.dtype
    resolution = torch.finfo(x.dtype).eps * (1 if device == "cpu" else 4)  # there W is in TF32
    torch.testing.assert_close(
        y.float(), exact(x.detach().float()), rtol=resolution, atol=resolution
    )


def test_in_another_memory_format_it_computes_the_same(device):
    layer = layer_of({}).to(device)
    x = torch.randn(2, 32, 6, 6, device=device)
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    actual = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"iterations": 2}, {"affine": False}])
def test_in_onnx_it_is_standard_operators_and_takes_other_sizes(options):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    layer = layer_of(options)
    file = io.BytesIO()
    sizes = {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(
        layer,
        (torch.randn(2, 32, 5, 6),),
        file,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=sizes,
        opset_version=17,
        dynamo=False,
    )
    assert {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node} == {""}
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    run = lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])  # noqa: E731
    assert_same(layer, run, [(2, 32, 5, 6), (3, 32, 9, 4), (1, 32, 8, 8)])
