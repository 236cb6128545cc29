"""How sure a mean over few images is: percentile bootstrap over the images (Efron 1979), the same on every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same images: mean of first less second with its interval, and how often the first is better.

    `win_rate` counts a tie as half a win.
    """

    count: int
    difference: float
    interval: tuple[float, float]
    win_rate: float


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`, one value an image.

    Raises:
        ValueError: no value.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"an interval needs at least one value, got shape {sample.shape}")
    rows = np.random.default_rng(_SEED).integers(len(sample), size=(_RESAMPLES, len(sample)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sample[rows].mean(axis=1), [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two methods by one number an image, the larger the better; equal positions are the same image.

    Raises:
        ValueError: not the same number of images, or none.
    """
    if len(first) != len(second):
        raise ValueError(f"expected two values for every image, got {len(first)} and {len(second)}")
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    differences = np.subtract(one, other, where=one != other, out=np.zeros_like(one))  # infinity less itself is none
    interval = mean_interval(differences)
    wins = np.where(one == other, 0.5, one > other).mean()
    return Comparison(len(differences), float(differences.mean()), interval, float(wins))
