import numpy as np
import pytest

pytest.importorskip("detectron2")

from PIL import Image

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


def panels(figure, name):
    return [axes for axes in figure.axes if axes.get_ylabel() == name]


def test_a_line_a_norm_is_the_mean_over_the_seeds_and_the_spread_their_deviation(drawn):
    interrupted = [train_record(149, 9.0), *evaluated(42.0, 2.0)[2:]]  # a point of its own
    figure = drawn(
        {"records": evaluated(40.0, 1.0), "SEED": 1, **everywhere("GN")},
        {"records": evaluated(42.0, 2.0)[:2] + interrupted, "SEED": 2, **everywhere("GN")},
        {"records": evaluated(45.0, 0.5), **everywhere("GW")},
    )
    ((ap,), (loss,)) = panels(figure, "box AP"), panels(figure, "training loss, smoothed")
    gn, gw = ap.containers
    np.testing.assert_allclose(gn.lines[0].get_xydata(), [[99, 31], [200, 41]])
    ((_, last),) = (bars.get_segments() for bars in gn.lines[2])
    np.testing.assert_allclose(last, [[200, 41 - 2**0.5], [200, 41 + 2**0.5]])
    np.testing.assert_allclose(gw.lines[0].get_xydata(), [[99, 35], [200, 45]])
    assert not gw.has_yerr  # of one seed
    np.testing.assert_allclose(loss.get_lines()[0].get_xydata(), [[99, 2.5], [199, 1.5]])
    assert loss.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(2.5 + 0.5**0.5)
    assert [text.get_text() for text in loss.get_legend().texts] == ["GN", "GW"]


def test_a_config_has_a_row_of_panels_and_masks_have_one_where_a_run_has_them(drawn):
    figure = drawn(
        {"records": evaluated(40.0, 1.0, segm__AP=35.0), "MODEL__MASK_ON": True},
        {"ap": 42.0},  # evaluated at the end alone
    )
    with_masks, without = panels(figure, "mask AP")
    (curve,) = with_masks.containers
    np.testing.assert_allclose(curve.lines[0].get_xydata(), [[99, 35], [200, 35]])
    assert not without.containers and len(panels(figure, "box AP")) == 2


def test_where_runs_were_evaluated_at_the_end_alone_aps_stand_above_their_norms(drawn):
    figure = drawn({"ap": 40.0, **everywhere("GN")}, {"ap": 42.0, **everywhere("GW")})
    (panel,) = panels(figure, "box AP")
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["GN", "GW"]
    dots = [container.lines[0].get_xydata()[0] for container in panel.containers]
    np.testing.assert_allclose(dots, [[0, 40], [1, 42]])
