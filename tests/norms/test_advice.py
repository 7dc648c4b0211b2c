import pytest
from torch import nn

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.advice import (
    notes,
    suggested_groups,
    suggested_iterations,
    verdict,
)
from gw_detectron.norms.layers import NormLayer


def gw(channels, num_groups, size=(), **options):
    return NormLayer("gw", GroupWhitening(channels, num_groups, **options), (size,))


@pytest.mark.parametrize(
    "layer, expected",
    [
        (gw(20, 2), "fine"),  # 5 constraints on 20 values: a quarter
        (gw(18, 2), "tight"),
        (gw(20, 5), "tight"),  # 20 on 20
        (gw(18, 6), "over the limit"),  # 27 on 18
        (gw(256, 64, (7, 7)), "fine"),  # the paper's box head: 2144 on 12544
        (NormLayer("gn", nn.GroupNorm(4, 32), ((),)), "fine"),  # 8 on 32
        (NormLayer("gn", nn.GroupNorm(8, 32), ((),)), "tight"),
        (NormLayer("gn", nn.GroupNorm(32, 32), ((),)), "over the limit"),
        (NormLayer("bn", nn.BatchNorm2d(8), ((1, 1),)), None),
    ],
)
def test_the_verdict_is_by_the_share_of_freedom(layer, expected):
    assert verdict(layer) == expected


@pytest.mark.parametrize(
    "layer, groups, iterations",
    [
        (gw(256, 64, (7, 7)), 64, 7),
        (gw(256, 16, (7, 7)), 16, 5),
        (gw(256, 16, (7, 7), iterations=9), 16, 9),
        (gw(1024, 64), 16, 5),  # a quarter of 1024 values: 21 groups fit, of the divisors 16
        (gw(2, 2), 1, 5),  # nothing is fine there
        (gw(256, 64, (7, 7), rescale=True), 64, 5),
        (gw(256, 64, (7, 7), method="zca"), 64, None),
        (NormLayer("gn", nn.GroupNorm(32, 32), ((),)), 4, None),
        (NormLayer("bn", nn.BatchNorm2d(8), ((1, 1),)), None, None),
    ],
)
def test_suggestions(layer, groups, iterations):
    assert (suggested_groups(layer), suggested_iterations(layer)) == (groups, iterations)


def test_a_fully_connected_gw_over_its_limit_is_named_with_the_way_out():
    (over, _) = notes([gw(1024, 64), gw(256, 16, (7, 7)), gw(1024, 64)])
    assert over.count("gw (GW, num_groups 64 on 1024 values, at most 32)") == 2
    assert over.endswith('Use fewer groups, "GW(num_groups=16)", or another norm there.')


def test_gn_over_its_limit_has_no_groups_to_set():
    (over,) = notes([NormLayer("gn", nn.GroupNorm(32, 32), ((),))])
    assert over.endswith("Use another norm there.")


def test_many_layers_over_the_limit_are_counted():
    over, _ = notes([gw(1024, 64)] * 8)
    assert over.count("at most 32") == 5 and "and 3 more" in over


def test_iterations_that_leave_the_output_small_are_noted_once_for_all_layers():
    (note,) = notes([gw(256, 64, (7, 7)), gw(256, 16, (7, 7)), gw(512, 64, (9, 9))])
    for part in ("64 groups, T = 5", "41%", "91%", "1/640", "(2 layers)", "at most 23 groups"):
        assert part in note


@pytest.mark.parametrize(
    "layer",
    [
        gw(256, 16, (7, 7)),
        gw(256, 64, (7, 7), iterations=7),
        gw(256, 64, (7, 7), rescale=True),
        gw(256, 64, (7, 7), method="zca"),
        NormLayer("bn", nn.BatchNorm2d(8), ((1, 1),)),
    ],
)
def test_nothing_is_noted_where_all_is_well(layer):
    assert notes([layer]) == []
