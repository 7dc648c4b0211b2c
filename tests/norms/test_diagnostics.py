import math

import numpy as np
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.diagnostics import (
    STATISTICS,
    NormMeter,
    common_groups,
    covariances,
    root_errors,
    spectrum_statistics,
)
from gw_detectron.norms.probe import watching

SPECTRUM = [8.0, 4.0, 2.0, 1.0]


def features(spectrum, shape, seed=0, dtype=torch.float64):
    """(1, C, *spatial) whose groups, one an eigenvalue, have exactly this covariance spectrum."""
    generator = torch.Generator().manual_seed(seed)
    g = len(spectrum)
    m = math.prod(shape) // g
    noise = torch.randn(m, g, generator=generator, dtype=torch.float64)
    white, _ = torch.linalg.qr(noise - noise.mean(0))
    basis, _ = torch.linalg.qr(torch.randn(g, g, generator=generator, dtype=torch.float64))
    x = basis @ torch.diag(torch.tensor(spectrum, dtype=torch.float64).sqrt()) @ white.T
    return (x * math.sqrt(m)).reshape(1, *shape).to(dtype)


def statistics_of(spectrum, rank=None):
    sigma = torch.diag(torch.tensor(spectrum, dtype=torch.float64))[None]
    (found,) = spectrum_statistics(sigma, rank or len(spectrum), 1e-14)
    return dict(zip(STATISTICS, found.tolist(), strict=True))


def watched(model, *inputs, num_groups=4):
    meter = NormMeter(num_groups)
    with watching(model, meter.look):
        for x in inputs:
            model(x)
    return meter.rows()


def before(row):
    return {name: row[f"{name} before"] for name in STATISTICS}


def after(row):
    return {name: row[f"{name} after"] for name in STATISTICS}


# ---- One covariance --------------------------------------------------------------------------


def test_the_statistics_of_a_known_spectrum():
    found = statistics_of(SPECTRUM)
    shares = [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    assert found == pytest.approx(
        {
            "condition": 8,
            "effective_rank": math.prod(share**-share for share in shares),
            "first_share": 8 / 15,
            "variance": 15 / 4,
            "distance": math.sqrt((7**2 + 3**2 + 1) / 4),
        }
    )


def test_white_features_have_the_best_of_all_statistics():
    expected = {"condition": 1, "effective_rank": 5, "first_share": 0.2}
    assert statistics_of([1.0] * 5) == pytest.approx(expected | {"variance": 1, "distance": 0})


def test_directions_that_too_few_values_cannot_span_are_not_in_the_condition_number():
    assert statistics_of([4.0, 1.0, 0.0, 0.0], rank=2)["condition"] == pytest.approx(4)


def test_a_direction_without_variance_gives_the_largest_condition_number_not_inf():
    found = statistics_of([4.0, 1.0, 0.0, 0.0])
    assert found["condition"] == pytest.approx(1e14)
    assert found["effective_rank"] == pytest.approx(0.8**-0.8 * 0.2**-0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_covariances_are_numpys_in_spite_of_a_large_mean(dtype):
    x = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype) + 50
    x = x.to(memory_format=torch.channels_last)
    sigma, has_sense = covariances(x, 4)
    for sample, matrix in zip(x.double().contiguous(), sigma, strict=True):
        expected = np.cov(sample.reshape(4, -1).numpy(), bias=True)
        np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-9, atol=1e-11)
    assert sigma.dtype == torch.float64 and has_sense.all()


def test_constant_and_not_finite_samples_have_no_covariance():
    x = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    x[1], x[2, 0, 0, 0], x[3, 0, 0, 0] = 0.1, math.nan, math.inf
    assert covariances(x, 4)[1].tolist() == [True, False, False, False]


def test_the_root_error_of_no_iteration_is_that_of_the_identity_over_the_root_of_the_trace():
    sigma = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))[None]
    exact = np.array([1 / math.sqrt(3), 1])
    expected = np.linalg.norm(0.5 - exact) / np.linalg.norm(exact)
    assert root_errors(sigma, 0, 0.0).item() == pytest.approx(expected)
    assert root_errors(sigma, 15, 0.0).item() == pytest.approx(0, abs=1e-12)


# ---- Norms in a model ------------------------------------------------------------------------


def test_zca_makes_any_features_white_and_the_affine_does_not_count():
    norm = GroupWhitening(8, num_groups=4, method="zca", eps=1e-12).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    (found,) = watched(nn.Sequential(norm), features(SPECTRUM, (8, 6, 5)))
    assert found["condition before"] == pytest.approx(8)
    assert after(found) == pytest.approx(
        {"condition": 1, "effective_rank": 4, "first_share": 0.25, "variance": 1, "distance": 0}
    )
    assert math.isnan(found["root error"])
    assert (found["norm"], found["channels"], found["groups"], found["values a group"]) == (
        "GW",
        8,
        4,
        60,
    )
    assert (found["samples"], found["left out"]) == (1, 0)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_newtons_iterations_leave_what_the_recursion_on_each_share_says(iterations):
    variances, errors = [], []
    for share in (l / 15 for l in SPECTRUM):  # noqa: E741
        p = 1.0
        for _ in range(iterations):
            p = (3 * p - p**3 * share) / 2
        variances.append(p**2 * share)
        errors.append((p - share**-0.5) ** 2)
    norm = GroupWhitening(8, num_groups=4, iterations=iterations, eps=0.0).double()
    (found,) = watched(norm, features(SPECTRUM, (8, 6, 5)))
    assert found["condition after"] == pytest.approx(max(variances) / min(variances))
    assert found["variance after"] == pytest.approx(sum(variances) / 4)
    exact = sum(15 / l for l in SPECTRUM)  # noqa: E741
    assert found["root error"] == pytest.approx(math.sqrt(sum(errors) / exact))


def test_the_root_error_is_that_of_the_layers_own_groups():
    x = features(SPECTRUM, (8, 6, 5))
    (own,) = watched(norm := GroupWhitening(8, num_groups=4).double(), x)
    (coarser,) = watched(norm, x, num_groups=2)
    assert coarser["groups"] == 2
    assert coarser["root error"] == pytest.approx(own["root error"])


def test_gn_gives_unit_variance_and_leaves_the_correlations():
    x = features(SPECTRUM, (8, 6, 5))
    (found,) = watched(nn.GroupNorm(4, 8, eps=0.0).double(), x)
    correlations = np.linalg.eigvalsh(np.corrcoef(x.reshape(4, -1).numpy()))
    assert found["variance after"] == pytest.approx(1)
    assert found["condition after"] == pytest.approx(correlations[-1] / correlations[0])
    distance = np.sqrt(((correlations - 1) ** 2).mean())
    assert found["distance after"] == pytest.approx(distance)


def test_frozen_bn_scales_by_its_statistics():
    norm = FrozenBatchNorm2d(4, eps=0.0).double()
    norm.running_var.fill_(4)
    norm.weight.fill_(100)
    (found,) = watched(norm, features(SPECTRUM, (4, 6, 5)))
    assert found["variance after"] == pytest.approx(found["variance before"] / 4)
    assert found["condition after"] == pytest.approx(8)


def test_averages_of_images_one_by_one_are_those_of_the_batch():
    norm = GroupWhitening(8, num_groups=4).double()
    images = [features([4.0**i, 2.0, 1.0, 0.5], (8, 6, 5), seed=i) for i in range(1, 4)]
    (streamed,), (whole,) = watched(norm, *images), watched(norm, torch.cat(images))
    assert before(streamed) == pytest.approx(before(whole))
    assert after(streamed) == pytest.approx(after(whole))
    assert streamed["root error"] == pytest.approx(whole["root error"])
    assert streamed["condition before"] == pytest.approx(math.prod((8, 32, 128)) ** (1 / 3))
    assert streamed["variance before"] == pytest.approx((7.5 + 19.5 + 67.5) / 12)
    assert streamed["samples"] == whole["samples"] == 3


def test_a_shared_norm_has_samples_of_every_call_and_of_every_size():
    norm = nn.GroupNorm(4, 8)
    (found,) = watched(norm, torch.randn(1, 8, 6, 5), torch.randn(1, 8, 2, 2))
    assert (found["samples"], found["values a group"]) == (2, (60 + 8) / 2)


def test_of_many_regions_some_are_measured_evenly_spread():
    x = torch.cat([features([2.0 ** (i // 3), 1.0], (2, 4, 4)) for i in range(90)])
    (found,) = watched(nn.GroupNorm(2, 2), x.float(), num_groups=2)
    assert found["samples"] == 30
    assert found["condition before"] == pytest.approx(2**14.5, rel=1e-4)


def test_constant_regions_are_left_out_and_no_regions_are_nothing():
    norm = GroupWhitening(8, num_groups=4)
    x = features(SPECTRUM, (8, 6, 5), dtype=torch.float32)
    (found,) = watched(norm, torch.cat([x, torch.ones_like(x)]))
    assert (found["samples"], found["left out"]) == (1, 1)
    assert found["condition before"] == pytest.approx(8, rel=1e-4)
    (found,) = watched(norm, torch.ones_like(x))
    assert found["samples"] == 0 and math.isnan(found["condition before"])
    assert watched(norm, x[:0]) == []


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.GroupNorm(4, 8), GroupWhitening(8, 4)])
def test_training_is_the_same_to_the_bit_while_it_is_watched(norm):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True), nn.Dropout(0.5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 9, 9)

    def step():
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(0)
        output = model(x)
        output.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        return [output, *gradients, *(value.clone() for value in model.state_dict().values())]

    without = step()
    with watching(model, NormMeter(4).look):
        watched = step()
    assert all(map(torch.equal, without, watched))


def test_norms_are_told_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.GroupNorm(2, 4), nn.Sequential()
            self.first.norm = nn.BatchNorm2d(4)
            self.never = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.last(self.first(x))

    found = watched(Backwards(), torch.randn(2, 4, 3, 3))
    assert [(norm["layer"], norm["norm"]) for norm in found] == [("first", "BN"), ("last", "GN")]


def test_a_model_without_norms_cannot_be_diagnosed():
    with pytest.raises(UsageError, match="no norm"):
        common_groups([nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(8))])


def gw(*sizes):
    return nn.Sequential(*(GroupWhitening(channels, groups) for channels, groups in sizes))


@pytest.mark.parametrize(
    "models, groups",
    [
        ([nn.GroupNorm(32, 64)], 16),
        ([nn.GroupNorm(32, 64), gw((256, 64))], 64),
        ([gw((256, 64)), gw((256, 32))], 32),
        ([gw((32, 64), (256, 64))], 64),
        ([gw((32, 64))], 32),
    ],
)
def test_models_are_compared_by_the_groups_of_their_gw(models, groups):
    assert common_groups(models) == groups


@pytest.mark.parametrize("channels, groups", [(64, 16), (8, 8), (24, 12), (17, 1)])
def test_groups_are_no_more_than_the_channels_and_divide_them(channels, groups):
    (found,) = watched(nn.BatchNorm2d(channels), torch.randn(2, channels, 9, 9), num_groups=16)
    assert found["groups"] == groups
