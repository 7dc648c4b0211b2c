"""What only a GPU shows of the layer, with each backend."""

import pytest
import torch
from torch import nn

from gw_detectron.layers import GroupWhitening

from .conftest import DEVICES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize("device", DEVICES[1:], indirect=True),
    pytest.mark.usefixtures("device"),
]
MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]
OPTIONS = [{}, {"rescale": True}]


class Step:
    """A forward and a backward pass of a layer, on inputs that stay where they are."""

    def __init__(self, memory_format=torch.contiguous_format, dtype=torch.float32, **options):
        self.layer = GroupWhitening(128, num_groups=64, **options).cuda()
        self.x, self.dy = (
            torch.empty(2, 128, 28, 44, device="cuda", dtype=dtype, memory_format=memory_format)
            for _ in range(2)
        )
        self.x.requires_grad_()
        self.renew(seed=0)

    @torch.no_grad()
    def renew(self, seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        for tensor in (self.x, self.dy, *self.layer.parameters()):
            tensor.normal_(generator=generator)

    def __call__(self):
        """(y, dx, dweight, dbias)."""
        y = self.layer(self.x)
        gradients = torch.autograd.grad(y, (self.x, *self.layer.parameters()), self.dy)
        return y.detach(), *gradients


def assert_near(actual, expected, tolerance=1e-6):
    for a, e in zip(actual, expected, strict=True):
        assert e.isfinite().all()
        assert (a - e).norm() <= tolerance * e.norm()


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_host_never_waits(memory_format, dtype, options):
    step = Step(memory_format, dtype, **options)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("options", OPTIONS)
def test_captured_in_a_graph_it_computes_what_it_computes_without(memory_format, options):
    step = Step(memory_format, **options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (1, 2):
        step.renew(seed)
        graph.replay()
        torch.cuda.synchronize()
        assert_near(results, step())


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_on_another_stream_it_waits_for_that_stream_alone(memory_format):
    step = Step(memory_format)
    expected = step()
    x = step.x.detach().clone()
    matrix, side = torch.zeros(4096, 4096, device="cuda"), torch.cuda.Stream()
    with torch.no_grad():
        step.x.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for _ in range(20):  # some 50 ms, in which the host is far ahead
                matrix = matrix @ matrix
            step.x.copy_(x)
    with torch.cuda.stream(side):
        results = step()
    side.synchronize()
    assert_near(results, expected)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_programs_leave_to_the_last_of_them_is_complete(memory_format, dtype):
    """Two inputs take turns in the same memory, where what is read too early is of the other."""
    steps = [Step(memory_format, dtype) for _ in range(2)]
    steps[1].renew(seed=1)
    expected = [step() for step in steps]
    differs = torch.zeros((), dtype=torch.bool, device="cuda")
    for _ in range(300):
        for step, results in zip(steps, expected, strict=True):
            for a, e in zip(step(), results, strict=True):
                differs |= (a != e).any()
    assert not differs


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_deterministic_algorithms_it_gives_the_same_every_time(memory_format, dtype):
    step = Step(memory_format, dtype)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = step(), step()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 64, 3, bias=False),
        GroupWhitening(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 8, 1),
    ).cuda()


def test_compiled_in_a_network_it_is_one_graph_and_computes_the_same():
    torch.compiler.reset()
    net = network()
    compiled = torch.compile(net, fullgraph=True)
    x = torch.randn(2, 16, 20, 30, device="cuda", requires_grad=True)
    results = []
    for function in (net, compiled):
        y = function(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *net.parameters()))
        results.append((y.detach(), *gradients))
    assert_near(results[1], results[0], tolerance=1e-4)


def test_under_nccl_gradients_are_those_of_a_process_without():
    net = network()
    x = torch.randn(2, 16, 9, 11, device="cuda")
    expected = torch.autograd.grad(net(x).square().sum(), net.parameters())
    distributed = torch.distributed
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(net, device_ids=[0])
        model(x).square().sum().backward()
        torch.cuda.synchronize()
    finally:
        distributed.destroy_process_group()
    assert_near([p.grad for p in net.parameters()], expected, tolerance=1e-4)
