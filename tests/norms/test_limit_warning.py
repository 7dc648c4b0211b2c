import pytest
import torch
from torch import nn

from gw_detectron import engine
from gw_detectron.data import register_shapes
from gw_detectron.layers import GroupWhitening
from gw_detectron.norms import limit_warning
from gw_detectron.norms.limit_warning import warn_over_limit

from .models import FULLY_CONNECTED, QUICKSTART


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(limit_warning.logger, "handlers", [caplog.handler])
    monkeypatch.setattr(limit_warning.logger, "propagate", False)
    return caplog


def model_with(norm):
    return nn.Sequential(nn.Linear(64, 64), norm, nn.ReLU())


def test_a_layer_over_its_limit_is_named_once_in_one_line(warnings):
    model = model_with(GroupWhitening(64))
    warn_over_limit(model)
    assert not warnings.messages
    for _ in range(2):
        model(torch.randn(2, 64)).sum().backward()
    (line,) = warnings.messages
    assert "1 (GW, num_groups 64 on 64 values, at most 8)" in line and "\n" not in line


def test_it_looks_at_the_smallest_of_all_calls(warnings):
    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = GroupWhitening(64)

        def forward(self, levels):
            return [self.norm(level) for level in levels]

    warn_over_limit(model := Levels())
    model([torch.randn(1, 64, size, size) for size in (8, 5, 9)])
    assert "64 on 1600 values" in warnings.messages[0]


@pytest.mark.parametrize("norm", [GroupWhitening(64, 8), nn.BatchNorm1d(64), nn.GroupNorm(32, 64)])
def test_other_layers_are_no_matter(warnings, norm):
    warn_over_limit(model := model_with(norm))
    model(torch.randn(2, 64))
    assert not warnings.messages


def test_nothing_is_left_in_the_model(warnings):
    model = model_with(GroupWhitening(64))
    warn_over_limit(model)
    model(torch.randn(2, 64))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_looks_into_what_distributed_training_wraps(warnings):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    warn_over_limit(model := Wrapper(model_with(GroupWhitening(64))))
    model(torch.randn(2, 64))
    assert "1 (GW" in warnings.messages[0]


def test_training_warns_at_its_start(tmp_path):
    register_shapes(name := f"shapes {tmp_path.name}", str(tmp_path), num_train=4, num_val=1)
    opts = [
        "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path),
        "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "1",
        "INPUT.MIN_SIZE_TRAIN", "(64,)", *FULLY_CONNECTED,
    ]  # fmt: skip
    engine.main(engine.argument_parser().parse_args(["--config-file", QUICKSTART, *opts]))
    log = (tmp_path / "log.txt").read_text()
    assert log.count("roi_heads.box_head (GW, num_groups 64 on 1024 values, at most 32)") == 1
