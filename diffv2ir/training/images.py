"""Images on their way into a training: sizes, random numbers, another exposure."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor


def to_bytes(image: Image.Image) -> Tensor:
    """PIL RGB -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_shorter(
    image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Resize so that the shorter side is `size` pixels, keeping the aspect ratio."""
    scale = size / min(image.size)
    return image.resize([max(size, round(side * scale)) for side in image.size], resampling)


def expose_differently(image: Image.Image, jitter: float, generator: torch.Generator) -> Image.Image:
    """The RGB image with another gamma, contrast and colourfulness, each up to a factor of exp(`jitter`)."""
    gamma, contrast, colour = ((2 * torch.rand(3, generator=generator) - 1) * jitter).exp().tolist()
    image = image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)
    return ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(contrast)).enhance(colour)


def random_integer(high: int, generator: torch.Generator) -> int:
    """An integer in [0, high]."""
    return int(torch.randint(high + 1, (), generator=generator))
