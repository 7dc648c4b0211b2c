import json
import statistics

import torch

import train_net
from gw_detectron.data import register_shapes

from .models import FULLY_CONNECTED, QUICKSTART


def train(folder, dataset, *opts):
    """Two iterations, with BN at the stages and GW elsewhere: (weights, last record, log)."""
    train_net.main(train_net.argument_parser().parse_args([
        "--config-file", QUICKSTART, *FULLY_CONNECTED, "MODEL.RESNETS.NORM", "BN", "SEED", "1",
        "DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "2",
        "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "MODEL.FPN.OUT_CHANNELS", "32", "OUTPUT_DIR", str(folder), *opts,
    ]))  # fmt: skip
    weights = torch.load(folder / "model_final.pth")["model"]
    (folder / "model_final.pth").unlink()
    record = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    return weights, record, (folder / "log.txt").read_text()


def test_training_writes_scalars_warns_of_limits_and_is_that_without_them(tmp_path):
    register_shapes(name := f"diagnosed {tmp_path.name}", str(tmp_path), num_train=4, num_val=1)
    weights, without, _ = train(tmp_path / "without", f"{name}_train")
    watched, record, log = train(
        tmp_path / "with", f"{name}_train", "MODEL.GW.DIAGNOSTICS_PERIOD", "2"
    )
    assert all(map(torch.equal, weights.values(), watched.values()))
    assert without["total_loss"] == record["total_loss"]
    assert log.count("roi_heads.box_head (GW, num_groups 64 on 1024 values, at most 32)") == 1

    assert not any(key.startswith("norm_") for key in without)
    of_layers = {}
    for key, value in record.items():
        if key.startswith("norm_"):
            statistic, layer = key.split("/")
            of_layers.setdefault(statistic, {})[layer] = value
    assert set(of_layers) == {
        "norm_condition_before", "norm_condition_after", "norm_first_share_before",
        "norm_first_share_after", "norm_variance_after",
    }  # fmt: skip
    before, after = of_layers["norm_condition_before"], of_layers["norm_condition_after"]
    assert 1 <= after["backbone.fpn_lateral5"] < before["backbone.fpn_lateral5"]
    variances = of_layers["norm_variance_after"]
    assert 0 < variances["roi_heads.box_head"] < 1
    assert variances.pop("median") == statistics.median(variances.values())
