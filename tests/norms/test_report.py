import re

import matplotlib.figure
import pytest
from detectron2.layers import FrozenBatchNorm2d
from PIL import Image
from torch import nn

from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.advice import describe
from gw_detectron.norms.report import save_csv, save_share_plot, terminal_report

ROWS = [
    describe("stem", FrozenBatchNorm2d(64), [(64, 20, 30)]),
    describe("lateral", nn.GroupNorm(32, 256), [(256, 5, 4)]),
    describe("box_head", GroupWhitening(256), [(256, 7, 7)], regions=512),
    describe("fc", GroupWhitening(1024), [(1024,)], regions=512),
    describe("head", GroupWhitening(256, 16, method="zca"), [(256, 3, 3), (256, 1, 1)]),
]
FLOPS = 10_000_000_000


def columns(line):
    return re.split(r"\s{2,}", line)


@pytest.fixture
def lines():
    return terminal_report(ROWS, FLOPS, in_color=False).splitlines()


def test_a_line_tells_all_of_a_layer(lines):
    assert columns(lines[0]) == [
        "layer", "norm", "C", "size", "g", "T", "m", "constraints", "share", "limit", "max g",
        "+GFLOPs", "+MB", "1/10", "1/g", "1/10g", "verdict", "suggestion",
    ]  # fmt: skip
    table = {columns(line)[0]: columns(line)[1:] for line in lines[2:7]}
    # 512 regions of 2 * 64 * 12544 + 12 * 64^3 products; of 4 * (2 * 64^2 - 64) bytes
    assert table["box_head"] == [
        "GW", "256", "512 of 7x7", "64", "5", "196", "2144", "17%", "156", "128",
        "2.43", "16.65", "0.51%", "41%", "91%", "fine", "T=7",
    ]  # fmt: skip
    assert table["stem"] == ["FrozenBN", "64", "20x30", "-", "-", "-", "0", "0%", *"--------"]
    # 152 constraints on 256 values at the smaller of two calls; nothing missing
    assert table["head"][2:5] == ["1 of 2: 1x1", "16", "-"]
    assert table["head"][-5:] == ["0%", "0%", "0%", "tight", "g=8"]


def test_totals_and_notes_follow(lines):
    text = " ".join(" ".join(lines).split())
    assert "5 norms: 1 FrozenBN, 1 GN, 3 GW. GN and GW: 2 fine, 1 tight, 1 over the limit." in text
    flops = 512 * (2 * 64 * 12544 + 2 * 64 * 1024 + 2 * 12 * 64**3)  # of the region heads
    flops += 2 * 16 * 256 * 10 + 2 * 5.5 * 16**3
    assert f"{flops / 1e9:+.1f} GFLOPs forward to the 10.0" in text
    assert "(+41.1%), +33.3 MB" in text
    assert "Over the limit" in text and "fc (GW, num_groups 64 on 1024 values" in text
    assert "Small output: with 64 groups" in text


def test_without_gw_there_is_no_cost():
    report = terminal_report(ROWS[:2], 1, in_color=False)
    assert report.endswith(
        "2 norms: 1 FrozenBN, 1 GN. GN and GW: 1 fine, 0 tight, 0 over the limit.\n"
    )


def test_a_csv_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path}: Is a directory"):
        save_csv(ROWS, str(tmp_path))


def test_in_the_plot_each_norm_is_a_row_at_its_share(tmp_path, monkeypatch):
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)),
    )
    path = tmp_path / "new" / "plot.png"
    save_share_plot(ROWS[:4], str(path))
    assert min(Image.open(path).size) > 100
    (axes,) = drawn[0].axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert points["GN"] == [[64 / 5120, 0]]
    assert points["GW"] == [[2144 / 12544, 1], [2144 / 1024, 2]]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["lateral", "box_head", "fc"]
    assert axes.yaxis_inverted()


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UsageError, match="no norm imposes constraints"):
        save_share_plot(ROWS[:1], str(tmp_path / "plot.png"))
