"""A generated picture against the real infrared picture of the same scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffv2ir import imaging
from diffv2ir.imaging import ImageSource


@dataclass(frozen=True)
class Comparison:
    """Figures as the evaluation defines them, at the real picture's size.

    Attributes:
        psnr: dB. ssim: -1..1.
        difference: RGB; red where the generated picture is too bright, blue where too dark, white where equal.
    """

    psnr: float
    ssim: float
    difference: Image.Image


def compare(picture: Image.Image, reference: ImageSource) -> Comparison:
    """Compare an 8-bit gray picture with a real one, which may be of any size of the same aspect ratio.

    Raises:
        ImageError: the reference cannot be read, or shows another section.
    """
    from diffv2ir.metrics import psnr, ssim

    real = imaging.open_image(reference).convert("L")
    imaging.check_same_section(real, "the real infrared picture", picture, "; use one that shows the same section")
    ours = picture.resize(real.size, Image.Resampling.BICUBIC)
    return Comparison(psnr(ours, real), ssim(ours, real), difference_map(ours, real))


def difference_map(picture: Image.Image, reference: Image.Image) -> Image.Image:
    """Two gray pictures of one size -> RGB: red where the first is brighter, blue where darker, white where equal."""
    error = np.asarray(picture, dtype=np.int16) - np.asarray(reference, dtype=np.int16)
    fade = 255 - np.abs(error)
    red, blue = np.where(error >= 0, 255, fade), np.where(error <= 0, 255, fade)
    return Image.fromarray(np.stack([red, fade, blue], axis=-1).astype(np.uint8))
