import json
import statistics

import torch
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter
from torch import nn

import train_net
from gw_detectron.data import register_shapes
from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.diagnostics_hook import NormDiagnosticsHook

from .models import FULLY_CONNECTED, QUICKSTART


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            GroupWhitening(8, num_groups=4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
        )

    def forward(self, x):
        return {"loss": self.body(x).square().mean()}


def train(folder, period):
    """Four iterations, then (the weights, the records of metrics.json)."""
    torch.manual_seed(0)
    model = Model()
    images = [torch.randn(2, 3, 12, 12) for _ in range(4)]
    trainer = SimpleTrainer(model, images, torch.optim.SGD(model.parameters(), 0.1))
    folder.mkdir()
    path = folder / "metrics.json"
    registered = [
        # as Detectron2's evaluation does
        hooks.EvalHook(2, lambda: model(images[0]) and None),
        hooks.PeriodicWriter([JSONWriter(str(path))], period=2),
    ]
    diagnostics = [NormDiagnosticsHook(model, period)] if period else []
    trainer.register_hooks(registered + diagnostics)
    trainer.train(0, 4)
    assert not any(module._forward_hooks for module in model.modules())
    return model.state_dict(), [json.loads(line) for line in path.read_text().splitlines()]


def test_scalars_are_written_and_the_weights_are_those_of_training_without_it(tmp_path):
    weights, without = train(tmp_path / "without", period=0)
    watched_weights, records = train(tmp_path / "with", period=2)
    assert all(map(torch.equal, weights.values(), watched_weights.values()))
    losses, losses_without = (
        [record["total_loss"] for record in written] for written in (records, without)
    )
    assert losses == losses_without and len(losses) == 2

    assert [
        record["iteration"] for record in records if "norm_condition_after/body.1" in record
    ] == [1, 3]
    scalars = {key: value for key, value in records[0].items() if key.startswith("norm_")}
    assert set(scalars) == {
        f"norm_{statistic}/{name}"
        for statistic in (
            "condition_before", "condition_after", "first_share_before", "first_share_after",
            "variance_after",
        )
        for name in ("body.1", "body.5", "median")
    }  # fmt: skip
    assert scalars["norm_condition_after/body.1"] < scalars["norm_condition_before/body.1"]
    of_layers = [scalars[f"norm_variance_after/{name}"] for name in ("body.1", "body.5")]
    assert scalars["norm_variance_after/median"] == statistics.median(of_layers)


def test_training_writes_them_and_warns_of_a_layer_over_its_limit(tmp_path):
    register_shapes(name := f"diagnosed {tmp_path.name}", str(tmp_path), num_train=4, num_val=1)
    train_net.main(train_net.argument_parser().parse_args([
        "--config-file", QUICKSTART, *FULLY_CONNECTED, "MODEL.GW.DIAGNOSTICS_PERIOD", "2",
        "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "2",
        "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "MODEL.FPN.OUT_CHANNELS", "32", "OUTPUT_DIR", str(tmp_path),
    ]))  # fmt: skip
    record = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    name = "backbone.bottom_up.res5.1.conv2"
    before, after = (record[f"norm_condition_{place}/{name}"] for place in ("before", "after"))
    assert record["iteration"] == 1 and 1 <= after < before
    log = (tmp_path / "log.txt").read_text()
    assert log.count("roi_heads.box_head (GW, num_groups 64 on 1024 values, at most 32)") == 1
    (tmp_path / "model_final.pth").unlink()
