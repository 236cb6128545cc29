"""Edges of the photo in the infrared picture: a guided filter (He et al. 2010), used as joint upsampling.

Latents know a few hundred pixels a side, and of those a small model predicts the coarse ones best; where an edge lies,
the photo knows to the pixel. Around each place the picture is taken as a straight line of the photo's brightness, or a
plane of its colours, which is fitted where both are coarse and drawn where the photo is sharp: a sky that the model
made dark behind a tree that it made bright ends at the leaves. The masks of a segmentation are coarse in the same way,
and are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Variance of brightness, which spans [0, 1], below which the photo counts as flat.
_FLAT = 5e-4
# How soft a generated picture is, as a share of the radius in which it follows the photo's edges, and the variance of a
# colour below which a photo then counts as flat. Chosen with the bundle `tiny` on held-out pairs.
_SOFTNESS, _FLAT_PHOTO = 0.125, 2.5e-4
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
        photo: brightness (H, W) or colours (H, W, C) of the same scene and aspect ratio, float32 in [0, 1]. A line is
            fitted to brightness, a plane to colours: there also edges between colours that are equally bright.
        radius: of the windows in which it is fitted, in pixels of the picture, at least 1.
        blur: how soft the picture is, as the standard deviation in pixels of a Gaussian: its slope is compared with
            that of a photo as soft as that.
        flat: variance of each channel below which the photo counts as flat: noise is no edge.

    Returns: gray levels (H, W), float32 in [0, 1].
    """
    height, width = picture.shape
    photo = photo if photo.ndim == 3 else photo[..., None]
    guide = photo
    if photo.shape[:2] != picture.shape:
        shrinks = photo.shape[0] > height
        guide = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if blur:
        guide = cv2.GaussianBlur(guide, (0, 0), blur)
    plane = _Planes(guide.reshape(height, width, -1), radius, flat).fit(picture)

    def at_photo(field: np.ndarray) -> np.ndarray:
        return cv2.resize(field, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    followed = at_photo(plane[..., -1])
    for channel in range(photo.shape[-1]):  # one at a time: a photo has many pixels
        followed += at_photo(plane[..., channel]) * photo[..., channel]
    return followed.clip(0, 1)


class Window(NamedTuple):
    """The last arguments of `follow_edges`."""

    radius: int
    blur: float
    flat: float


def generated_window(edge_radius: float, shape: Sequence[int]) -> Window:
    """The window in which a generated picture follows the photo's colours.

    Args:
        edge_radius: in per cent of the shorter side, as in the settings. shape: of the picture, (..., h, w).
    """
    radius = max(1, round(edge_radius / 100 * min(shape[-2:])))
    return Window(radius, _SOFTNESS * radius, _FLAT_PHOTO)


def follow_edges_of_batch(pictures: Tensor, photos: Tensor, radius: int, blur: float, flat: float = _FLAT) -> Tensor:
    """`follow_edges` on the device, but for the last decimals; has gradients with respect to `pictures`.

    Args:
        pictures: (N, 1, h, w) in [0, 1]. photos: brightness (N, 1, H, W) or colours (N, C, H, W), whole multiples of h
            and w or as large.
        radius, blur, flat: as there; `blur` at least 0.1, `radius` less than h and w.

    Returns: (N, 1, H, W), float32 also where autocast is on: variances are small differences of large numbers.
    """
    with torch.autocast(photos.device.type, enabled=False):
        return _followed(pictures.float(), photos.float(), radius, blur, flat)


def _followed(pictures: Tensor, photos: Tensor, radius: int, blur: float, flat: float) -> Tensor:
    channels = photos.shape[1]
    guides = F.adaptive_avg_pool2d(photos, pictures.shape[-2:])
    reach = round(4 * blur)  # as OpenCV, which cuts it off there
    places = torch.arange(-reach, reach + 1, device=photos.device, dtype=photos.dtype)
    line = (-(places**2) / (2 * blur**2)).exp()
    line = (line / line.sum()).expand(channels, 1, 1, -1)
    guides = F.pad(guides, [reach] * 4, mode="reflect")
    guides = F.conv2d(F.conv2d(guides, line, groups=channels), line.mT, groups=channels)

    def mean(values: Tensor) -> Tensor:
        """Of each window, by running sums: their cost does not grow with it."""
        side, values = 2 * radius + 1, F.pad(values, [radius] * 4, mode="reflect")
        for dim in (-1, -2):
            sums = F.pad(values.cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
            count = values.shape[dim] - side + 1
            values = (sums.narrow(dim, side, count) - sums.narrow(dim, 0, count)) / side
        return values

    centre, level = mean(guides), mean(pictures)  # [N, C, h, w], [N, 1, h, w]
    products = mean((guides[:, :, None] * guides[:, None]).flatten(1, 2)).unflatten(1, (channels, channels))
    spread = (products - centre[:, :, None] * centre[:, None]).permute(0, 3, 4, 1, 2)  # [N, h, w, C, C]
    inverse = torch.linalg.inv(spread + flat * torch.eye(channels, device=photos.device))
    together = (mean(guides * pictures) - centre * level).permute(0, 2, 3, 1)[..., None]
    slopes = (inverse @ together)[..., 0].permute(0, 3, 1, 2)
    planes = mean(torch.cat([slopes, level - (slopes * centre).sum(1, keepdim=True)], dim=1))
    planes = F.interpolate(planes, photos.shape[-2:], mode="bilinear", align_corners=False)
    return ((planes[:, :-1] * photos).sum(1, keepdim=True) + planes[:, -1:]).clamp(0, 1)


def follow_colours(masks: Iterable[np.ndarray], photo: np.ndarray, radius: int) -> list[np.ndarray]:
    """Masks whose outlines follow the photo's edges: the same filter, of each mask as a picture.

    Args:
        masks: boolean (h, w).
        photo: colours (h, w, 3), float32 in [0, 1].
        radius: of the windows, in pixels, at least 1.

    Returns: boolean (h, w), one for each mask. Where the photo is flat it is the blurred mask: what is small beside the
    window vanishes.
    """
    planes = _Planes(photo, radius, _FLAT_COLOUR)
    fitted = (planes.fit(mask.astype(np.float32)) for mask in masks)
    return [(plane[..., :-1] * photo).sum(-1) + plane[..., -1] > 0.5 for plane in fitted]


class _Planes:
    """Pictures as local planes of a guide (h, w, C): slopes of its channels, and an offset."""

    def __init__(self, guide: np.ndarray, radius: int, flat: float):
        self._guide, self._radius = guide, radius
        self._centre = self._mean(guide)
        channels = guide.shape[-1]
        spread = np.empty((*guide.shape, channels), dtype=np.float32)
        for i in range(channels):
            for j in range(i, channels):
                products = self._mean(guide[..., i] * guide[..., j])
                spread[..., i, j] = spread[..., j, i] = products - self._centre[..., i] * self._centre[..., j]
        self._inverse = np.linalg.inv(spread + flat * np.eye(channels, dtype=np.float32))

    def fit(self, picture: np.ndarray) -> np.ndarray:
        """(h, w) -> (h, w, C + 1): at each place the mean of the planes of all windows that it lies in."""
        level = self._mean(picture)
        together = self._mean(self._guide * picture[..., None]) - self._centre * level[..., None]  # [h, w, C]
        slopes = (self._inverse @ together[..., None])[..., 0]
        offset = level - (slopes * self._centre).sum(-1)
        return self._mean(np.concatenate([slopes, offset[..., None]], axis=-1))

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Over the window around each place, of each channel."""
        side = 2 * self._radius + 1
        return cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT_101).reshape(values.shape)


def gray_levels(photos: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) of photos (N, 3, H, W)."""
    return (photos * photos.new_tensor(_GRAY)[:, None, None]).sum(1, keepdim=True)


def brightness(image: Image.Image) -> np.ndarray:
    """Gray levels as float32 (H, W) in [0, 1]."""
    return np.asarray(image.convert("L"), dtype=np.float32) / 255


def colours(image: Image.Image) -> np.ndarray:
    """Red, green and blue as float32 (H, W, 3) in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
