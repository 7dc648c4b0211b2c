import numpy as np
import pytest

pytest.importorskip("detectron2")

from PIL import Image

from gw_detectron.errors import UsageError
from gw_detectron.runs import plot
from gw_detectron.runs.run import read_run
from gw_detectron.runs.table import make_table

from .synthetic import eval_record, everywhere, train_record, write_run


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Saves the plot of runs given as dicts of write_run's arguments; returns its figure."""
    figures = []

    class Figure(plot.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(plot, "Figure", Figure)

    def draw(*runs):
        paths = [write_run(tmp_path / str(number), **run) for number, run in enumerate(runs)]
        plot.save_plot(make_table(map(read_run, paths)).lines, str(tmp_path / "new" / "plot.png"))
        with Image.open(tmp_path / "new" / "plot.png") as image:
            assert image.width > 800 and np.asarray(image.convert("L")).std() > 10
        return figures[-1]

    return draw


def evaluated(ap, loss, **more):
    """Records with evaluations at 100 and 200."""
    records = [
        train_record(99, loss + 1), eval_record(99, ap - 10, **more),
        train_record(199, loss), eval_record(200, ap, **more),
    ]  # fmt: skip
    return records


def panel(figure, label):
    """The one whose x or y axis has that label."""
    (found,) = [axes for axes in figure.axes if label in (axes.get_xlabel(), axes.get_ylabel())]
    return found


def test_a_line_a_norm_is_the_mean_over_the_seeds_and_the_band_their_deviation(drawn):
    figure = drawn(
        {"records": evaluated(40.0, 1.0), "SEED": 1, **everywhere("GN")},
        {"records": evaluated(42.0, 2.0), "SEED": 2, **everywhere("GN")},
        {"records": evaluated(45.0, 0.5), **everywhere("GW")},
    )
    ap, loss = panel(figure, "box AP"), panel(figure, "training loss, smoothed")
    assert [line.get_label() for line in ap.get_lines()] == ["GN", "GW"]
    np.testing.assert_allclose(ap.get_lines()[0].get_xydata(), [[99, 31], [200, 41]])
    np.testing.assert_allclose(loss.get_lines()[0].get_xydata(), [[99, 2.5], [199, 1.5]])
    np.testing.assert_allclose(loss.get_lines()[1].get_xydata(), [[99, 1.5], [199, 0.5]])
    (band,) = ap.collections  # GW has one seed
    y = band.get_paths()[0].vertices[:, 1]
    assert (y.min(), y.max()) == pytest.approx((31 - 2**0.5, 41 + 2**0.5))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["GN", "GW"]


def test_where_nothing_was_evaluated_on_the_way_the_final_aps_are_drawn(drawn):
    figure = drawn({"ap": 40.0, **everywhere("GN")}, {"ap": 45.0, **everywhere("GW")})
    at_end = panel(figure, "box AP at the end")
    assert [label.get_text() for label in at_end.get_yticklabels()] == ["GW", "GN"]
    assert [text.get_text() for text in at_end.texts] == ["45.0", "40.0"]


def test_masks_have_a_panel_where_a_run_has_them(drawn):
    figure = drawn(
        {"records": evaluated(40.0, 1.0, segm__AP=35.0), "MODEL__MASK_ON": True},
        {"records": evaluated(42.0, 1.0)},
    )
    masks = panel(figure, "mask AP")
    np.testing.assert_allclose(masks.get_lines()[0].get_xydata(), [[99, 35], [200, 35]])
    assert sum(axes.axison for axes in figure.axes) == 5  # 3 with masks, 2 without


def test_seeds_with_points_elsewhere_are_averaged_where_all_are_defined(drawn):
    records = [[train_record(i, i) for i in (0, 100, 180)] + [eval_record(200, 40.0)]]
    records += [[train_record(i, i + 2) for i in (50, 150, 199)] + [eval_record(200, 40.0)]]
    figure = drawn(*({"records": of_seed, "SEED": s} for s, of_seed in enumerate(records)))
    (line,) = panel(figure, "training loss, smoothed").get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[i, i + 1] for i in (50, 100, 150, 180)])


def test_a_directory_is_no_place_for_a_picture(tmp_path):
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(UsageError, match="directory"):
        plot.require_plottable(str(tmp_path / "plot.png"))
