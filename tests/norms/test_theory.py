import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms import (
    constraints,
    largest_groups,
    limit,
    missing_variance,
    share_of_freedom,
    sufficient_iterations,
)
from gw_detectron.norms.theory import extra_bytes, extra_flops, whitened_groups

from ..layers.textbook import group_whitening, inverse_sqrt


@pytest.mark.parametrize(
    "norm, d, m, g, expected",
    [
        ("BN", 10, 4, None, 20),
        ("BW", 10, 40, None, 65),  # 10 means, 55 covariances
        ("GN", 24, 3, 4, 24),
        ("GW", 24, 1, 1, 2),
        ("GW", 24, 3, 4, 42),  # 4 means, 10 covariances
        ("GW", 12544, 1, 64, 2144),
    ],
)
def test_constraints_counted_by_hand(norm, d, m, g, expected):
    assert constraints(norm, d, m, g) == expected
    assert share_of_freedom(norm, d, m, g) == expected / (d * m)


def test_the_largest_number_of_groups_is_the_last_whose_constraints_fit():
    for d in range(1, 400):
        for norm, equations in (("GN", lambda g: 2 * g), ("GW", lambda g: g * (g + 3) // 2)):
            expected = max(g for g in range(d + 1) if equations(g) <= d)
            assert largest_groups(norm, d) == expected
            assert expected <= limit(norm, d) < expected + 1
    g = 10**9  # too large for a square root in floating point
    d = g * (g + 3) // 2
    assert [largest_groups("GW", d + off) for off in (-1, 0, 1)] == [g - 1, g, g]


@pytest.mark.parametrize(
    "norm, d, channels, expected",
    [
        ("GW", 12544, 256, 128),  # 7 x 7: limit 156
        ("GW", 1024, 1024, 32),  # fully connected: limit 43
        ("GW", 144, 12, 12),  # limit 15, no more groups than channels
        ("GW", 60, 60, 6),  # limit 9
        ("GN", 60, 60, 30),
        ("GW", 1, 1, 0),
    ],
)
def test_the_largest_number_of_groups_that_divides_the_channels(norm, d, channels, expected):
    assert largest_groups(norm, d, channels) == expected


def test_a_norm_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="of LN are not known; of BN, BW, GN, GW they are"):
        constraints("LN", 10)


# ---- Convergence -----------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_missing_variance_is_that_of_the_textbook_iteration(iterations):
    shares = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.025, 0.005], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    sigma = 7 * basis @ torch.diag(shares) @ basis.T
    w = inverse_sqrt(sigma, iterations)
    whitened = (basis.T @ w @ sigma @ w @ basis).diagonal()
    for share, variance in zip(shares.tolist(), whitened.tolist(), strict=True):
        assert missing_variance(share, iterations) == pytest.approx(1 - variance, abs=1e-12)


# 64 groups: T = 6 leaves 15 %, T = 7 leaves 2 %; 16 groups: T = 4 leaves 21 %, T = 5 leaves 3 %
@pytest.mark.parametrize("num_groups, expected", [(1, 0), (16, 5), (32, 6), (64, 7)])
def test_sufficient_iterations_leave_a_tenth_of_white_input_at_most(num_groups, expected):
    assert sufficient_iterations(num_groups) == expected


@pytest.mark.parametrize("iterations", [0, 1, 5, 7])
def test_whitened_groups_are_the_most_for_which_the_iterations_suffice(iterations):
    num_groups = whitened_groups(iterations)
    assert sufficient_iterations(num_groups) <= iterations
    assert sufficient_iterations(num_groups + 1) > iterations


# ---- Cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 5])
def test_flops_are_what_the_textbook_multiplies(iterations):
    with FlopCounterMode(display=False) as counter:
        group_whitening(torch.randn(1, 32, 9), 8, iterations=iterations)
    # there a step has three products of g x g matrices from the first one on
    in_first_step = 3 * 8**3
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
