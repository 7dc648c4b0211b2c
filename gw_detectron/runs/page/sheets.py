"""Rows of pictures as PNG sheets, a page of rows each."""

import glob
import os
import re
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from .row import Row

__all__ = ["Sheets"]

_ROWS_IN_A_SHEET = 8
_GAP = 12  # pixels
_LINE_HEIGHT = 22
_FONT_SIZE = 16
_LEAST_WIDTH = 260  # of a column, for what is written over narrow pictures
_PAPER, _INK, _FAINT = (255, 255, 255), (0, 0, 0), (90, 90, 90)


class Sheets:
    """
    Writes sheet-01.png, sheet-02.png, ... into a folder; those of an earlier call make way.

    Args:
        heading: of each sheet.

    Attributes:
        paths: of those written so far.
    """

    def __init__(self, folder: str, heading: str):
        self.paths: list[str] = []
        self._folder, self._heading = folder, heading
        self._rows: list[Row] = []
        for path in glob.glob(os.path.join(glob.escape(folder), "sheet-*.png")):
            if re.fullmatch(r"sheet-\d+\.png", os.path.basename(path)):
                os.remove(path)

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_IN_A_SHEET:
            self._write()

    def close(self) -> None:
        if self._rows:
            self._write()

    def _write(self) -> None:
        first_number = len(self.paths) * _ROWS_IN_A_SHEET + 1
        path = os.path.join(self._folder, f"sheet-{len(self.paths) + 1:02d}.png")
        _lay_out(self._rows, self._heading, first_number).save(path)
        self.paths.append(path)
        self._rows = []


def _lay_out(rows: Sequence[Row], heading: str, first_number: int) -> Image.Image:
    widths = [
        max(_LEAST_WIDTH, *(picture.image.width for picture in column))
        for column in zip(*(row.pictures for row in rows), strict=True)
    ]
    heights = [max(picture.image.height for picture in row.pictures) for row in rows]
    above = 3 * _LINE_HEIGHT  # a picture: the row's title, its own, its caption
    sheet = Image.new(
        "RGB",
        (
            sum(widths) + _GAP * (len(widths) + 1),
            2 * _GAP + _LINE_HEIGHT + sum(above + height + _GAP for height in heights),
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_SIZE)

    def write(text: str, left: int, top: int, width: int, color: tuple[int, int, int]) -> None:
        draw.text((left, top), _shortened(text, width, font), fill=color, font=font)

    write(heading, _GAP, _GAP, sheet.width - 2 * _GAP, _FAINT)
    top = 2 * _GAP + _LINE_HEIGHT
    for number, (row, height) in enumerate(zip(rows, heights, strict=True), first_number):
        write(row.title(number), _GAP, top, sheet.width - 2 * _GAP, _INK)
        for left, width, picture in zip(_lefts(widths), widths, row.pictures, strict=True):
            write(picture.title, left, top + _LINE_HEIGHT, width, _INK)
            write(picture.caption, left, top + 2 * _LINE_HEIGHT, width, _FAINT)
            sheet.paste(picture.image, (left, top + above))
        top += above + height + _GAP
    return sheet


def _lefts(widths: Sequence[int]) -> Iterator[int]:
    left = _GAP
    for width in widths:
        yield left
        left += width + _GAP


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
