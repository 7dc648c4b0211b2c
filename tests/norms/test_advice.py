import pytest
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from torch import nn

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.advice import describe, notes


def gw(channels, num_groups, size=(), **options):
    return describe("gw", GroupWhitening(channels, num_groups, **options), [(channels, *size)])


def gn(channels, num_groups):
    return describe("gn", nn.GroupNorm(num_groups, channels), [(channels,)])


BN = describe("bn", nn.BatchNorm2d(8), [(8, 1, 1)])


def test_gw_counts_the_smallest_of_its_inputs():
    shapes = [(256, 14, 22), (256, 2, 3), (256, 7, 11)]
    row = describe("head", GroupWhitening(256), shapes)
    limit = row.pop("limit")
    assert limit == pytest.approx(53.95, abs=0.005)  # (sqrt(12297) - 3) / 2
    positions = 14 * 22 + 2 * 3 + 7 * 11
    assert row == {
        "layer": "head", "norm": "GW", "C": 256, "size": "1 of 3: 2x3", "g": 64, "T": 5, "m": 24,
        "constraints": 2144, "share": 2144 / 1536, "max g": 32,
        "+GFLOPs": (2 * 64 * 256 * positions + 3 * 12 * 64**3) / 1e9,
        "+MB": 3 * 4 * (2 * 64**2 - 64) / 1e6,
        "1/10": pytest.approx(0.005105, abs=1e-6), "1/g": pytest.approx(0.41361, abs=1e-5),
        "1/10g": pytest.approx(0.91402, abs=1e-5),
        "verdict": "over the limit", "suggestion": "g=16",
    }  # fmt: skip


def test_regions_are_counted():
    row = describe("box_head", GroupWhitening(256), [(256, 7, 7)], regions=512)
    assert (row["size"], row["m"], row["share"]) == ("512 of 7x7", 196, 2144 / 12544)
    assert row["+GFLOPs"] == 512 * 4_751_360 / 1e9
    of_all = describe("bn", nn.BatchNorm2d(8), [(8, 7, 7)], regions=512)
    assert (of_all["m"], of_all["share"]) == (512 * 49, 2 / (512 * 49))


@pytest.mark.parametrize(
    "norm, kind, m, constraints",
    [
        (nn.BatchNorm2d(8), "BN", 20, 16),
        (NaiveSyncBatchNorm(8), "SyncBN", 20, 16),
        (FrozenBatchNorm2d(8), "FrozenBN", None, 0),
        (LayerNorm(8), "LN", 8, 40),  # 20 positions, each with a mean and a variance
        (nn.LayerNorm(8), "LN", 8, 40),
    ],
)
def test_norms_without_groups(norm, kind, m, constraints):
    row = describe("norm", norm, [(8, 5, 4)])
    assert (row["norm"], row["m"], row["constraints"]) == (kind, m, constraints)
    assert row["share"] == pytest.approx(constraints / 160)
    nothing = ["g", "T", "limit", "max g", "+GFLOPs", "+MB", "1/10", "1/g", "1/10g", "verdict"]
    assert {row[column] for column in nothing} == {None}


def test_an_eigendecomposition_misses_nothing():
    row = gw(256, 64, (7, 7), method="zca", rescale=True)
    assert (row["T"], row["1/10"], row["1/g"], row["1/10g"]) == (None, 0, 0, 0)
    assert row["+GFLOPs"] == (2 * 64 * 12544 + 6.5 * 64**3) / 1e9
    assert row["+MB"] == 4 * (64 + 3 * 64**2 + 64 - 2 * 64) / 1e6


@pytest.mark.parametrize(
    "row, verdict, suggestion",
    [
        (gw(20, 2), "fine", ""),  # 5 constraints on 20 values: a quarter
        (gw(18, 2), "tight", "g=1"),
        (gw(18, 6), "over the limit", "g=1"),  # 27 on 18
        (gw(256, 64, (7, 7)), "fine", "T=7"),  # the paper's box head: 2144 on 12544
        (gw(256, 16, (7, 7)), "fine", ""),
        (gw(1024, 64), "over the limit", "g=16"),  # of 1024 values: 21 groups fit in a quarter
        (gw(256, 64, (7, 7), rescale=True), "fine", ""),
        (gw(256, 64, (7, 7), method="zca"), "fine", ""),
        (gn(32, 4), "fine", ""),  # 8 on 32
        (gn(32, 8), "tight", "g=4"),
        (gn(32, 32), "over the limit", "g=4"),
        (BN, None, ""),
    ],
)
def test_the_verdict_is_by_the_share_of_freedom(row, verdict, suggestion):
    assert (row["verdict"], row["suggestion"]) == (verdict, suggestion)


def test_what_needs_saying_is_said_once_for_all_layers():
    rows = [gw(1024, 64)] * 8 + [gw(256, 64, (7, 7)), gw(256, 16, (7, 7)), gw(512, 64, (9, 9))]
    over, small = notes(rows)
    assert over.count("gw (GW, num_groups 64 on 1024 values, at most 32)") == 5
    assert over.endswith("and more. Use fewer groups or another norm there.")
    for part in ("64 groups, T = 5", "41%", "(2 layers)", "at most 23 groups"):
        assert part in small
    rescaled, zca = (gw(256, 64, (7, 7), **o) for o in ({"rescale": True}, {"method": "zca"}))
    assert notes([gw(256, 16, (7, 7)), gw(256, 64, (7, 7), iterations=7), rescaled, zca, BN]) == []
