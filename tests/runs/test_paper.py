from pathlib import Path

import pytest
import yaml

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

from gw_detectron.config import flatten
from gw_detectron.runs.paper import paper_figures

CONFIGS = Path(__file__).parents[2] / "configs"
FASTER = "COCO-Detection/faster_rcnn_R_50_FPN"
MASK = "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x"


def flat(name, *overrides):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.merge_from_list(list(overrides))
    return flatten(yaml.safe_load(cfg.dump()))


@pytest.mark.parametrize(
    "name, figures",
    [
        (f"{FASTER}_2fc_1x_frozenbn", {"bbox/AP": 36.31}),
        (f"{FASTER}_2fc_1x_gn", {"bbox/AP": 36.32}),
        (f"{FASTER}_2fc_1x_gw", {"bbox/AP": 38.13}),
        (f"{FASTER}_4conv1fc_1x_frozenbn", {"bbox/AP": 36.39}),
        (f"{FASTER}_4conv1fc_1x_gn", {"bbox/AP": 37.86}),
        (f"{FASTER}_4conv1fc_1x_gw", {"bbox/AP": 39.60}),
        (f"{MASK}_frozenbn", {"bbox/AP": 42.24, "segm/AP": 37.53}),
        (f"{MASK}_gn", {"bbox/AP": 42.18, "segm/AP": 37.54}),
        (f"{MASK}_gw", {"bbox/AP": 44.41, "segm/AP": 39.17}),
        # beyond the paper
        (f"{FASTER}_4conv1fc_1x_gw_all", {}),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw", {}),
        ("COCO-Detection/retinanet_R_50_FPN_1x_gw", {}),
        ("quickstart/faster_rcnn_R_18_FPN_gw", {}),
    ],
)
def test_the_papers_rows_are_known_by_their_configs(name, figures):
    assert paper_figures(flat(name), "coco_2017_val") == figures


@pytest.mark.parametrize(
    "overrides",
    [
        ("SOLVER.MAX_ITER", "180000"),
        ("SOLVER.IMS_PER_BATCH", "8"),
        ("MODEL.RESNETS.NORM", "GW(num_groups=16)"),
        ("MODEL.GW.POSITIONS", "S1"),
        ("MODEL.RESNETS.DEPTH", "101"),
        ("MODEL.WEIGHTS", ""),
        ("DATASETS.TRAIN", "('own_train',)"),
    ],
)
def test_a_run_that_differs_is_none_of_them(overrides):
    assert paper_figures(flat(f"{FASTER}_2fc_1x_gw", *overrides), "coco_2017_val") == {}


def test_what_cannot_make_a_difference_does_not():
    config = flat(
        f"{FASTER}_2fc_1x_gw", "SEED", "7", "MODEL.ROI_BOX_HEAD.NORM", "GN",
        "MODEL.RESNETS.NORM", "GW(num_groups=64, iterations=5)",
        "DATASETS.TRAIN", "('coco_2014_train', 'coco_2014_valminusminival')",
    )  # fmt: skip
    assert paper_figures(config, "coco_2014_minival") == {"bbox/AP": 38.13}
    assert paper_figures(config, "own_val") == {}
