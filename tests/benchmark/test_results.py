import json

import pytest

pytest.importorskip("detectron2")

from gw_detectron.benchmark.costs import ALONE, SAVED
from gw_detectron.benchmark.results import Results, save, save_picture
from gw_detectron.benchmark.workload import LayerInput
from gw_detectron.layers import GroupWhitening

BOTH = "forward + backward, ms"


@pytest.fixture
def results():
    layer = GroupWhitening(64, num_groups=16)
    small = LayerInput((1, 64, 10, 10), layer, ("a", "b", "c"))
    large = LayerInput((2, 64, 100, 100), layer, ("d",))
    of_small = {
        "GW": {SAVED: [1.0], "inference, ms": [1.0, 3.0, 2.0], BOTH: [9.0]},
        "GN": {SAVED: [0.8], "inference, ms": [1.0], BOTH: [3.0]},
    }
    of_large = {
        "GW": {SAVED: [100.0], "inference, ms": [8.0], BOTH: [40.0]},
        "GN": {SAVED: [100.0], "inference, ms": [16.0], BOTH: [0.012345]},
    }
    return Results({"processor": "none"}, ["GW", "GN"], [(small, of_small), (large, of_large)])


def tables(results):
    """Heading -> rows."""
    found, rows = {}, []
    for line in results.markdown().splitlines():
        if line.startswith("### "):
            rows = found[line[4:]] = []
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return found or rows


def test_layers_medians_spreads_ratios_and_their_mean_or_sum(results):
    found = tables(results)
    assert found["Inference, ms"] == [
        ["input", "g", "layers", "GW", "GN"],
        [":---------------", "----:", "---------:", "----------:", "-----------:"],
        ["1x64x10x10", "16", "3", "2.00 ±50%", "1.00 0.50x"],  # quartiles 1.5 and 2.5
        ["2x64x100x100", "16", "1", "8.00", "16.0 2.00x"],
        ["geometric mean", "", "", "4.00", "4.00 1.00x"],
    ]
    assert found["Forward + backward, ms"][3] == ["2x64x100x100", "16", "1", "40.0", "0.0123 0.00x"]
    assert found["Memory saved for the backward, MB"][2:] == [
        ["1x64x10x10", "16", "3", "1.00", "0.800 0.80x"],
        ["2x64x100x100", "16", "1", "100", "100 1.00x"],
        ["all layers", "", "4", "103", "102 0.99x"],
    ]


def test_share_of_copy_bandwidth_is_of_the_least_traffic_and_what_is_missing_a_dash(results):
    results.bandwidth, results.names = 5e8, ["GN", "GW", "GW PyTorch"]
    (_, of_small), _ = results.costs
    of_small["GW PyTorch"] = {"inference, ms": [4.0], ALONE: [1.0]}
    found = tables(results)
    header, _, small, large, mean = found["Inference, ms"]
    assert header[3:6] == results.names
    assert header[6:] == [f"{norm}'s share of copy bandwidth" for norm in results.names[1:]]
    # 6,400 and 1.28 million values at 500 million/s are 0.0128 and 2.56 ms for each of three times
    assert small[3:] == ["1.00", "2.00 ±50% 2.00x", "4.00 4.00x", "2%", "1%"]
    assert large[3:] == ["16.0", "8.00 0.50x", "-", "96%", "-"]
    assert mean[3:6] == ["4.00", "4.00 1.00x", "-"]
    assert [row[6] for row in found["Forward + backward, ms"][2:4]] == ["1%", "51%"]  # eight times
    assert found["Forward + backward on the GPU alone, ms"][2][5:] == ["1.00", "-", "10%"]
    assert len(found["Memory saved for the backward, MB"][0]) == 6


def test_models_are_rows_with_ratios_to_the_first():
    costs = {
        "GN": {SAVED: [50.0], "training step, ms": [400.0], "inference, ms": [100.0]},
        "GW": {SAVED: [60.0], "training step, ms": [500.0], "inference, ms": [125.0]},
    }
    header, _, *rows = tables(Results({}, ["GN", "broken", "GW"], [(None, costs)]))
    assert header == ["model", "training step, ms", "inference, ms", SAVED]
    assert rows == [
        ["GN", "400", "100", "50.0"],
        ["GW", "500 1.25x", "125 1.25x", "60.0 1.20x"],
    ]


def test_what_failed_is_a_line_of_moderate_length_with_the_inputs(results):
    for at, _ in results.costs:
        results.fail("GW", RuntimeError("begin " + 1000 * "x\n" + " end"), at)
    line = results.markdown().splitlines()[-1]
    assert line.startswith("Without GW: RuntimeError: begin x x") and len(line) < 400
    assert line.endswith("x end (at 1x64x10x10, 2x64x100x100)")


def test_saved_files_have_the_tables_every_round_and_the_picture(results, tmp_path):
    results.fail("compiled", RuntimeError("no compiler"))
    save(str(tmp_path / "new"), "benchmark.py layers", {"Layers": results})
    save_picture(str(tmp_path / "new"), {"Empty": Results({}), "Layers": results})
    text = (tmp_path / "new" / "benchmark.md").read_text()
    for part in ("benchmark.py layers\n", "## Layers\n", "- processor: none\n", "geometric mean"):
        assert part in text
    assert "\nWithout compiled: RuntimeError: no compiler\n" in text and "benchmark.png" in text
    assert (tmp_path / "new" / "benchmark.png").stat().st_size > 10_000
    part = json.loads((tmp_path / "new" / "benchmark.json").read_text())["parts"]["Layers"]
    assert part["results"][0]["shape"] == [1, 64, 10, 10]
    assert part["results"][0]["layers"] == ["a", "b", "c"]
    assert part["results"][0]["costs"]["GW"]["inference, ms"] == [1.0, 3.0, 2.0]


def test_bars_go_from_1_to_the_ratio_and_what_is_missing_has_none(results):
    del results.costs[1][1]["GN"]["inference, ms"]
    inference, _, saved = results.draw().axes
    assert [label.get_text() for label in inference.get_yticklabels()] == [
        "1x64x10x10",
        "2x64x100x100",
    ]
    first, second = inference.patches
    assert (first.get_x(), first.get_x() + first.get_width()) == (1, pytest.approx(0.5))
    assert not second.get_width() > 0 and not second.get_width() < 0
    assert [text.get_text() for text in saved.texts] == ["0.8", "1"]
