"""Display palettes for gray infrared pictures. The file underneath stays gray: a palette is a way of looking at it.

Brighter stays brighter in all of them but black-hot, which is the negative, and rainbow, which tells levels by hue.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

# Colours at evenly spaced gray levels from 0 to 255; between them they are interpolated.
_POINTS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "white-hot": ((0, 0, 0), (255, 255, 255)),
    "black-hot": ((255, 255, 255), (0, 0, 0)),
    "ironbow": (
        (0, 0, 10), (36, 0, 110), (112, 0, 157), (178, 16, 141), (222, 60, 76),
        (245, 117, 10), (253, 176, 2), (255, 228, 76), (255, 255, 246),
    ),
    "rainbow": (
        (0, 0, 70), (20, 20, 200), (0, 140, 230), (0, 200, 130), (120, 220, 30), (250, 220, 0), (250, 110, 0),
        (220, 0, 20), (255, 230, 230),
    ),
    "arctic": (
        (4, 6, 40), (10, 40, 130), (20, 110, 190), (120, 170, 200), (200, 190, 150), (250, 205, 110), (255, 255, 255),
    ),
    "lava": ((0, 0, 0), (40, 20, 60), (110, 10, 40), (190, 30, 10), (240, 110, 0), (255, 200, 60), (255, 255, 230)),
    "green-hot": ((0, 0, 0), (0, 60, 20), (20, 130, 40), (110, 210, 90), (235, 255, 220)),
}  # fmt: skip

PALETTES = tuple(_POINTS)
"""Names, in the order in which a menu shows them."""


def apply(image: Image.Image, palette: str) -> Image.Image:
    """An 8-bit gray picture (mode L) in the colours of a palette: RGB of the same size.

    Raises:
        ValueError: no such palette, or the picture is not gray.
    """
    if image.mode != "L":
        raise ValueError(f"a palette colours an 8-bit gray picture (mode L), got mode {image.mode}")
    return Image.fromarray(_table(palette)[np.asarray(image)])


def colour_bar(palette: str, size: tuple[int, int]) -> Image.Image:
    """The palette from dark to bright, left to right: RGB of `size` (width, height)."""
    width, height = size
    levels = np.linspace(0, 255, width).round().astype(np.uint8)
    return apply(Image.fromarray(np.tile(levels, (height, 1))), palette)


@lru_cache
def _table(palette: str) -> np.ndarray:
    """Colour of each gray level: uint8 (256, 3)."""
    if palette not in _POINTS:
        raise ValueError(f"palette must be one of {', '.join(PALETTES)}, got {palette!r}")
    points = np.asarray(_POINTS[palette], dtype=np.float64)
    places = np.linspace(0, 255, len(points))
    channels = [np.interp(np.arange(256), places, points[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
