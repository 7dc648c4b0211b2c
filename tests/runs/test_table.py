import csv
import io
import itertools
import math

import pytest

pytest.importorskip("detectron2")

from gw_detectron.runs.run import read_run
from gw_detectron.runs.table import make_table

from .synthetic import eval_record, everywhere, train_record, write_run


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
        "gain": "baseline",
    }
    records = [train_record(199), eval_record(200, 40.0, segm__AP=35.0, bbox__APs=math.nan)]
    (row,) = cells(table_of({"records": records, "MODEL__RESNETS__NORM": "GN"}))
    assert row["mask AP"] == "35.00" and "APs" not in row and row["gain"] == "none"


def test_gains_are_over_frozen_bn_of_the_same_row(table_of):
    table = table_of(
        {"ap": 43.5, **everywhere("GW")},
        {"ap": 41.0, **everywhere("BN")},
        {"ap": 40.0, "MODEL__RESNETS__NORM": "FrozenBN"},
        {"ap": 39.0, **everywhere("FrozenBN")},
        {"ap": 50.0, "SOLVER__MAX_ITER": 400, **everywhere("GW")},
    )
    gains = {(row["norm"], row["iterations"]): row["gain"] for row in cells(table)}
    assert gains == {
        ("FrozenBN", "200"): "baseline",
        ("GW", "200"): "+3.50",
        ("BN", "200"): "+1.00",
        ("FrozenBN, FPN FrozenBN", "200"): "-1.00",
        ("GW", "400"): "none",
    }
    assert table.lines[0].norm == "FrozenBN"


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
    assert [row["gain"] for row in cells(table)] == ["baseline", "+4.00", "none"]


def test_rows_and_norms_of_one_label_are_told_apart_by_what_differs(table_of):
    first, second, third = cells(
        table_of(
            {},
            {"SOLVER__BASE_LR": 0.04},
            {"SOLVER__BASE_LR": 0.04, "INPUT__FORMAT": "RGB"},
        )
    )
    assert first["config"].endswith("SOLVER.BASE_LR 0.001")
    assert second["config"] == third["config"] and "SOLVER.BASE_LR 0.04" in second["config"]
    assert second["norm"].endswith("INPUT.FORMAT BGR") and third["norm"].endswith("FORMAT RGB")


def test_what_is_incidental_does_not_part_seeds(table_of):
    table = table_of(
        {"SEED": 1, "OUTPUT_DIR": "a", "MODEL__DEVICE": "cpu"},
        {"SEED": 2, "OUTPUT_DIR": "b", "SOLVER__CHECKPOINT_PERIOD": 7, "TEST__EVAL_PERIOD": 50},
    )
    assert [len(line.runs) for line in table.lines] == [2]


def test_unfinished_runs_are_named_and_not_averaged(table_of, tmp_path):
    assert "No run has a result" in table_of({"records": [train_record(19)]}).markdown()
    table = table_of(
        {"ap": 40.0, "SEED": 1},
        {"records": [train_record(119), eval_record(119, 99.0)], "SEED": 2},
    )
    assert cells(table)[0]["box AP"] == "40.00"
    assert f"- {tmp_path / '2'}: stopped at iteration 119 of 200" in table.markdown()


def test_a_second_run_of_one_seed_is_no_second_seed(table_of, tmp_path):
    table = table_of({"ap": 40.0}, {"ap": 40.0}, {"ap": 42.0, "SEED": 2})
    assert cells(table)[0]["box AP"] == "41.00 ± 1.41"
    assert table.problems == [
        (str(tmp_path / "1"), f"the same config and seed as {tmp_path / '0'}")
    ]


def test_runs_without_a_seed_are_all_counted(table_of):
    assert table_of({"SEED": -1}, {"SEED": -1}).lines[0].aps["bbox/AP"].count() == 2


def test_each_dataset_has_its_line(table_of):
    record = eval_record(200, 41.0, "a/") | eval_record(200, 12.0, "c/")
    table = table_of({"records": [train_record(199), record], "DATASETS__TEST": "('a', 'c')"})
    assert [(line.dataset, line.aps["bbox/AP"].mean()) for line in table.lines] == [
        ("a", 41.0),
        ("c", 12.0),
    ]


PAPERS = {
    "MODEL__WEIGHTS": "x.pkl",
    "DATASETS__TRAIN": "('coco_2017_train',)",
    "DATASETS__TEST": "('coco_2017_val',)",
    "SOLVER__MAX_ITER": 90000,
    "SOLVER__STEPS": "(60000, 80000)",
    "SOLVER__BASE_LR": 0.02,
    "records": [train_record(89999), eval_record(90000, 38.63)],
    "MODEL__BACKBONE__NAME": "build_gw_resnet_fpn_backbone",
    "MODEL__RESNETS__NORM": "GW",
}


def test_the_papers_figure_stands_beside_its_row(table_of):
    papers, other = cells(table_of(PAPERS, {}))
    assert papers["paper's box AP"] == "38.13" and papers["difference"] == "+0.50"
    assert other["paper's box AP"] == other["difference"] == "-"


def test_csv_has_numbers_in_cells_of_their_own(table_of):
    table = table_of(
        {"ap": 40.0, "SEED": 1, **everywhere("BN")},
        {"ap": 43.0, "SEED": 2, **everywhere("BN")},
        {"ap": 44.0, **everywhere("GW(num_groups=16, iterations=7)")},
    )
    first, second = csv.DictReader(io.StringIO(table.csv()))
    assert (float(first["box AP"]), float(first["box AP std"])) == (41.5, pytest.approx(4.5**0.5))
    assert second["norm"] == "GW(num_groups=16, iterations=7)" and second["box AP std"] == ""
    assert (float(second["gain"]), second["gain over"], second["dataset"]) == (2.5, "BN", "val")
