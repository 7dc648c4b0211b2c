import math

import numpy as np
import pytest
import torch
from torch import nn

from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.diagnostics import (
    STATISTICS,
    NormMeter,
    common_groups,
    covariances,
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


def measured(model, *inputs, num_groups=4):
    """The row of a model with one norm."""
    meter = NormMeter(num_groups)
    with watching(model, meter.look):
        for x in inputs:
            model(x)
    (row,) = meter.rows()
    return row


# ---- One covariance --------------------------------------------------------------------------


def test_the_statistics_of_a_known_spectrum():
    shares = [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    assert statistics_of(SPECTRUM) == pytest.approx(
        {
            "condition": 8,
            "effective_rank": math.prod(share**-share for share in shares),
            "first_share": 8 / 15,
            "variance": 15 / 4,
            "distance": math.sqrt((7**2 + 3**2 + 1) / 4),
        }
    )


def test_a_direction_without_variance_gives_the_largest_condition_number_not_inf():
    found = statistics_of([4.0, 1.0, 0.0, 0.0])
    assert found["condition"] == pytest.approx(1e14)
    assert found["effective_rank"] == pytest.approx(0.8**-0.8 * 0.2**-0.2)
    # unless the values are too few to span it
    assert statistics_of([4.0, 1.0, 0.0, 0.0], rank=2)["condition"] == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_covariances_are_numpys_in_spite_of_a_large_mean(dtype):
    x = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype) + 50
    x = x.to(memory_format=torch.channels_last)
    sigma, has_sense = covariances(x, 4)
    for sample, matrix in zip(x.double().contiguous(), sigma, strict=True):
        expected = np.cov(sample.reshape(4, -1).numpy(), bias=True)
        np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-9, atol=1e-11)
    assert sigma.dtype == torch.float64 and has_sense.all()


# ---- Norms in a model ------------------------------------------------------------------------


def test_zca_makes_any_features_white_and_the_affine_does_not_count():
    norm = GroupWhitening(8, num_groups=4, method="zca", eps=1e-12).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    row = measured(nn.Sequential(norm), features(SPECTRUM, (8, 6, 5)))
    assert math.isnan(row.pop("root error"))
    before = statistics_of(SPECTRUM)
    after = dict(zip(STATISTICS, [1, 4, 0.25, 1, 0], strict=True))
    assert row == {
        "layer": "0", "norm": "GW", "channels": 8, "groups": 4, "values a group": 60,
        "samples": 1, "left out": 0,
        **{f"{name} before": pytest.approx(before[name]) for name in STATISTICS},
        **{f"{name} after": pytest.approx(after[name]) for name in STATISTICS},
    }  # fmt: skip


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
    row = measured(norm, x := features(SPECTRUM, (8, 6, 5)))
    assert row["condition after"] == pytest.approx(max(variances) / min(variances))
    assert row["variance after"] == pytest.approx(sum(variances) / 4)
    exact = sum(15 / l for l in SPECTRUM)  # noqa: E741
    assert row["root error"] == pytest.approx(math.sqrt(sum(errors) / exact))
    coarser = measured(norm, x, num_groups=2)  # by the layer's own groups still
    assert (coarser["groups"], coarser["root error"]) == (2, pytest.approx(row["root error"]))


def test_gn_gives_unit_variance_and_leaves_the_correlations():
    x = features(SPECTRUM, (8, 6, 5))
    row = measured(nn.GroupNorm(4, 8, eps=0.0).double(), x)
    correlations = np.linalg.eigvalsh(np.corrcoef(x.reshape(4, -1).numpy()))
    assert row["variance after"] == pytest.approx(1)
    assert row["condition after"] == pytest.approx(correlations[-1] / correlations[0])
    distance = np.sqrt(((correlations - 1) ** 2).mean())
    assert row["distance after"] == pytest.approx(distance)


def test_averages_of_images_one_by_one_are_those_of_the_batch():
    norm = GroupWhitening(8, num_groups=4).double()
    images = [features([4.0**i, 2.0, 1.0, 0.5], (8, 6, 5), seed=i) for i in range(1, 4)]
    streamed = measured(norm, *images)
    assert streamed == pytest.approx(measured(norm, torch.cat(images)))
    assert streamed["condition before"] == pytest.approx(math.prod((8, 32, 128)) ** (1 / 3))
    assert streamed["variance before"] == pytest.approx((7.5 + 19.5 + 67.5) / 12)
    assert streamed["samples"] == 3


def test_of_many_regions_some_are_measured_evenly_spread():
    x = torch.cat([features([2.0 ** (i // 3), 1.0], (2, 4, 4)) for i in range(90)])
    row = measured(nn.GroupNorm(2, 2), x.float(), num_groups=2)
    assert row["samples"] == 30
    assert row["condition before"] == pytest.approx(2**14.5, rel=1e-4)


def test_constant_and_not_finite_samples_are_left_out_and_no_regions_are_nothing():
    norm = GroupWhitening(8, num_groups=4)
    x = features(SPECTRUM, (8, 6, 5), dtype=torch.float32)
    nan, inf = x.clone(), x.clone()
    nan[0, 0, 0, 0], inf[0, 0, 0, 0] = math.nan, math.inf
    row = measured(norm, torch.cat([x, torch.full_like(x, 0.1), nan, inf]), x[:0])
    assert (row["samples"], row["left out"]) == (1, 3)
    assert row["condition before"] == pytest.approx(8, rel=1e-4)
    row = measured(norm, torch.ones_like(x))
    assert row["samples"] == 0 and math.isnan(row["condition before"])


def gw(*sizes):
    return nn.Sequential(*(GroupWhitening(channels, groups) for channels, groups in sizes))


@pytest.mark.parametrize(
    "models, groups",
    [
        ([nn.GroupNorm(32, 64)], 16),
        ([nn.GroupNorm(32, 64), gw((256, 64))], 64),
        ([gw((256, 64)), gw((256, 32))], 32),
        ([gw((32, 64), (256, 64))], 32),
    ],
)
def test_models_are_compared_by_the_groups_of_their_gw(models, groups):
    assert common_groups(models) == groups


@pytest.mark.parametrize("channels, groups", [(64, 16), (8, 8), (24, 12), (17, 1)])
def test_groups_are_no_more_than_the_channels_and_divide_them(channels, groups):
    row = measured(nn.BatchNorm2d(channels), torch.randn(2, channels, 9, 9), num_groups=16)
    assert row["groups"] == groups
