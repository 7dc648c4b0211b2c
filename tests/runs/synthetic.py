"""Run directories as Detectron2 leaves them, written without training."""

import json
from pathlib import Path

from detectron2.config import get_cfg

import gw_detectron  # noqa: F401  registers MODEL.GW


def config(**overrides):
    """A config of Faster R-CNN R-50-FPN from scratch on "val"; A__B=1 overrides A.B."""
    cfg = get_cfg()
    cfg.merge_from_list([
        "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NUM_FC", "2",
        "MODEL.MASK_ON", "False",
        "MODEL.WEIGHTS", "",
        "DATASETS.TRAIN", "('train',)",
        "DATASETS.TEST", "('val',)",
        "SOLVER.MAX_ITER", "200",
        "SEED", "1",
    ])  # fmt: skip
    cfg.merge_from_list(
        [part for key, value in overrides.items() for part in (key.replace("__", "."), value)]
    )
    return cfg


def everywhere(norm):
    return {"MODEL__RESNETS__NORM": norm, "MODEL__FPN__NORM": norm}


def train_record(iteration, loss=1.0):
    return {"iteration": iteration, "total_loss": loss, "lr": 0.02, "eta_seconds": 30.0}


def eval_record(iteration, ap, prefix="", **more):
    """AP50 is AP + 20."""
    record = {"iteration": iteration, f"{prefix}bbox/AP": ap, f"{prefix}bbox/AP50": ap + 20}
    return record | {f"{prefix}{key.replace('__', '/')}": value for key, value in more.items()}


def write_run(path: Path, records=None, ap=40.0, log=None, cfg=None, **overrides) -> str:
    """
    Args:
        records: the lines of metrics.json, dicts or texts; by default those of a run that was
            trained to the end and then evaluated with that AP.
        cfg: its config; None for config(**overrides).
    """
    cfg = cfg or config(**overrides)
    if records is None:
        end = cfg.SOLVER.MAX_ITER
        records = [train_record(i, 2.0 - i / end) for i in range(19, end, 20)]
        records.append(eval_record(end, ap))
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(cfg.dump())
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (path / "metrics.json").write_text("".join(f"{line}\n" for line in lines))
    if log is not None:
        (path / "log.txt").write_text(log)
    return str(path)
