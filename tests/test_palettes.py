"""Palettes: exact where they promise it, ordered by brightness, and never a change of the file."""

import numpy as np
import pytest
from PIL import Image

from diffv2ir.palettes import PALETTES, apply, colour_bar

RAMP = Image.fromarray(np.arange(256, dtype=np.uint8)[None])


def luminance(image):
    return np.asarray(image, dtype=float)[0] @ [0.299, 0.587, 0.114]


def test_white_hot_is_the_picture_and_black_hot_its_negative():
    assert apply(RAMP, "white-hot").tobytes() == RAMP.convert("RGB").tobytes()
    assert apply(RAMP, "black-hot").tobytes() == Image.eval(RAMP, lambda value: 255 - value).convert("RGB").tobytes()


@pytest.mark.parametrize("palette", ["white-hot", "ironbow", "arctic", "lava", "green-hot"])
def test_brighter_stays_brighter(palette):
    assert (np.diff(luminance(apply(RAMP, palette))) > -1e-9).all()
    assert luminance(apply(RAMP, palette))[-1] > 200


@pytest.mark.parametrize("palette", PALETTES)
def test_levels_keep_apart(palette):
    colours = np.asarray(apply(RAMP, palette)).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) >= 200
    assert apply(Image.new("L", (5, 3)), palette).size == (5, 3)


def test_colour_bar_runs_from_dark_to_bright():
    bar = colour_bar("ironbow", (64, 4))
    assert bar.size == (64, 4)
    assert bar.getpixel((0, 0)) == apply(RAMP, "ironbow").getpixel((0, 0))
    assert bar.getpixel((63, 3)) == apply(RAMP, "ironbow").getpixel((255, 0))


def test_wrong_palettes_and_pictures_are_named():
    with pytest.raises(ValueError, match="white-hot.*got 'plasma'"):
        apply(RAMP, "plasma")
    with pytest.raises(ValueError, match="mode RGB"):
        apply(RAMP.convert("RGB"), "lava")
