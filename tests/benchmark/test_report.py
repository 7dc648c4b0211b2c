import json

import pytest

pytest.importorskip("detectron2")

from gw_detectron.benchmark import plot
from gw_detectron.benchmark.inputs import LayerInput
from gw_detectron.benchmark.layers import LayerResults
from gw_detectron.benchmark.models import ModelResults
from gw_detectron.benchmark.report import Cost, Value, cells, geometric_mean
from gw_detectron.layers import GroupWhitening

SAVED = "saved for the backward"


def cost(inference, both, saved):
    times = {"inference": inference, "forward + backward": both, "backward": both}
    peaks = {"peak of inference": saved, "peak of forward + backward": 2 * saved}
    return Cost(times, {SAVED: saved} | peaks)


@pytest.fixture
def figures(monkeypatch):
    """Those that are drawn."""
    drawn = []

    class Figure(plot.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(plot, "Figure", Figure)
    return drawn


@pytest.fixture
def results():
    layer = GroupWhitening(64, num_groups=16)
    small, large = (1, 64, 10, 10), (2, 64, 100, 100)
    return LayerResults(
        about={"processor": "none"},
        norms=["GW", "GN"],
        costs=[
            (
                LayerInput(small, layer, ("a", "b", "c")),
                {
                    "GW": cost([0.001, 0.003, 0.002], [0.009], 10**6),
                    "GN": cost([0.001], [0.003], 8 * 10**5),
                },
            ),
            (
                LayerInput(large, layer, ("d",)),
                {"GW": cost([0.008], [0.04], 10**8), "GN": cost([0.016], [0.01], 10**8)},
            ),
        ],
    )


def rows(section):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]


def test_median_and_interquartile_range():
    value = Value.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert value == Value(3.0, 2 / 3)  # quartiles 2 and 4
    assert Value.of([2.5]) == Value(2.5, None)


def test_a_cell_has_three_digits_the_spread_and_the_ratio():
    assert Value(12.345, 0.041).cell() == "12.3 ±4%"
    assert Value(0.012345).cell(Value(0.01)) == "0.0123 1.23x"
    assert Value(1234.5, 0.5).cell(Value(2469.0)) == "1234 ±50% 0.50x"
    assert cells([Value(2.0), Value(4.0), Value(1.0)]) == ["2.00", "4.00 2.00x", "1.00 0.50x"]


def test_geometric_mean():
    assert geometric_mean([Value(2.0), Value(4.0), Value(8.0)]).number == pytest.approx(4.0)


def test_layers_times_and_their_geometric_mean(results):
    header, _, *body = rows(results.sections()["Inference, ms"])
    assert header == ["input", "g", "layers", "GW", "GN"]
    assert body == [
        ["1x64x10x10", "16", "3", "2.00 ±50%", "1.00 0.50x"],
        ["2x64x100x100", "16", "1", "8.00", "16.0 2.00x"],
        ["geometric mean", "", "", "4.00", "4.00 1.00x"],
    ]


def test_saved_memory_is_summed_over_all_layers(results):
    body = rows(results.sections()[f"Memory {SAVED}, MB"])[2:]
    assert body == [
        ["1x64x10x10", "16", "3", "1.00", "0.800 0.80x"],
        ["2x64x100x100", "16", "1", "100", "100 1.00x"],
        ["all layers", "", "4", "103", "102 0.99x"],
    ]


def test_share_of_copy_bandwidth_is_of_the_least_traffic(results):
    results.bandwidth = 1e9
    of_phase = {}
    for phase in ("Inference", "Forward + backward", "Backward"):
        header, _, *body = rows(results.sections()[f"{phase}, ms"])
        assert header[-1] == "GW's share of copy bandwidth"
        of_phase[phase] = [row[-1] for row in body]
    # 25.6 kB and 5.12 MB at 1 GB/s are 0.0256 and 5.12 ms for each time that x is read or written
    assert of_phase == {
        "Inference": ["4%", "192%", ""],  # 3 times, in 2 and 8 ms
        "Forward + backward": ["2%", "102%", ""],  # 8 times, in 9 and 40 ms
        "Backward": ["1%", "64%", ""],  # 5 times
    }
    results.itemsize = 2
    assert rows(results.sections()["Inference, ms"])[3][-1] == "96%"


def test_both_backends_have_a_share_and_what_was_not_measured_a_dash(results):
    results.bandwidth, results.norms = 1e9, ["GN", "GW Triton", "GW PyTorch"]
    results.costs = [(at, {"GN": of["GN"], "GW PyTorch": of["GW"]}) for at, of in results.costs]
    (at, first), _ = results.costs
    first["GW Triton"] = cost([0.004], [0.006], 10**6)
    header, _, *body = rows(results.sections()["Inference, ms"])
    assert header[3:] == [
        "GN", "GW Triton", "GW PyTorch",
        "GW Triton's share of copy bandwidth", "GW PyTorch's share of copy bandwidth",
    ]  # fmt: skip
    assert [row[3:] for row in body] == [
        ["1.00", "4.00 4.00x", "2.00 ±50% 2.00x", "2%", "4%"],
        ["16.0", "-", "8.00 0.50x", "-", "192%"],
        ["4.00", "-", "4.00 1.00x", "", ""],
    ]
    body = rows(results.sections()[f"Memory {SAVED}, MB"])[2:]
    assert body[2][3:] == ["102", "-", "103 1.01x"]


def test_speed_is_of_the_gpu_alone_and_of_eager_calls_with_their_geometric_mean(results):
    for (_, by_norm), seconds in zip(results.costs, (0.002, 0.008), strict=True):
        by_norm["GW"].times["forward + backward, GPU alone"] = [seconds]
    alone, eager = results.speed()
    assert [alone.title, eager.title] == [
        "forward + backward, GPU alone",
        "forward + backward, eager",
    ]
    assert [label for label, _ in eager.groups] == ["1x64x10x10", "2x64x100x100", "geometric mean"]
    assert [amounts for _, amounts in alone.groups] == [
        [2.0, None],
        [8.0, None],
        [pytest.approx(4.0), None],
    ]


def test_what_failed_is_a_line_of_moderate_length_and_json_has_the_traceback(results, tmp_path):
    try:
        raise RuntimeError("begin " + 1000 * "x\n" + " end")
    except RuntimeError as error:
        results.fail("GW", error, "here")
        results.fail("GW", error, "there")
    (line,) = results.remarks()
    assert line.startswith("Without GW: RuntimeError: begin x x") and len(line) < 400
    assert line.endswith("x end (at here, there)") and line in results.markdown()
    results.save(str(tmp_path))
    ((_, failure),) = json.loads((tmp_path / "benchmark.json").read_text())["failures"].items()
    assert "in test_what_failed" in failure["traceback"] and failure["places"] == ["here", "there"]


def test_a_save_that_fails_leaves_the_files_as_they_were(results, tmp_path, monkeypatch):
    results.save(str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"benchmark.md", "benchmark.png", "benchmark.json"}
    monkeypatch.setattr("os.replace", lambda *args: pytest.fail("not yet complete"))
    monkeypatch.setattr(LayerResults, "markdown", lambda self: 1 / 0)
    with pytest.raises(pytest.fail.Exception):
        results.save(str(tmp_path))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_model_tables_relate_every_model_to_the_first():
    def of_model(ms, mb):
        memory = dict.fromkeys([SAVED, "peak of the training step"], mb * 10**6)
        return Cost({"training step": [ms / 1e3], "inference": [ms / 4e3]}, memory)

    results = ModelResults({}, costs={"GN": of_model(400, 50), "GW": of_model(500, 60)})
    time, memory = (rows(section) for section in results.sections().values())
    assert time[2:] == [["GN", "400", "100"], ["GW", "500 1.25x", "125 1.25x"]]
    assert memory[2:] == [["GN", "50.0", "50.0"], ["GW"] + ["60.0 1.20x"] * 2]


def test_saved_files_have_the_tables_every_round_and_the_picture(results, tmp_path):
    results.notes.append("Something is missing.")
    results.save(str(tmp_path / "new"))
    text = (tmp_path / "new" / "benchmark.md").read_text()
    assert "- processor: none" in text and "| geometric mean |" in text
    assert "\nSomething is missing.\n" in text and "(benchmark.png)" in text
    assert (tmp_path / "new" / "benchmark.png").stat().st_size > 10_000
    raw = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert raw["about"] == {"processor": "none"}
    first = raw["results"][0]
    assert first["shape"] == [1, 64, 10, 10] and first["layers"] == ["a", "b", "c"]
    assert first["costs"]["GW"]["times"]["inference"] == [0.001, 0.003, 0.002]


def test_one_norm_alone_has_no_ratios_to_draw(results, tmp_path):
    results.norms = ["GW"]
    results.save(str(tmp_path))
    assert not (tmp_path / "benchmark.png").exists()
    assert "benchmark.png" not in (tmp_path / "benchmark.md").read_text()


def test_bars_go_from_1_to_the_ratio(results, figures, tmp_path):
    results.save(str(tmp_path))
    inference, _, saved = figures[0].axes
    assert [label.get_text() for label in inference.get_yticklabels()] == [
        "1x64x10x10",
        "2x64x100x100",
    ]
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in inference.patches]
    assert ends == [(1, pytest.approx(0.5)), (1, pytest.approx(2.0))]
    assert [text.get_text() for text in saved.texts] == ["0.8", "1"]


def test_what_was_not_measured_has_no_bar(results, figures, tmp_path):
    del results.costs[0][1]["GN"]
    results.save(str(tmp_path))
    inference = figures[0].axes[0]
    assert [text.get_text() for text in inference.texts] == ["not measured", "2"]
    assert inference.patches[0].get_width() == 0


def test_layers_of_one_shape_with_other_options_have_bars_of_their_own(results, figures, tmp_path):
    (at, by_norm), _ = results.costs
    other = LayerInput(at.shape, GroupWhitening(64, num_groups=8), ("e",))
    results.costs = [(at, by_norm), (other, by_norm)]
    results.save(str(tmp_path))
    assert len(figures[0].axes[0].patches) == 2
