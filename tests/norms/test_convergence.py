import pytest
import torch

from gw_detectron.norms import missing_variance, sufficient_iterations
from gw_detectron.norms.convergence import whitened_groups

from ..layers.textbook import inverse_sqrt


@pytest.mark.parametrize("iterations", [0, 1, 3, 5, 8])
def test_missing_variance_is_that_of_the_textbook_iteration(iterations):
    shares = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.025, 0.005], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    sigma = 7 * basis @ torch.diag(shares) @ basis.T
    w = inverse_sqrt(sigma, iterations)
    whitened = (basis.T @ w @ sigma @ w @ basis).diagonal()
    for share, variance in zip(shares.tolist(), whitened.tolist(), strict=True):
        assert missing_variance(share, iterations) == pytest.approx(1 - variance, abs=1e-12)


def test_by_hand():
    assert missing_variance(1.0, 5) == 0
    assert missing_variance(0.0, 5) == 1
    # p_1 = (3 - 0.2) / 2 = 1.4
    assert missing_variance(0.2, 1) == pytest.approx(1 - 1.4**2 * 0.2)
    # 1.5^2T l, the limit for small shares
    assert missing_variance(1e-9, 5) == pytest.approx(1 - 57.665e-9, abs=1e-12)


# 64 groups: T = 6 leaves 15 %, T = 7 leaves 2 %; 16 groups: T = 4 leaves 21 %, T = 5 leaves 3 %
@pytest.mark.parametrize("num_groups, expected", [(1, 0), (16, 5), (32, 6), (64, 7)])
def test_sufficient_iterations_leave_a_tenth_of_white_input_at_most(num_groups, expected):
    assert sufficient_iterations(num_groups) == expected
    assert 1 - missing_variance(1 / num_groups, expected) >= 0.9
    assert expected == 0 or missing_variance(1 / num_groups, expected - 1) > 0.1


@pytest.mark.parametrize("iterations", [0, 1, 5, 7])
def test_whitened_groups_are_the_most_for_which_the_iterations_suffice(iterations):
    num_groups = whitened_groups(iterations)
    assert sufficient_iterations(num_groups) <= iterations
    assert sufficient_iterations(num_groups + 1) > iterations
