import copy

import detectron2.layers
import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_resnet_backbone
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from torch import nn
from torch.nn import functional as F

from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.modeling.weight_standardization import StandardizedConv2d

from .test_norm import PLACES, RESNET_FPN, config, small_fpn

# Places where Detectron2 makes the norm a module beside the convolution, not a part of it
APART = ("RegNet", "ViT's residual blocks", "ViT's feature pyramid", "RetinaNet head")


def conv_with(norm, **kwargs):
    return Conv2d(8, 32, 3, bias=False, norm=detectron2.layers.get_norm(norm, 32), **kwargs)


def backbone(builder, **keys):
    return BACKBONE_REGISTRY.get(builder)(config(**RESNET_FPN, **keys), ShapeSpec(channels=3))


def kinds(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_the_filters_that_convolve_have_mean_0_and_variance_1():
    conv = conv_with("GN+WS", stride=2, padding=1, activation=F.relu).double()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    filters = conv.weight.detach().numpy().reshape(32, -1)
    filters = (filters - filters.mean(1, keepdims=True)) / filters.std(1, keepdims=True)
    expected = F.conv2d(x, torch.from_numpy(filters).view(32, 8, 3, 3), stride=2, padding=1)
    expected = conv.norm(expected).relu()
    np.testing.assert_allclose(conv(x).detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_scaling_or_shifting_a_filter_changes_nothing():
    conv = conv_with("GW(num_groups=8)+WS").double()
    other = copy.deepcopy(conv)
    with torch.no_grad():
        other.weight.mul_(torch.rand(32, 1, 1, 1) + 0.5).add_(torch.randn(32, 1, 1, 1))
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(conv(x), other(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_it_is_where_detectron2_gives_the_norm_to_a_convolution(place):
    build, _ = PLACES[place]
    if place in APART:
        with pytest.raises(UsageError, match=r'"\+WS" in .* without \+WS$'):
            build("GN+WS")
        return
    with torch.device("meta"):
        model, plain = build("GN+WS"), build("GN")
    normed = {n for n, m in plain.named_modules() if isinstance(m, nn.GroupNorm)}
    assert {f"{name}.norm" for name in kinds(model, StandardizedConv2d)} == normed
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    "norm, kind", [("GN+WS", nn.GroupNorm), ("GW(num_groups=4) +WS ", GroupWhitening)]
)
def test_the_norm_is_the_one_before_the_suffix(norm, kind):
    conv = conv_with(norm)
    assert type(conv) is StandardizedConv2d and type(conv.norm) is kind


def test_a_norm_without_the_suffix_leaves_the_convolution_as_it_was():
    assert type(conv_with("GN")) is Conv2d
    assert type(conv_with("")) is Conv2d


@pytest.mark.parametrize(
    "norm, base, standardized",
    [("GW+WS", "BN", 1 + 8), ("GW", "BN+WS", 8 + 3), ("GW+WS", "BN+WS", 1 + 8 * 2 + 3)],
)
def test_at_the_positions_the_norms_own_name_decides(norm, base, standardized):
    keys = {"MODEL.RESNETS.NORM": norm, "MODEL.GW.BASE_NORM": base}
    resnet = backbone("build_gw_resnet_backbone", **keys)
    assert len(kinds(resnet, StandardizedConv2d)) == standardized
    assert isinstance(resnet.stem.conv1, StandardizedConv2d) == norm.endswith("+WS")


def test_freezing_batch_norm_keeps_the_filters_standardised():
    resnet = build_resnet_backbone(
        config(**RESNET_FPN, **{"MODEL.RESNETS.NORM": "BN+WS", "MODEL.BACKBONE.FREEZE_AT": 2}),
        ShapeSpec(channels=3),
    )
    assert isinstance(resnet.stem.conv1, StandardizedConv2d)
    assert isinstance(resnet.stem.conv1.norm, FrozenBatchNorm2d)


def test_a_constant_filter_gives_finite_output_and_gradient():
    conv = conv_with("GN+WS")
    nn.init.constant_(conv.weight, 0.1)
    y = conv(torch.randn(1, 8, 5, 5))
    y.sum().backward()
    assert y.isfinite().all() and conv.weight.grad.isfinite().all()


def test_under_autocast_the_filters_are_standardised_in_float32():
    conv = conv_with("GN+WS")
    nn.init.normal_(conv.weight, mean=1, std=1e-3)  # in bfloat16 almost all are 1
    x = torch.randn(1, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    torch.testing.assert_close(y.float(), conv(x), rtol=0.05, atol=0.05)


def test_a_traced_model_gives_the_same():
    fpn = small_fpn("GN+WS").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(fpn, x, strict=False)
        torch.testing.assert_close(traced(x), fpn(x))


@pytest.mark.parametrize(
    "norm, fragment",
    [("+WS", 'norm "+WS" has no norm'), ("GM+WS", 'unknown norm "GM"'), ("GN+W", '"GN+WS"')],
)
def test_a_wrong_name_is_one_line(norm, fragment):
    with pytest.raises(UsageError) as error:
        detectron2.layers.get_norm(norm, 32)
    assert fragment in str(error.value) and "\n" not in str(error.value)
