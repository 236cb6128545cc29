"""Contact sheets: rows of small pictures with a line of text below each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont, ImageOps

from diffv2ir.data.measure import open_infrared
from diffv2ir.imaging import ImageError
from diffv2ir.members import ImageFile

MOST = 24
_TILE, _GAP, _LINE = 160, 6, 14

T = TypeVar("T")


def evenly(items: Sequence[T]) -> list[T]:
    """At most `MOST` of them, spread over all."""
    count = min(MOST, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def contact_sheet(cells: Sequence[tuple[Sequence[ImageFile | None], str]], path: Path, columns: int = 4) -> None:
    """Write a JPEG of at most `MOST` cells, each some images side by side over a text. An unreadable one is a cross.

    Infrared of 14 bits is shown as `measure.spread` has it.
    """
    cells = cells[:MOST]
    images = max((len(files) for files, _ in cells), default=1)
    width, height = images * _TILE + _GAP, _TILE + _LINE + _GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (min(columns, max(1, len(cells))) * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (files, text) in enumerate(cells):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        for place, file in enumerate(files):
            if file is not None:
                sheet.paste(_tile(file), (left + place * _TILE, top))
        draw.text((left, top + _TILE), _fitting(text, width - _GAP, font), fill="black", font=font)
    sheet.save(path, quality=85)


def _tile(file: ImageFile) -> Image.Image:
    try:
        return ImageOps.pad(open_infrared(file), (_TILE, _TILE), color="gray")
    except ImageError:
        tile = Image.new("RGB", (_TILE, _TILE), "white")
        draw = ImageDraw.Draw(tile)
        draw.line((0, 0, _TILE, _TILE), fill="red", width=3)
        draw.line((0, _TILE, _TILE, 0), fill="red", width=3)
        return tile


def _fitting(text: str, width: int, font: ImageFont.ImageFont) -> str:
    """The end of `text` that fits: names differ at their end."""
    while text and font.getlength(text) > width:
        text = text[1:]
    return text
