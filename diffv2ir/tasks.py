"""What pixel metrics do not see, since they reward blur: whether edges lie where they should, and people are hot.

All pictures are 8-bit gray [H, W] at the evaluation size. What the numbers can and cannot say: docs/evaluation.md.
"""

from __future__ import annotations

import math
import re

import cv2
import numpy as np
from PIL import Image

EDGE_TOLERANCE = 2
# A pixel is an edge's when its gradient is among the steepest tenth, or connected to those above half of that.
_EDGE_QUANTILE, _EDGE_CONTINUES = 0.9, 0.5
# Sobel's answer to a step of about three gray levels: less is noise, not an edge.
_EDGE_FLOOR = 12.0

PEOPLE = re.compile(
    r"\b(person|people|man|men|woman|women|boys?|girls?|child|children|pedestrians?|cyclists?|riders?|motorcyclists?"
    r"|students?|walkers?|crowd|visitors?|passers-by)\b",
    re.IGNORECASE,
)
# Gray levels below which the real infrared does not tell whether somebody is warmer than the surroundings.
UNDECIDED = 5.0
_HOT_QUANTILE, _HOT_PIXELS = 0.98, 64
_RING = (3, 10)


def edges(image: Image.Image) -> np.ndarray:
    """Edges of a gray picture, bool [H, W], one pixel wide (Canny 1986), by thresholds relative to its own contrast."""
    smooth = cv2.GaussianBlur(np.asarray(image.convert("L")), (0, 0), 1.0)
    dx, dy = (cv2.Sobel(smooth, cv2.CV_16S, *order) for order in ((1, 0), (0, 1)))
    high = max(float(np.quantile(np.hypot(dx, dy), _EDGE_QUANTILE)), _EDGE_FLOOR)
    return cv2.Canny(dx, dy, _EDGE_CONTINUES * high, high, L2gradient=True) > 0


def edge_f1(found: np.ndarray, wanted: np.ndarray, tolerance: int = EDGE_TOLERANCE) -> float:
    """How well edges [H, W] coincide: harmonic mean of the shares of each that have the other within `tolerance` px.

    1 where neither picture has an edge, 0 where only one has.
    """
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = float((_distance_to(wanted) <= tolerance)[found].mean())
    recall = float((_distance_to(found) <= tolerance)[wanted].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Distance in pixels of each place to the nearest one in the mask, [H, W]."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def person_regions(real: Image.Image, kind: str, caption: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Where a person is and what surrounds it, bool [H, W] each; None where the caption names nobody.

    In an object crop the person is in the middle columns and the surroundings are the outer ones. In a full frame,
    which comes without boxes, the hottest connected region of the *real* infrared is taken for a person, and a ring
    around it for the surroundings.
    """
    if not PEOPLE.search(caption or ""):
        return None
    return _crop_regions(real.height, real.width) if kind == "crops" else _hottest_region(np.asarray(real))


def _crop_regions(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    columns = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    return np.abs(columns - 0.5) <= 0.2, np.abs(columns - 0.5) >= 0.4


def _hottest_region(real: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    smooth = cv2.GaussianBlur(real, (0, 0), 1.0)
    hot = smooth >= max(1, np.quantile(smooth, _HOT_QUANTILE))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=8)
    large = [label for label in range(1, len(stats)) if stats[label, cv2.CC_STAT_AREA] >= _HOT_PIXELS]
    if not large:
        return None
    region = labels == max(large, key=lambda label: smooth[labels == label].mean())
    distance = _distance_to(region)
    ring = (distance > _RING[0]) & (distance <= _RING[1])
    return (region, ring) if ring.any() else None


def contrast(image: Image.Image, regions: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean of the first region less that of the second, in gray levels, -255..255."""
    levels = np.asarray(image, dtype=np.float64)
    inside, outside = regions
    return float(levels[inside].mean() - levels[outside].mean())


def person_measures(
    image: Image.Image, real: Image.Image, regions: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, float]:
    """How a person stands out in a picture, beside the real infrared; NaN where it cannot be said.

    `person_contrast`: in gray levels; `person_brighter`: 1 when that is above 0; `person_sign`: 1 when it has the sign
    that it has in the real infrared, asked where that is `UNDECIDED` levels or more; `person_error`: how far it is from
    the real one, in gray levels.
    """
    if regions is None:
        return dict.fromkeys(("person_contrast", "person_brighter", "person_sign", "person_error"), math.nan)
    own, wanted = contrast(image, regions), contrast(real, regions)
    agrees = float(own * wanted > 0) if abs(wanted) >= UNDECIDED else math.nan
    return {
        "person_contrast": own,
        "person_brighter": float(own > 0),
        "person_sign": agrees,
        "person_error": abs(own - wanted),
    }
