import pytest
import torch
from detectron2.engine import AMPTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from gw_detectron import engine
from gw_detectron.engine.trainer import CPUAMPTrainer
from gw_detectron.layers import GroupWhitening

from ..layers import textbook
from .commands import arguments

HALF_UNIT = 2**-8  # the greatest relative error of rounding to bfloat16's 8 bits of precision


class Classifier(nn.Module):
    """Whether an image is brighter on its left or on its right side, by GW and convolutions."""

    def __init__(self, dtype):
        """dtype: what autocast is to make of it."""
        super().__init__()
        self.dtype = dtype
        layers = []
        for channels in (3, 16):
            layers += [nn.Conv2d(channels, 16, 3), GroupWhitening(16, num_groups=4), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(16 * 4 * 4, 2)

    def forward(self, batch):
        images, labels = batch
        logits = self.linear(self.features(images).flatten(1))
        assert logits.dtype == self.dtype
        return {"loss_cls": nn.functional.cross_entropy(logits, labels)}


def batches(device):
    while True:
        images = torch.randn(16, 3, 8, 8, device=device)
        yield images, (images[..., :4].sum((1, 2, 3)) > images[..., 4:].sum((1, 2, 3))).long()


@pytest.mark.parametrize(
    "device, dtype",
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),  # its losses are scaled
    ],
)
def test_two_hundred_steps_in_a_half_type_are_finite_and_learn(device, dtype):
    torch.manual_seed(0)
    model = Classifier(dtype).to(device)
    parts = model, batches(device), torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = CPUAMPTrainer(*parts) if device == "cpu" else AMPTrainer(*parts, precision=dtype)
    trainer.train(0, 200)
    losses = trainer.storage.history("total_loss").values()
    assert len(losses) == 200  # each was finite: write_metrics raises otherwise
    first, last = (sum(loss for loss, _ in part) / 50 for part in (losses[:50], losses[-50:]))
    assert last < 0.7 * first
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_amp_trains_a_detector_near_float32(own_data, tmp_path, device):
    losses = {}
    for enabled in (False, True):
        opts = ["MODEL.DEVICE", device, "SOLVER.AMP.ENABLED", enabled]
        cfg = engine.setup(arguments(own_data[:4], tmp_path, opts=opts))
        torch.manual_seed(0)
        trainer = engine.Trainer(cfg)
        loop = CPUAMPTrainer if device == "cpu" else AMPTrainer
        assert isinstance(trainer._trainer, loop) == enabled
        with EventStorage() as storage:
            trainer.run_step()
            losses[enabled] = storage.latest()["total_loss"][0]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


@pytest.mark.parametrize("method", ["itn", "zca"])
def test_gradients_in_bfloat16_are_those_of_float64_to_the_types_precision(method, device):
    """
    The layer computes in float32; all that bfloat16 costs is the rounding of what comes out. On a
    GPU it may multiply in TF32, too.
    """
    tf32 = 0.0 if device == "cpu" else 4e-3
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 2, 16, 6, 6, generator=generator).bfloat16()
    layer = GroupWhitening(16, num_groups=4, method=method)
    nn.init.normal_(layer.weight, generator=generator)
    layer, x = layer.to(device), x.to(device).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.backward(upstream.to(device))

    exact, weight, bias = (
        t.detach().cpu().double().requires_grad_() for t in (x, layer.weight, layer.bias)
    )
    expected = textbook.group_whitening(exact, 4, weight, bias, method=method)
    expected.backward(upstream.double())
    for actual, reference in ((y, expected), (x.grad, exact.grad)):
        assert actual.dtype == torch.bfloat16
        actual = actual.cpu().double()
        torch.testing.assert_close(actual, reference, rtol=HALF_UNIT, atol=1e-5 + tf32)
    for actual, reference in ((layer.weight.grad, weight.grad), (layer.bias.grad, bias.grad)):
        assert actual.dtype == torch.float32
        actual = actual.cpu().double()
        torch.testing.assert_close(actual, reference, rtol=1e-4 + tf32, atol=1e-4 + tf32)
