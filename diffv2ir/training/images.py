"""Images as training tensors: float32 CHW in [-1, 1], three channels (gray is repeated)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffv2ir.imaging import open_image


def load_rgb(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright; 16-bit gray is scaled."""
    return open_image(path)


def to_tensor(image: Image.Image) -> Tensor:
    """PIL RGB -> float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def resize_shorter(
    image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Resize so that the shorter side is `size` pixels, keeping the aspect ratio."""
    scale = size / min(image.size)
    return image.resize([max(size, round(side * scale)) for side in image.size], resampling)


def random_integer(high: int, generator: torch.Generator) -> int:
    """An integer in [0, high]."""
    return int(torch.randint(high + 1, (), generator=generator))


def follow_edges(infrared: Image.Image, visible: Image.Image, radius: int, epsilon: float = 1e-3) -> Image.Image:
    """The infrared picture with the edges of the photo: a guided filter (He et al. 2010) with the photo as its guide.

    Within `radius` pixels the result is a straight line of the photo's brightness, so an edge of it lies where the
    photo's lies, also where the two cameras saw the scene from places apart, and what the photo does not show is gone.

    Args:
        infrared, visible: RGB images of one size.
        radius: in pixels, at least 1.
        epsilon: variance of brightness, which spans [-1, 1], below which the photo counts as flat.
    """
    guide, source = (np.asarray(image.convert("L"), dtype=np.float32) / 127.5 - 1 for image in (visible, infrared))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT_101)

    guide_mean, source_mean = mean(guide), mean(source)
    slope = (mean(guide * source) - guide_mean * source_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    followed = mean(slope) * guide + mean(source_mean - slope * guide_mean)
    return Image.fromarray(((followed.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)).convert("RGB")
