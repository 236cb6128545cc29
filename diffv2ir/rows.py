"""Rows under titles: pictures as one sheet, cells of text in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 84


def picture_rows(
    titles: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    tile: int,
    labels: Sequence[str] | None = None,
    header: int = 24,
) -> Image.Image:
    """Square pictures, one row below another, each `tile` px a side; a title over every column: RGB.

    Args:
        labels: written in a margin at the left of each row; None = no margin. header: height of the titles in px.
    """
    left, font = 0 if labels is None else _MARGIN, ImageFont.load_default(14)
    sheet = Image.new("RGB", (left + tile * len(titles), header + tile * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)

    def write(text: str, x: int, y: int) -> None:
        draw.text((x, y), text, fill="black", font=font, anchor="mm")

    for column, title in enumerate(titles):
        write(title, left + tile * column + tile // 2, header // 2)
    for number, row in enumerate(rows):
        top = header + tile * number
        if labels is not None:
            write(labels[number], left // 2, top + tile // 2)
        for column, image in enumerate(row):
            square = image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(square, (left + tile * column, top))
    return sheet


def text_rows(rows: Sequence[Sequence[str]]) -> str:
    """Cells of equally long rows in columns that are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
