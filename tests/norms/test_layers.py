import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from torch import nn

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.cost import extra_bytes, extra_flops
from gw_detectron.norms.layers import NormLayer, SizeRecorder


def test_gw_counts_the_smallest_of_its_inputs():
    layer = NormLayer("head", GroupWhitening(256), ((14, 22), (2, 3), (7, 11)))
    assert (layer.kind, layer.channels, layer.num_groups, layer.iterations) == ("GW", 256, 64, 5)
    assert (layer.smallest, layer.values, layer.group_values) == ((2, 3), 1536, 24)
    assert (layer.constraints, layer.share) == (2144, 2144 / 1536)
    assert layer.limit == pytest.approx(53.95, abs=0.005)  # (sqrt(12297) - 3) / 2
    assert layer.largest_groups == 32
    assert layer.is_over_limit


def test_gn():
    layer = NormLayer("gn", nn.GroupNorm(32, 256), ((5, 4),))
    assert (layer.kind, layer.num_groups, layer.iterations) == ("GN", 32, None)
    assert (layer.group_values, layer.constraints, layer.share) == (160, 64, 64 / 5120)
    assert (layer.limit, layer.largest_groups) == (2560, 256)
    assert not layer.is_over_limit
    # one value a group has a mean and no variance of its own
    assert NormLayer("gn", nn.GroupNorm(32, 32), ((),)).is_over_limit


@pytest.mark.parametrize(
    "norm, kind, group_values, constraints, share",
    [
        (nn.BatchNorm2d(8), "BN", 20, 16, 16 / 160),
        (nn.SyncBatchNorm(8), "SyncBN", 20, 16, 16 / 160),
        (NaiveSyncBatchNorm(8), "SyncBN", 20, 16, 16 / 160),
        (FrozenBatchNorm2d(8), "FrozenBN", None, 0, 0),
        (LayerNorm(8), "LN", 8, 40, 40 / 160),  # 20 positions, each with a mean and a variance
        (nn.LayerNorm(8), "LN", 8, 40, 40 / 160),
    ],
)
def test_norms_without_groups(norm, kind, group_values, constraints, share):
    layer = NormLayer("norm", norm, ((5, 4),))
    assert (layer.kind, layer.channels, layer.values) == (kind, 8, 160)
    assert (layer.group_values, layer.constraints) == (group_values, constraints)
    assert layer.share == pytest.approx(share)
    assert (layer.num_groups, layer.limit, layer.largest_groups) == (None, None, None)
    assert (layer.extra_flops, layer.extra_bytes) == (0, 0)
    assert not layer.is_over_limit


def test_bn_of_a_region_head_has_all_regions_of_an_image():
    layer = NormLayer("bn", nn.BatchNorm2d(8), ((7, 7),), regions=512)
    assert layer.group_values == 512 * 49
    assert layer.share == pytest.approx(2 / (512 * 49))
    of_a_region = NormLayer("gn", nn.GroupNorm(4, 8), ((7, 7),), regions=512)
    assert (of_a_region.group_values, of_a_region.share) == (2 * 49, 8 / (8 * 49))


def test_extra_costs_are_those_of_all_calls():
    layer = NormLayer("head", GroupWhitening(64, 16, 7), ((8, 8), (4, 4)))
    assert layer.extra_flops == extra_flops(64, 64, 16, 7) + extra_flops(64, 16, 16, 7)
    assert layer.extra_bytes == 2 * extra_bytes(16, "itn")
    zca = NormLayer("zca", GroupWhitening(64, 16, method="zca", rescale=True), ((8, 8),))
    assert zca.iterations is None
    assert zca.extra_flops == extra_flops(64, 64, 16, None, rescale=True)
    assert zca.extra_bytes == extra_bytes(16, "zca")


def test_the_recorder_notes_every_call_until_it_is_removed():
    shared = GroupWhitening(4, 2)
    model = nn.ModuleDict({"never": nn.GroupNorm(1, 4), "last": nn.LayerNorm(4), "first": shared})
    recorder = SizeRecorder(model)
    shared(torch.randn(2, 4, 3, 5))
    shared(torch.randn(0, 4, 2, 2))
    shared(torch.randn(2, 4))
    model["last"](torch.randn(2, 6, 7, 4))
    recorder.remove()
    shared(torch.randn(1, 4, 1, 1))
    assert [(layer.name, layer.sizes) for layer in recorder.layers()] == [
        ("first", ((3, 5), (2, 2), ())),
        ("last", ((6, 7),)),
    ]
