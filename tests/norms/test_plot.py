import matplotlib.figure
import pytest
from detectron2.layers import FrozenBatchNorm2d
from PIL import Image
from torch import nn

from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.norms.layers import NormLayer
from gw_detectron.norms.plot import save_share_plot

FROZEN = NormLayer("stem", FrozenBatchNorm2d(64), ((20, 30),))
LAYERS = [
    FROZEN,
    NormLayer("first", nn.GroupNorm(32, 256), ((5, 4),)),
    NormLayer("second", GroupWhitening(256), ((7, 7),)),
    NormLayer("third", GroupWhitening(1024), ((),)),
]


def test_each_norm_is_a_row_at_its_share(tmp_path, monkeypatch):
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)),
    )
    path = tmp_path / "new" / "plot.png"
    save_share_plot(LAYERS, str(path))
    assert min(Image.open(path).size) > 100
    (axes,) = drawn[0].axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert points["GN"] == [[64 / 5120, 0]]
    assert points["GW"] == [[2144 / 12544, 1], [2144 / 1024, 2]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second", "third"]
    assert axes.yaxis_inverted()


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UsageError, match="no norm imposes constraints"):
        save_share_plot([FROZEN], str(tmp_path / "plot.png"))
