import itertools
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from gw_detectron.model_zoo import get_config
from gw_detectron.runs.run import read_run
from gw_detectron.runs.table import make_table

from .synthetic import eval_record, everywhere, train_record, write_run

REPRODUCE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()


@pytest.fixture
def table_of(tmp_path):
    """Makes the table of runs given as dicts of write_run's arguments."""

    numbers = itertools.count()

    def make(*runs):
        paths = [write_run(tmp_path / str(next(numbers)), **run) for run in runs]
        return make_table(map(read_run, paths))

    return make


def cells(table):
    """Rows of the Markdown table, each a dict by column."""
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_seeds_are_merged_into_mean_and_standard_deviation(table_of):
    table = table_of(*({"SEED": s, "ap": ap} for s, ap in ((1, 40.0), (2, 43.0), (3, 46.0))))
    (row,) = cells(table)  # sqrt((9 + 0 + 9) / 2)
    assert row["seeds"] == "3" and row["box AP"] == "43.00 ± 3.00" and row["AP50"] == "63.00 ± 3.00"


def test_one_seed_has_no_deviation_and_columns_that_no_run_has_are_left_out(table_of):
    (row,) = cells(table_of({"ap": 40.125}))
    assert row == {
        "config": "Faster R-CNN R-50-FPN 2fc, from scratch, val",
        "norm": "FrozenBN",
        "seeds": "1",
        "iterations": "200",
        "box AP": "40.12",
        "AP50": "60.12",
    }
    records = [train_record(199), eval_record(200, 40.0, segm__AP=35.0, bbox__APs=math.nan)]
    (row,) = cells(table_of({"records": records, "MODEL__RESNETS__NORM": "GN"}))
    assert row["mask AP"] == "35.00" and "APs" not in row


def listed(table):
    """The differences, by the titles of their lists."""
    parts = table.markdown().split("\n\n")
    return {
        title: [line.removeprefix("- ") for line in found.splitlines()]
        for title, found in itertools.pairwise(parts)
        if title.endswith(" iterations:")
    }


def test_the_differences_between_the_norms_of_a_row_are_listed(table_of):
    table = table_of(
        {"ap": 40.0, "MODEL__RESNETS__NORM": "FrozenBN"},
        {"ap": 41.0, **everywhere("BN")},
        {"ap": 43.5, **everywhere("GW")},
        {"ap": 50.0, "SOLVER__MAX_ITER": 400, **everywhere("GW")},
    )
    assert listed(table) == {
        "box AP, Faster R-CNN R-50-FPN 2fc, from scratch, val, 200 iterations:": [
            "BN - FrozenBN: +1.0",
            "GW - FrozenBN: +3.5",
            "GW - BN: +2.5",
        ]
    }


def test_what_the_intervals_are_is_said_where_there_are_differences(table_of):
    one = {"ap": 40.0, **everywhere("BN")}
    assert "interval" not in table_of(one).markdown()
    both = table_of(
        *(one | {"SEED": s} for s in (1, 2)), *(everywhere("GN") | {"SEED": s} for s in (1, 2))
    )
    assert "GN - BN: none, +0.0, [0.0, 0.0] over 2 seeds" in both.markdown()
    assert both.markdown().endswith("A difference whose interval holds 0 is none.\n")


def test_mask_ap_has_a_list_of_its_own(table_of):
    records = {ap: [train_record(199), eval_record(200, 40.0, segm__AP=ap)] for ap in (33.0, 35.0)}
    table = table_of(
        {"records": records[33.0], "MODEL__MASK_ON": True, **everywhere("BN")},
        {"records": records[35.0], "MODEL__MASK_ON": True, **everywhere("GW")},
        {"ap": 39.0, "MODEL__MASK_ON": True, **everywhere("GN")},  # without a mask AP
    )
    boxes, masks = listed(table).items()
    assert boxes[0].startswith("box AP, Mask R-CNN") and len(boxes[1]) == 3
    assert masks[0].startswith("mask AP, Mask R-CNN")
    assert masks[1] == ["GW, mask head none - BN, mask head none: +2.0"]


def test_weights_and_their_input_belong_to_the_norm(table_of):
    table = table_of(
        {"ap": 40.0, "MODEL__RESNETS__NORM": "FrozenBN", "MODEL__WEIGHTS": "bn.pkl"},
        {
            "ap": 44.0,
            **everywhere("GN"),
            "MODEL__WEIGHTS": "gn.pkl",
            "INPUT__FORMAT": "RGB",
            "MODEL__RESNETS__STRIDE_IN_1X1": False,
        },
        {"ap": 48.0, **everywhere("GN")},  # from scratch is another row
    )
    assert [*listed(table).values()] == [["GN - FrozenBN: +4.0"]]


def test_rows_and_norms_of_one_label_are_told_apart_by_what_differs(table_of):
    first, second, third = cells(
        table_of(
            {},
            {"SOLVER__MOMENTUM": 0.8},
            {"SOLVER__MOMENTUM": 0.8, "INPUT__FORMAT": "RGB"},
        )
    )
    assert first["config"].endswith("SOLVER.MOMENTUM 0.9")
    assert second["config"] == third["config"] and "SOLVER.MOMENTUM 0.8" in second["config"]
    assert second["norm"].endswith("INPUT.FORMAT BGR") and third["norm"].endswith("FORMAT RGB")


def test_norms_are_compared_each_at_its_own_learning_rate(table_of):
    table = table_of(
        {"ap": 40.0, "SOLVER__BASE_LR": 0.01, **everywhere("GN")},
        {"ap": 41.0, "SOLVER__BASE_LR": 0.02, **everywhere("GN")},
        {"ap": 45.0, "SOLVER__BASE_LR": 0.02, **everywhere("GW")},
    )
    rates = (("GN", 0.01), ("GN", 0.02), ("GW", 0.02))
    low, high, gw = (f"{norm}, SOLVER.BASE_LR {rate}" for norm, rate in rates)
    assert [row["norm"] for row in cells(table)] == [low, high, gw]
    assert [*listed(table).values()] == [
        [f"{high} - {low}: +1.0", f"{gw} - {low}: +5.0", f"{gw} - {high}: +4.0"]
    ]


def test_what_is_incidental_does_not_part_seeds(table_of):
    table = table_of(
        {"SEED": 1, "OUTPUT_DIR": "a", "MODEL__DEVICE": "cpu", "MODEL__GW__CLASSES": ("cat",)},
        {"SEED": 2, "OUTPUT_DIR": "b", "SOLVER__CHECKPOINT_PERIOD": 7, "TEST__EVAL_PERIOD": 50},
    )
    assert [len(line.runs) for line in table.lines] == [2]


def test_each_dataset_has_its_line(table_of):
    record = eval_record(200, 41.0, "a/") | eval_record(200, 12.0, "c/")
    table = table_of({"records": [train_record(199), record], "DATASETS__TEST": "('a', 'c')"})
    assert [(line.dataset, line.aps["bbox/AP"].mean()) for line in table.lines] == [
        ("a", 41.0),
        ("c", 12.0),
    ]


CONFIG_LABELS = [
    ({}, "Faster R-CNN R-50-FPN 2fc, from scratch, val"),
    (
        {
            "MODEL__MASK_ON": True,
            "MODEL__WEIGHTS": "x.pkl",
            "MODEL__RESNETS__DEPTH": 101,
            "MODEL__RESNETS__NUM_GROUPS": 32,
            "MODEL__RESNETS__WIDTH_PER_GROUP": 8,
            "MODEL__ROI_BOX_HEAD__NUM_CONV": 4,
            "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
        },
        "Mask R-CNN X-101-32x8d-FPN 4conv1fc, val",
    ),
    (
        {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads", "MODEL__MASK_ON": True},
        "Cascade Mask R-CNN R-50-FPN 2fc, from scratch, val",
    ),
    (
        {
            "MODEL__META_ARCHITECTURE": "RetinaNet",
            "MODEL__BACKBONE__NAME": "build_gw_retinanet_resnet_fpn_backbone",
        },
        "RetinaNet R-50-FPN, from scratch, val",
    ),
]


def test_a_configs_label_says_what_the_detector_is(table_of):
    rows = cells(table_of(*(overrides for overrides, _ in CONFIG_LABELS)))
    assert [row["config"] for row in rows] == [label for _, label in CONFIG_LABELS]


def test_the_papers_aps_stand_beside_its_rows_and_no_others(table_of):
    # In docs/reproduce.md a row links to its config; APs of two decimals at its end are the paper's
    rows = re.findall(r"\(\.\./configs/(\S+)\.yaml\) \|.*?((?: \d+\.\d\d \|)*)$", REPRODUCE, re.M)
    papers = {name: tuple(map(float, re.findall(r"[\d.]+", aps))) for name, aps in rows}
    assert sum(map(bool, papers.values())) == 9 and len(papers) > 9
    own = {"SEED": 7, "MODEL.WEIGHTS": "mine.pth", "SOLVER.REFERENCE_WORLD_SIZE": 8}
    expected = [(name, own, aps) for name, aps in papers.items()]
    others = {"SOLVER.MAX_ITER": 180000, "SOLVER.BASE_LR": 0.04, "MODEL.GW.POSITIONS": "S1"}
    for other in (others | {"MODEL.WEIGHTS": ""}).items():
        expected.append(("COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gw", dict([other]), ()))
    runs = []
    for name, overrides, _ in expected:
        cfg = get_config(f"{name}.yaml")
        cfg.merge_from_list([part for pair in overrides.items() for part in pair])
        end = cfg.SOLVER.MAX_ITER
        runs.append({"records": [train_record(end - 1), eval_record(end, 38.0)], "cfg": cfg})
    table = table_of(*runs)
    assert {"38.13", "-"} < {row["paper's box AP"] for row in cells(table)}
    found = {}
    for line in table.lines:
        aps = map(line.cells().get, ("paper's box AP", "paper's mask AP"))
        found[int(line.runs[0].path.rpartition("/")[2])] = tuple(filter(None, aps))
    assert [found[i] for i in range(len(runs))] == [aps for _, _, aps in expected]
