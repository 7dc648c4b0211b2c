import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.cost import extra_bytes, extra_flops

from ..layers.textbook import group_whitening


def test_by_hand():
    # 64 groups on 256 x 7 x 7: X X^T and W X have 64 * 64 * 196 products each
    assert extra_flops(256, 49, 64, 5) == 2 * 802_816 + 12 * 262_144
    assert extra_flops(256, 49, 64, 5, rescale=True) == 2 * 802_816 + 13 * 262_144
    assert extra_flops(256, 49, 64, None) == 2 * 802_816 + 5.5 * 262_144
    assert extra_flops(8, 1, 2, 0) == extra_flops(8, 1, 2, 1) == 32


@pytest.mark.parametrize("iterations", [1, 5])
def test_it_is_what_the_textbook_multiplies(iterations):
    with FlopCounterMode(display=False) as counter:
        group_whitening(torch.randn(1, 32, 9), 8, iterations=iterations)
    # there a step has three products of g x g matrices from the first one on
    cube = 8**3
    in_first_step = 3 * cube
    assert counter.get_total_flops() == 2 * (extra_flops(32, 9, 8, iterations) + in_first_step)


@pytest.mark.parametrize("method", ["itn", "zca"])
def test_bytes_are_those_kept_for_the_backward(method):
    x = torch.randn(3, 32, 5, 5, requires_grad=True)
    of_gw = kept_bytes(GroupWhitening(32, 8, method=method), x)
    of_gn = kept_bytes(torch.nn.GroupNorm(8, 32), x)
    assert of_gw - of_gn == 3 * extra_bytes(8, method)


def kept_bytes(layer, x):
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr(), tensor.shape] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())
