"""How well the two images of a pair lie on each other, by the edges they share, and where "badly" begins.

Brightness says nothing across cameras: what is bright in one may be dark in the other. The direction of an edge stays,
up to its sign. So both images become fields of edge directions with the angle doubled (which drops the sign), and their
correlation is taken at every shift up to `REACH`. An aligned pair peaks at no shift; the measure is the correlation
there minus the highest one elsewhere. Below zero, the images fit better when one is moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

# All lengths are pixels of images resized to a square of SIDE.
SIDE = 192
REACH = 24
TOLERANCE = 2.5
_GUARD = 3.0  # between "no shift" and "elsewhere": a peak is a few pixels wide
_BLUR, _NEIGHBOURHOOD, _STRONGEST = 1.0, 8.0, 3.0

THRESHOLD = 0.0


@dataclass(frozen=True)
class Warp:
    """A misalignment that is known: a shift in fractions of the side, a turn in degrees, an enlargement."""

    shift: float = 0.0
    angle: float = 0.0
    scale: float = 1.0

    def __str__(self) -> str:
        parts = [f"shift {self.shift:.1%}"] if self.shift else []
        parts += [f"turn {self.angle:g}°"] if self.angle else []
        parts += [f"scale {self.scale:g}"] if self.scale != 1 else []
        return ", ".join(parts) or "none"


WARPS = (
    *(Warp(shift=s) for s in (0.01, 0.02, 0.03, 0.04, 0.06, 0.08)),
    *(Warp(angle=a) for a in (2, 5, 10)),
    *(Warp(scale=s) for s in (1.05, 1.1, 1.2)),
)


def alignment(visible: Image.Image, infrared: Image.Image) -> float:
    """Correlation of edge directions at no shift (up to `TOLERANCE`) minus the highest at larger ones, in [-1, 1]."""
    first, second = _edge_directions(visible), _edge_directions(infrared)
    energy = math.sqrt(float((abs(first) ** 2).sum() * (abs(second) ** 2).sum()))
    if energy < 1e-9:
        return 0.0
    correlation = np.fft.ifft2(np.fft.fft2(first) * np.conj(np.fft.fft2(second))).real / energy
    middle = SIDE // 2
    nearby = slice(middle - REACH, middle + REACH + 1)
    correlation = np.fft.fftshift(correlation)[nearby, nearby]
    offsets = np.arange(-REACH, REACH + 1)
    distance = np.hypot(offsets[:, None], offsets)
    return float(correlation[distance <= TOLERANCE].max() - correlation[distance > TOLERANCE + _GUARD].max())


def _edge_directions(image: Image.Image) -> np.ndarray:
    """Complex (SIDE, SIDE): strength of the edge relative to its surroundings, twice its angle as phase."""
    gray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    gray = cv2.GaussianBlur(gray, (0, 0), _BLUR)
    gradient = cv2.Sobel(gray, cv2.CV_32F, 1, 0) + 1j * cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    strength = abs(gradient)
    if strength.max() < 1e-3:
        return np.zeros((SIDE, SIDE), dtype=complex)
    usual = cv2.GaussianBlur(strength, (0, 0), _NEIGHBOURHOOD) + 0.3 * strength.mean()
    relative = np.minimum(strength / usual, _STRONGEST)
    fade = np.hanning(SIDE) ** 0.25  # the frame is no edge
    return (gradient / (strength + 1e-6)) ** 2 * relative * np.outer(fade, fade)


def warp(image: Image.Image, warp: Warp, direction: float) -> Image.Image:
    """`image` moved by `warp`; `direction` (radians) says where the shift goes. What comes in is mirrored."""
    width, height = image.size
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), warp.angle, warp.scale)
    matrix[:, 2] += warp.shift * width * math.cos(direction), warp.shift * height * math.sin(direction)
    return Image.fromarray(cv2.warpAffine(np.asarray(image), matrix, image.size, borderMode=cv2.BORDER_REFLECT))


def warp_scores(
    pairs: Iterable[tuple[Image.Image, Image.Image]], warps: Sequence[Warp] = WARPS, seed: int = 0
) -> dict[Warp, list[float]]:
    """Measure pairs as they are, under `Warp()`, and with the visible image moved by each of `warps`."""
    generator = np.random.default_rng(seed)
    scores: dict[Warp, list[float]] = {one: [] for one in (Warp(), *warps)}
    for visible, infrared in pairs:
        for one, values in scores.items():
            moved = warp(visible, one, generator.uniform(0, 2 * math.pi)) if one != Warp() else visible
            values.append(alignment(moved, infrared))
    return scores


def choose_threshold(aligned: Sequence[float], moved: Sequence[float]) -> tuple[float, float, float]:
    """The threshold that tells aligned pairs from moved ones with the fewest errors of both kinds.

    Returns:
        threshold, share of aligned pairs below it, share of moved pairs below it. Where the two do not overlap, the
        threshold lies midway.
    """
    if not len(aligned) or not len(moved):
        raise ValueError("choose_threshold needs at least one aligned and one moved pair")
    first, second = np.sort(np.asarray(aligned, float)), np.sort(np.asarray(moved, float))
    values = np.unique(np.concatenate([first, second]))
    candidates = np.concatenate([[values[0] - 1e-6], (values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    lost = np.searchsorted(first, candidates) / len(first)
    found = np.searchsorted(second, candidates) / len(second)
    best = int(np.argmax(found - lost))
    return float(candidates[best]), float(lost[best]), float(found[best])
