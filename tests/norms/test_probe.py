import pytest
import torch
from torch import nn

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.probe import find_norms, kind_of, watch_next_pass, watching


class Shared(nn.Module):
    """A GW that two levels share, and norms that run in another order than they stand in."""

    def __init__(self):
        super().__init__()
        self.never, self.last = nn.BatchNorm2d(4), nn.LayerNorm(4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.conv.norm = GroupWhitening(4, 2)

    def forward(self, levels):
        return [self.last(self.conv.norm(level).movedim(1, -1)) for level in levels]


class Wrapper(nn.Module):
    """As DistributedDataParallel names what it wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.fixture(params=[lambda model: model, Wrapper], ids=["alone", "wrapped"])
def model(request):
    return request.param(Shared())


LEVELS = [torch.randn(2, 4, 3, 5), torch.randn(0, 4, 2, 2)]


def has_hooks(model):
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_norms_have_the_names_that_users_know(model):
    kinds = {name: kind_of(norm) for name, norm in find_norms(model).items()}
    assert kinds == {"never": "BN", "last": "LN", "conv": "GW"}


def test_every_call_is_looked_at_as_long_as_it_is_watched(model):
    seen = []

    def look(name, norm, x, y):
        assert torch.equal(norm.forward(x), y)
        seen.append((name, tuple(x.shape)))

    with watching(model, look):
        model(LEVELS)
    model(LEVELS)
    assert seen == [
        ("conv", (2, 4, 3, 5)),
        ("last", (2, 3, 5, 4)),
        ("conv", (0, 4, 2, 2)),
        ("last", (0, 2, 2, 4)),
    ]
    assert not has_hooks(model)


def test_the_next_pass_alone_is_watched(model):
    seen = []
    watch_next_pass(model, lambda name, *_: seen.append(name), lambda: seen.append("done"))
    for _ in range(2):
        model(LEVELS[:1])
    assert seen == ["conv", "last", "done"]
    assert not has_hooks(model)
