"""A generated picture against the real one."""

import numpy as np
import pytest
from PIL import Image

from diffv2ir.imaging import ImageError
from diffv2ir.metrics import psnr, ssim
from diffv2ir.reference import compare, difference_map


@pytest.fixture
def real():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8))


def test_figures_are_those_of_the_evaluation(real):
    ours = real.point(lambda value: min(255, value + 20))
    comparison = compare(ours, real)
    assert comparison.psnr == psnr(ours, real)
    assert comparison.ssim == ssim(ours, real)
    assert compare(real, real).psnr == float("inf")


def test_the_picture_is_brought_to_the_size_of_the_real_one(real):
    assert compare(real.resize((120, 80)), real).difference.size == real.size


def test_another_section_is_refused(real):
    with pytest.raises(ImageError, match="60x40.*another aspect ratio.*50x50"):
        compare(Image.new("L", (50, 50)), real)


def test_difference_is_red_above_and_blue_below():
    ours, real = Image.new("L", (3, 1), 100), Image.new("L", (3, 1))
    real.putdata([0, 100, 255])
    assert np.asarray(difference_map(ours, real)).tolist() == [[[255, 155, 155], [255, 255, 255], [100, 100, 255]]]
