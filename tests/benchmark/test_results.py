import pandas as pd
import pytest

pytest.importorskip("detectron2")

from gw_detectron.benchmark import results
from gw_detectron.benchmark.results import collect, tables

BOTH, SAVED = "forward + backward, ms", "memory saved, MB"
SMALL, LARGE = "1x64x10x10, 3 layers", "2x64x100x100, 1 layer"


def rows(part, costs):
    """Of {input: {name: {quantity: values of the rounds, or a failure}}}."""
    for at, of_input in costs.items():
        for name, of_name in of_input.items():
            for quantity, values in of_name.items():
                row = {"part": part, "input": at, "name": name, "quantity": quantity}
                if isinstance(values, str):
                    yield {**row, "failure": values}
                else:
                    yield from ({**row, "round": n, "value": v} for n, v in enumerate(values))


LAYERS = {
    SMALL: {
        "GW": {SAVED: [1.0], "inference, ms": [1.0, 3.0, 2.0], BOTH: [9.0]},
        "GN": {SAVED: [0.8], "inference, ms": [1.0], BOTH: [3.0]},
    },
    LARGE: {
        "GW": {SAVED: [100.0], "inference, ms": [8.0], BOTH: [40.0]},
        "GN": {SAVED: [100.0], "inference, ms": [16.0], BOTH: [0.012345]},
    },
}


def read(text):
    """Heading -> the rows of the table under it, without the line under the header."""
    found = {}
    for line in text.splitlines():
        if line.startswith("### "):
            table = found[line[4:]] = []
        elif line.startswith("|") and not line.startswith("|:"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_layers_have_medians_spreads_ratios_and_their_mean_times_first():
    text = tables(list(rows("Layers", LAYERS)))
    assert text.startswith("## Layers\n")
    found = read(text)
    assert list(found) == ["inference, ms", BOTH, SAVED]
    assert found["inference, ms"] == [
        ["input", "GW", "GN"],
        [SMALL, "2.00 ±50%", "1.00 0.50x"],  # quartiles 1.5 and 2.5
        [LARGE, "8.00", "16.0 2.00x"],
        ["geometric mean", "4.00", "4.00 1.00x"],
    ]
    assert found[BOTH][2] == [LARGE, "40.0", "0.0123 0.00x"]
    assert found[SAVED][1:3] == [[SMALL, "1.00", "0.800 0.80x"], [LARGE, "100", "100 1.00x"]]


def test_what_has_failed_is_a_dash_and_a_line_of_moderate_length_with_the_inputs():
    # The first of all fails at the first input, and stays what the others are compared with
    failing = {
        SMALL: {"GW": {"": "E: begin " + 300 * "x "}, "GN": LAYERS[SMALL]["GN"]},
        LARGE: {"broken": {"": "E: broken"}, **LAYERS[LARGE]},
    }
    text = tables(list(rows("Layers", failing)))
    assert read(text)["inference, ms"] == [
        ["input", "GW", "GN"],
        [SMALL, "-", "1.00"],
        [LARGE, "8.00", "16.0 2.00x"],
        ["geometric mean", "-", "4.00"],
    ]
    of_gw, of_broken = text.splitlines()[-3::2]
    assert of_gw.startswith("Without GW: E: begin x x") and len(of_gw) < 400
    assert of_gw.endswith(f"(at {SMALL})")
    assert of_broken == f"Without broken: E: broken (at {LARGE})"


def test_models_are_rows_with_ratios_to_the_first():
    costs = {
        "GN": {SAVED: [50.0], "training step, ms": [400.0], "inference, ms": [100.0]},
        "GW": {SAVED: [60.0], "training step, ms": [500.0], "inference, ms": [125.0]},
    }
    found = read(tables(list(rows("Whole models", {"1x3x50x64": costs}))))
    assert found == {
        "1x3x50x64": [
            ["", "training step, ms", "inference, ms", SAVED],
            ["GN", "400", "100", "50.0"],
            ["GW", "500 1.25x", "125 1.25x", "60.0 1.20x"],
        ]
    }


def test_files_have_the_tables_and_every_round_while_rows_come_and_after_an_error(
    tmp_path, monkeypatch
):
    def interrupted():
        yield from rows("Layers", LAYERS)
        yield from rows("Whole models", {"1x3x50x64": LAYERS[SMALL]})
        seen.append((tmp_path / "new" / "benchmark.csv").read_text().count("\n"))
        raise KeyboardInterrupt

    seen = []
    monkeypatch.setattr(results, "_SAVE_EVERY", 0)
    with pytest.raises(KeyboardInterrupt):
        collect(interrupted(), "benchmark.py gpu", str(tmp_path / "new"))
    text = (tmp_path / "new" / "benchmark.md").read_text()
    for part in ("    benchmark.py gpu\n", "PyTorch", "## Layers\n", "## Whole models\n"):
        assert part in text
    frame = pd.read_csv(tmp_path / "new" / "benchmark.csv")
    assert seen == [len(frame) + 1]
    of_gw = frame[(frame["part"] == "Layers") & (frame["input"] == SMALL) & (frame["name"] == "GW")]
    assert list(of_gw[of_gw["quantity"] == "inference, ms"]["value"]) == [1.0, 3.0, 2.0]


def test_nothing_is_written_where_nothing_is_measured_and_no_more_is_taken_after_the_time(tmp_path):
    with pytest.raises(ZeroDivisionError):
        collect((1 / 0 for _ in "a"), "command", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    taken = rows("Layers", LAYERS)
    text = collect(taken, "command", str(tmp_path), seconds=-1)
    assert text == (tmp_path / "benchmark.md").read_text() and len(list(taken)) == 12 - 1 + 2
