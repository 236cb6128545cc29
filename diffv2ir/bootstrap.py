"""How sure a mean over few images is: percentile bootstrap over the images (Efron 1979), the same on every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 2000
_SET_RESAMPLES = 200  # of a distance between sets, each of which takes a singular value decomposition
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity: None stands for it."""
        difference, *interval = (value if math.isfinite(value) else None for value in (self.difference, *self.interval))
        return {"count": self.count, "difference": difference, "interval": interval, "win_rate": self.win_rate}


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


def set_interval(distance: Callable[[np.ndarray], float], count: int, value: float) -> tuple[float, float]:
    """The 95 % interval of a distance between sets of `count` images, by resampling the images.

    A resample repeats images, which by itself moves a distance between sets (a Fréchet distance up). The distances of
    the resamples are therefore shifted so that their mean is `value`: the interval tells the spread of the distance
    over sets of this size, not where that of infinitely many images lies.

    Args:
        distance: of the images at the given rows, int [count]; NaN where it is not defined for them.
        value: the distance of all images.
    """
    rows = np.random.default_rng(_SEED).integers(count, size=(_SET_RESAMPLES, count))
    drawn = np.array([distance(own) for own in rows])
    drawn = drawn[~np.isnan(drawn)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn - drawn.mean(), [tail, 1 - tail]) + value
    return min(float(low), value), max(float(high), value)  # equal distances: what is left is rounding


def compare(first: Sequence[float], second: Sequence[float], larger_is_better: bool = True) -> Comparison:
    """Compare two methods by one number an image; equal positions are the same image.

    Raises:
        ValueError: not the same number of images, or none.
    """
    if len(first) != len(second):
        raise ValueError(f"expected two values for every image, got {len(first)} and {len(second)}")
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    differences = np.subtract(one, other, where=one != other, out=np.zeros_like(one))  # infinity less itself is none
    interval = mean_interval(differences)
    wins = np.where(one == other, 0.5, (one > other) == larger_is_better).mean()
    return Comparison(len(differences), float(differences.mean()), interval, float(wins))
