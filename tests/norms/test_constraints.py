from itertools import combinations_with_replacement

import pytest

from gw_detectron.norms import constraints, largest_groups, limit, share_of_freedom


@pytest.mark.parametrize(
    "norm, d, m, g, expected",
    [
        ("BN", 10, 4, None, 20),
        ("BW", 10, 40, None, 65),  # 10 means, 55 covariances
        ("GN", 24, 1, 4, 8),
        ("GN", 24, 3, 4, 24),
        ("GW", 24, 1, 1, 2),
        ("GW", 24, 1, 4, 14),  # 4 means, 10 covariances
        ("GW", 24, 3, 4, 42),
        ("GW", 12544, 1, 64, 2144),
    ],
)
def test_constraints_counted_by_hand(norm, d, m, g, expected):
    assert constraints(norm, d, m, g) == expected
    assert share_of_freedom(norm, d, m, g) == expected / (d * m)


def test_gw_has_an_equation_for_each_mean_and_each_pair_of_groups():
    for g in range(1, 20):
        pairs = list(combinations_with_replacement(range(g), 2))
        assert constraints("GW", 1000, g=g) == g + len(pairs)


def test_the_largest_number_of_groups_is_the_last_whose_constraints_fit():
    for d in range(1, 400):
        for norm, equations in (("GN", lambda g: 2 * g), ("GW", lambda g: g * (g + 3) // 2)):
            expected = max(g for g in range(d + 1) if equations(g) <= d)
            assert largest_groups(norm, d) == expected
            assert expected <= limit(norm, d) < expected + 1


def test_the_limit_is_exact_where_a_square_root_in_floating_point_is_not():
    g = 10**9
    d = g * (g + 3) // 2
    assert [largest_groups("GW", d + off) for off in (-1, 0, 1)] == [g - 1, g, g]
    assert limit("GW", d - 1) == g  # as floating point has it


def test_published_limits():
    assert limit("GN", 5) == 2.5
    assert limit("GW", 1024) == pytest.approx(43.78, abs=0.005)  # (sqrt(8201) - 3) / 2


@pytest.mark.parametrize(
    "norm, d, channels, expected",
    [
        ("GW", 12544, 256, 128),  # 7 x 7: limit 156
        ("GW", 1024, 1024, 32),  # fully connected: limit 43
        ("GW", 1536, 256, 32),  # 2 x 3: limit 53
        ("GW", 144, 12, 12),  # limit 15, no more groups than channels
        ("GW", 60, 60, 6),  # limit 9
        ("GN", 60, 60, 30),
        ("GW", 7, 7, 1),  # limit 2
        ("GN", 1, 1, 0),
        ("GW", 1, 1, 0),
    ],
)
def test_the_largest_number_of_groups_that_divides_the_channels(norm, d, channels, expected):
    assert largest_groups(norm, d, channels) == expected


def test_a_norm_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="of LN are not known; of BN, BW, GN, GW they are"):
        constraints("LN", 10)
    with pytest.raises(ValueError, match="of GW depend on the number of groups"):
        constraints("GW", 10)
    with pytest.raises(ValueError, match="BN has no groups"):
        limit("BN", 10)
    with pytest.raises(ValueError, match="BW has no groups"):
        largest_groups("BW", 10)
