import numpy as np
import pytest

pytest.importorskip("detectron2")

from PIL import Image

from gw_detectron.runs.page.row import Picture, Row
from gw_detectron.runs.page.sheets import Sheets


def row(name, *sizes):
    """Flat pictures; the first is red, the others green."""
    pictures = [
        Picture("title", "caption", "", Image.new("RGB", size, "red" if i == 0 else "lime"))
        for i, size in enumerate(sizes)
    ]
    return Row(name, [1.0] * (len(sizes) - 1), pictures)


def write(folder, rows, heading="heading"):
    sheets = Sheets(str(folder), heading)
    for one in rows:
        sheets.add(one)
    sheets.close()
    return [np.asarray(Image.open(path)).astype(int) for path in sheets.paths]


def is_color(sheet, color):
    return (np.abs(sheet - color) < 5).all(-1)


def test_a_sheet_has_eight_rows_and_the_last_one_what_is_left(tmp_path):
    sheets = write(tmp_path, [row(str(i), (300, 100), (300, 100)) for i in range(19)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sheet-01.png",
        "sheet-02.png",
        "sheet-03.png",
    ]
    rows = [is_color(sheet, (255, 0, 0)).any(axis=1).sum() // 100 for sheet in sheets]
    assert rows == [8, 8, 3]


def test_whole_pictures_stand_beside_each_other_and_none_overlaps(tmp_path):
    (sheet,) = write(tmp_path, [row("a", (300, 90), (280, 90)), row("b", (200, 150), (300, 80))])
    red, green = is_color(sheet, (255, 0, 0)), is_color(sheet, (0, 255, 0))
    assert red.sum() == 300 * 90 + 200 * 150 and green.sum() == 280 * 90 + 300 * 80
    assert np.nonzero(red)[1].max() < np.nonzero(green)[1].min()


def test_sheets_of_an_earlier_call_make_way_and_other_files_stay(tmp_path):
    for name in ("sheet-07.png", "sheet-music.png"):
        (tmp_path / name).touch()
    write(tmp_path, [row("a", (50, 50), (50, 50))])
    assert {path.name for path in tmp_path.iterdir()} == {"sheet-01.png", "sheet-music.png"}


def test_long_texts_stay_in_their_columns(tmp_path):
    sizes = (300, 100), (300, 100)
    long = [Picture("W" * 300, "W" * 300, "", Image.new("RGB", size)) for size in sizes]
    (sheet,) = write(tmp_path, [Row("W" * 300, [1.0], long)], heading="W" * 300)
    ink = ~is_color(sheet, (255, 255, 255)).all(axis=0)
    assert not ink[:12].any() and not ink[-12:].any()
    between = is_color(sheet[82:], (255, 255, 255)).all(axis=0)[312:324]  # below the row's title
    assert between.all()
