"""Edges of the photo in the infrared picture: a guided filter (He et al. 2010), used as joint upsampling.

Latents know a few hundred pixels a side, and of those a small model predicts the coarse ones best; where an edge lies,
the photo knows to the pixel. Around each place the picture is taken as a straight line of the photo's brightness. The
line is fitted where both are coarse and drawn where the photo is sharp, so a sky that the model made dark behind a tree
that it made bright ends at the leaves.
"""

from __future__ import annotations

import cv2
import numpy as np

# Variance of brightness, which spans [0, 1], below which the photo counts as flat: noise is no edge.
_FLAT = 5e-4


def follow_edges(
    picture: np.ndarray, photo: np.ndarray, radius: int, blur: float = 0.0, flat: float = _FLAT
) -> np.ndarray:
    """The picture with the edges, and at the size, of the photo.

    Args:
        picture: gray levels (h, w), float32 in [0, 1].
        photo: brightness (H, W) of the same scene and aspect ratio, float32 in [0, 1].
        radius: of the windows in which a line is fitted, in pixels of the picture, at least 1.
        blur: how soft the picture is, as the standard deviation in pixels of a Gaussian: its slope is compared with
            that of a photo as soft as that.
        flat: see `_FLAT`.

    Returns: gray levels (H, W), float32 in [0, 1].
    """
    height, width = picture.shape
    guide = photo
    if photo.shape != picture.shape:
        shrinks = photo.shape[0] > height
        guide = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if blur:
        guide = cv2.GaussianBlur(guide, (0, 0), blur)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT_101)

    guide_mean, picture_mean = mean(guide), mean(picture)
    slope = (mean(guide * picture) - guide_mean * picture_mean) / (mean(guide * guide) - guide_mean**2 + flat)
    offset = picture_mean - slope * guide_mean
    slope, offset = (
        cv2.resize(mean(field), photo.shape[::-1], interpolation=cv2.INTER_LINEAR) for field in (slope, offset)
    )
    return (slope * photo + offset).clip(0, 1)


def brightness(image) -> np.ndarray:
    """A PIL image's gray levels as float32 (H, W) in [0, 1]."""
    return np.asarray(image.convert("L"), dtype=np.float32) / 255
