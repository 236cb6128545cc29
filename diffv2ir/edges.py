"""Edges of the photo in the infrared picture: a guided filter (He et al. 2010), used as joint upsampling.

Latents know a few hundred pixels a side, and of those a small model predicts the coarse ones best; where an edge lies,
the photo knows to the pixel. Around each place the picture is taken as a straight line of the photo's brightness. The
line is fitted where both are coarse and drawn where the photo is sharp, so a sky that the model made dark behind a tree
that it made bright ends at the leaves. The masks of a segmentation are coarse in the same way, and are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Variance of brightness, which spans [0, 1], below which the photo counts as flat: noise is no edge.
_FLAT = 5e-4
# The weights of red, green and blue in gray, as Pillow has them.
_GRAY = (0.299, 0.587, 0.114)
# The same for each of three colours, where a mask follows them.
_FLAT_COLOUR = 1e-3


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

    mean = partial(_window_mean, radius=radius)
    guide_mean, picture_mean = mean(guide), mean(picture)
    slope = (mean(guide * picture) - guide_mean * picture_mean) / (mean(guide * guide) - guide_mean**2 + flat)
    offset = picture_mean - slope * guide_mean
    slope, offset = (
        cv2.resize(mean(field), photo.shape[::-1], interpolation=cv2.INTER_LINEAR) for field in (slope, offset)
    )
    return (slope * photo + offset).clip(0, 1)


def follow_edges_of_batch(pictures: Tensor, photos: Tensor, radius: int, blur: float, flat: float = _FLAT) -> Tensor:
    """`follow_edges` on the device, but for the last decimals.

    Args:
        pictures: (N, 1, h, w) in [0, 1]. photos: brightness (N, 1, H, W), whole multiples of h and w or as large.
        radius, blur, flat: as there; `blur` at least 0.1.

    Returns: (N, 1, H, W).
    """
    guides = F.adaptive_avg_pool2d(photos, pictures.shape[-2:])
    reach = round(4 * blur)  # as OpenCV, which cuts it off there
    places = torch.arange(-reach, reach + 1, device=photos.device, dtype=photos.dtype)
    line = (-(places**2) / (2 * blur**2)).exp()
    line = line / line.sum()
    guides = F.conv2d(F.pad(guides, [reach] * 4, mode="reflect"), (line[:, None] * line)[None, None])

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, [radius] * 4, mode="reflect"), 2 * radius + 1, stride=1)

    guide_means, picture_means = mean(guides), mean(pictures)
    slopes = (mean(guides * pictures) - guide_means * picture_means) / (mean(guides**2) - guide_means**2 + flat)
    offsets = picture_means - slopes * guide_means
    slopes, offsets = (
        F.interpolate(mean(fields), photos.shape[-2:], mode="bilinear", align_corners=False)
        for fields in (slopes, offsets)
    )
    return (slopes * photos + offsets).clamp(0, 1)


def follow_colours(masks: Iterable[np.ndarray], photo: np.ndarray, radius: int) -> list[np.ndarray]:
    """Masks whose outlines follow the photo's edges: the same filter with a plane in the three colours for a line.

    Args:
        masks: boolean (h, w).
        photo: colours (h, w, 3), float32 in [0, 1].
        radius: of the windows, in pixels, at least 1.

    Returns: boolean (h, w), one for each mask. Where the photo is flat it is the blurred mask: what is small beside the
    window vanishes.
    """
    height, width = photo.shape[:2]

    mean = partial(_window_mean, radius=radius)
    photo_mean = mean(photo)
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    products = mean(np.stack([photo[..., i] * photo[..., j] for i, j in pairs], axis=-1))  # [h, w, 6]
    rr, rg, rb, gg, gb, bb = (
        products[..., n] - photo_mean[..., i] * photo_mean[..., j] + _FLAT_COLOUR * (i == j)
        for n, (i, j) in enumerate(pairs)
    )
    # The inverse of a symmetric 3 x 3 matrix from its cofactors.
    cofactors = np.stack(
        [gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg, rr * bb - rb * rb, rg * rb - rr * gb,
         rr * gg - rg * rg], axis=-1,
    )  # fmt: skip
    cofactors /= (rr * cofactors[..., 0] + rg * cofactors[..., 1] + rb * cofactors[..., 2])[..., None]
    inverse = cofactors[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(height, width, 3, 3)

    followed = []
    for mask in masks:
        levels = mask.astype(np.float32)
        level_mean = mean(levels)
        together = mean(photo * levels[..., None]) - photo_mean * level_mean[..., None]  # [h, w, 3]
        slopes = (inverse * together[..., None, :]).sum(-1)
        offset = level_mean - (slopes * photo_mean).sum(-1)
        plane = mean(np.concatenate([slopes, offset[..., None]], axis=-1))  # [h, w, 4]
        followed.append((plane[..., :3] * photo).sum(-1) + plane[..., 3] > 0.5)
    return followed


def _window_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean over the window around each place, of each channel."""
    return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT_101)


def gray_levels(photos: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) of photos (N, 3, H, W)."""
    return (photos * photos.new_tensor(_GRAY)[:, None, None]).sum(1, keepdim=True)


def brightness(image) -> np.ndarray:
    """A PIL image's gray levels as float32 (H, W) in [0, 1]."""
    return np.asarray(image.convert("L"), dtype=np.float32) / 255
