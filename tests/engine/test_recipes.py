"""What training recipes do to a model, done to one with GW."""

import itertools
import json
import sys
from types import ModuleType

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer, hooks
from detectron2.modeling import SimpleFeaturePyramid
from detectron2.modeling.backbone import RegNet, ViT
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem
from detectron2.solver import build_optimizer
from torch import nn
from torch.utils.checkpoint import checkpoint

from gw_detectron import engine
from gw_detectron.layers import GroupWhitening

from .commands import arguments

GW = "GW(num_groups=8)"


class Net(nn.Module):
    def __init__(self, *more):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), GroupWhitening(16, num_groups=8), *more)

    def forward(self, x):
        return {"loss": self.layers(x).square().mean()}


def images(number=4):
    return torch.randn(number, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_test_time_augmentation(own_data, tmp_path):
    opts = ["SOLVER.MAX_ITER", 1, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48, 64)"]
    engine.main(arguments(own_data, tmp_path, opts=opts))
    records = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    names = {name for record in records for name in record}
    assert {"bbox/AP", "bbox_TTA/AP"} <= names


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Detectron2 has no option for it; its SimpleTrainer says which methods to wrap."""
    whole, parts = Net(), Net()
    whole(images())["loss"].backward()
    for part in images().split(1):
        (parts(part)["loss"] / 4).backward()
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit(use_reentrant):
    plain, recomputed = Net(), Net()
    x = images().requires_grad_()
    plain(x)["loss"].backward()
    expected, x.grad = x.grad, None
    checkpoint(recomputed.layers, x, use_reentrant=use_reentrant).square().mean().backward()
    assert torch.equal(x.grad, expected)
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradient, gradients(recomputed)[name])


@pytest.mark.parametrize(
    "kind, measure", [("norm", torch.Tensor.norm), ("value", torch.Tensor.abs)]
)
def test_gradients_are_clipped(kind, measure):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    model = Net()
    optimizer = build_optimizer(cfg, model)
    model(images())["loss"].backward()
    assert any((measure(gradient) > 2e-3).any() for gradient in gradients(model).values())
    optimizer.step()
    assert all((measure(gradient) <= 1.001e-3).all() for gradient in gradients(model).values())


def test_precise_bn_sets_the_batch_norms_beside_gw_and_nothing_else():
    norm = nn.BatchNorm2d(4)
    model = Net(nn.Conv2d(16, 4, 1), norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = images(6).split(2)
    trainer = SimpleTrainer(model, itertools.cycle(batches), torch.optim.SGD([norm.weight], lr=0.0))
    trainer.register_hooks([hooks.PreciseBN(0, model, itertools.cycle(batches), 3)])
    trainer.train(0, 1)
    with torch.no_grad():
        outputs = [model.layers[:-1](batch) for batch in batches]
    means = [output.mean((0, 2, 3)) for output in outputs]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed <= {
        f"layers.3.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_precise_bn_has_nothing_to_do_where_gw_is_the_only_norm():
    hook = hooks.PreciseBN(0, Net(), None, 3)
    hook.update_stats()  # and needs no images


class Mlp(nn.Sequential):
    def __init__(self, in_features, hidden_features, act_layer):
        layers = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, in_features)
        super().__init__(layers[0], act_layer(), layers[1])


@pytest.fixture
def timm(monkeypatch):
    """The layers that Detectron2's ViT takes from timm, which need not be installed here."""
    layers = ModuleType("timm.models.layers")
    layers.Mlp, layers.DropPath = Mlp, nn.Identity
    for module in ModuleType("timm"), ModuleType("timm.models"), layers:
        monkeypatch.setitem(sys.modules, module.__name__, module)


def make_vit():
    vit = ViT(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, window_size=2,
        window_block_indexes=[0], residual_block_indexes=[1], out_feature="last_feat",
    )  # fmt: skip
    return SimpleFeaturePyramid(vit, "last_feat", 32, [2.0, 1.0, 0.5], norm=GW)


def make_regnet():
    return RegNet(
        stem_class=SimpleStem, stem_width=32, block_class=ResBottleneckBlock, depth=3, w_a=16,
        w_0=32, w_m=2, group_width=8, norm=GW, out_features=["s1", "s2"],
    )  # fmt: skip


@pytest.mark.parametrize("make", [make_vit, make_regnet])
def test_other_backbones_train_with_gw(timm, make):
    torch.manual_seed(0)
    backbone = make()
    assert any(isinstance(module, GroupWhitening) for module in backbone.modules())
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        features = backbone(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
        loss = sum((feature - 1).square().mean() for feature in features.values())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in backbone.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
