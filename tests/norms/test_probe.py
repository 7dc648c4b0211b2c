import pytest
import torch
from torch import nn

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.probe import kind_of, watch_next_pass, watching


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

    def __init__(self):
        super().__init__()
        self.module = Shared()

    def forward(self, x):
        return self.module(x)


LEVELS = [torch.randn(2, 4, 3, 5), torch.randn(0, 4, 2, 2)]
CALLS = [
    ("conv", "GW", (2, 4, 3, 5)),
    ("last", "LN", (2, 3, 5, 4)),
    ("conv", "GW", (0, 4, 2, 2)),
    ("last", "LN", (0, 2, 2, 4)),
]


@pytest.mark.parametrize("model", [Shared(), Wrapper()], ids=["alone", "wrapped"])
def test_every_call_is_looked_at_as_long_as_it_is_watched(model):
    seen = []

    def look(name, norm, x, y):
        assert torch.equal(norm.forward(x), y)
        seen.append((name, kind_of(norm), tuple(x.shape)))

    with watching(model, look):
        model(LEVELS)
    model(LEVELS)
    assert seen == CALLS

    watch_next_pass(model, look, lambda: seen.append("done"))
    for _ in range(2):
        model(LEVELS)
    assert seen == [*CALLS, *CALLS, "done"]
    assert not any(module._forward_hooks for module in model.modules())
