import pytest

pytest.importorskip("detectron2")

import torch
from torch import nn

from gw_detectron.benchmark.textbook import TextbookGroupWhitening
from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from tests.layers import textbook


@pytest.mark.parametrize("shape", [(2, 12, 5, 3), (3, 12), (1, 4, 7)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_the_definition_and_so_is_its_gradient(shape, affine):
    torch.manual_seed(0)
    layer = GroupWhitening(shape[1], num_groups=6, iterations=4, eps=1e-2, affine=affine).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    sources = [x]
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        sources += [layer.weight, layer.bias]
    y = TextbookGroupWhitening(layer)(x)
    expected = textbook.group_whitening(x, 6, layer.weight, layer.bias, iterations=4, eps=1e-2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y, sources, dy), torch.autograd.grad(expected, sources, dy)
    )


@pytest.mark.parametrize("options", [{"method": "zca"}, {"rescale": True}])
def test_what_it_does_not_have_is_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        TextbookGroupWhitening(GroupWhitening(8, num_groups=4, **options))
