import pytest

pytest.importorskip("detectron2")

import torch
from torch import nn

from gw_detectron.benchmark.memory import peak_bytes, saved_bytes
from gw_detectron.layers import GroupWhitening

CPU = torch.device("cpu")


def saved(layer, x):
    return saved_bytes(lambda: layer(x), layer.parameters())


def test_group_norm_saves_its_input_and_two_numbers_a_group():
    x = torch.randn(3, 8, 5, 6, requires_grad=True)
    assert saved(nn.GroupNorm(4, 8), x) == 4 * (3 * 8 * 5 * 6 + 2 * 3 * 4)


def test_group_whitening_saves_its_input_and_at_most_three_matrices_a_sample():
    x = torch.randn(3, 64, 50, 60, requires_grad=True)
    of_input, of_matrix = 4 * 3 * 64 * 50 * 60, 4 * 3 * 16 * 16
    in_means = 4 * 3 * 16
    extra = saved(GroupWhitening(64, num_groups=16), x) - of_input
    assert of_matrix <= extra <= 3 * of_matrix + in_means


def test_a_storage_counts_once_and_whole():
    x = torch.randn(10, 10, requires_grad=True)
    # both factors of the product, and the argument of exp is its result
    assert saved_bytes(lambda: (x[0] * x[1]).exp(), []) == 4 * (100 + 10)
    assert saved_bytes(lambda: x * x * x, []) == 4 * (100 + 100)
    assert saved_bytes(lambda: x + 1, []) == 0


def test_parameters_and_buffers_are_there_anyway():
    x, weight = torch.randn(10, requires_grad=True), nn.Parameter(torch.randn(10))
    assert saved_bytes(lambda: x * weight, []) == 80
    assert saved_bytes(lambda: x * weight, [weight]) == 40


def test_peak_is_what_is_there_at_once():
    megabyte = 2**18  # numbers

    def call():
        first = torch.empty(2 * megabyte)
        del first
        second, third = torch.empty(megabyte), torch.empty(3 * megabyte)
        return second, third

    before = torch.empty(5 * megabyte)
    assert peak_bytes(call, CPU) == 4 * 2**20
    del before
    assert peak_bytes(lambda: None, CPU) == 0
