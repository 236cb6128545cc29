"""Regions of a photo at several scales: small ones of graph segmentation, merged two at a time.

Graph segmentation (Felzenszwalb & Huttenlocher 2004) at a fine scale follows edges to the pixel; at a coarse one it
leaves shreds along edges and swallows things whose outline has a gap. So only the fine one is taken, and the two
neighbours that differ least are merged again and again, until as many regions are left as asked for. The number is the
same for every photo: a dark street has as many regions as a bright one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb

_FINE = dict(scale=30, sigma=0.6, min_size=24)


def region_labels(pixels: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Label maps (len(counts), h, w) uint16 of an RGB image (h, w, 3) uint8, with at most `counts` regions each.

    `counts` falls. Each region is connected, and lies in one region of each later map.
    """
    if list(counts) != sorted(counts, reverse=True) or min(counts) < 1:
        raise ValueError(f"counts must fall and be at least 1, got {tuple(counts)}")
    colours = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # [h, w, 3]
    fine = felzenszwalb(pixels, **_FINE)
    parents = _merge(cv2.GaussianBlur(colours, (0, 0), 0.8), fine, counts)
    return np.stack([parent[fine] for parent in parents]).astype(np.uint16)


def _merge(colours: np.ndarray, fine: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """For each count, the number of the merged region that each region of `fine` belongs to."""
    number = int(fine.max()) + 1
    sizes = np.bincount(fine.ravel(), minlength=number).astype(float)
    means = np.stack([np.bincount(fine.ravel(), c.ravel(), number) for c in np.moveaxis(colours, -1, 0)], -1)
    means /= sizes[:, None]
    borders = _borders(colours, fine)
    changes = np.zeros(number, dtype=int)  # how often a region grew: an entry of the heap from before is void
    parents = np.arange(number)
    heap: list[tuple[float, int, int, int, int]] = []

    def push(a: int, b: int) -> None:
        contrast, length = borders[a][b]
        extent = np.sqrt(sizes[a] * sizes[b] / (sizes[a] + sizes[b]))
        difference = extent * np.sqrt(((means[a] - means[b]) ** 2).sum()) * contrast / length
        heapq.heappush(heap, (float(difference), a, b, int(changes[a]), int(changes[b])))

    for a, neighbours in enumerate(borders):
        for b in neighbours:
            if a < b:
                push(a, b)
    found, left = [], number
    for count in counts:
        while left > count and heap:
            _, a, b, a_changes, b_changes = heapq.heappop(heap)
            if (changes[a], changes[b]) != (a_changes, b_changes):
                continue
            means[a] = (sizes[a] * means[a] + sizes[b] * means[b]) / (sizes[a] + sizes[b])
            sizes[a] += sizes[b]
            parents[parents == b] = a
            changes[[a, b]] += 1
            left -= 1
            for c, (contrast, length) in borders[b].items():
                del borders[c][b]
                if c != a:
                    before = borders[a].get(c, (0.0, 0))
                    borders[a][c] = borders[c][a] = (before[0] + contrast, before[1] + length)
            borders[b] = {}
            for c in borders[a]:
                push(a, c)
        found.append(np.unique(parents, return_inverse=True)[1])
    return found


def _borders(colours: np.ndarray, labels: np.ndarray) -> list[dict[int, tuple[float, int]]]:
    """For each region, its neighbours, with the sum of colour differences across the border and its length."""
    pairs, contrasts = [], []
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        crosses = labels[one] != labels[other]
        pairs.append(np.stack([labels[one][crosses], labels[other][crosses]], -1))
        contrasts.append(np.sqrt(((colours[one] - colours[other])[crosses] ** 2).sum(-1)))
    pairs = np.sort(np.concatenate(pairs), -1)
    unique, place, lengths = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    sums = np.bincount(place.ravel(), np.concatenate(contrasts), len(unique))
    borders: list[dict[int, tuple[float, int]]] = [{} for _ in range(int(labels.max()) + 1)]
    for (a, b), total, length in zip(unique.tolist(), sums.tolist(), lengths.tolist(), strict=True):
        borders[a][b] = borders[b][a] = (total, length)
    return borders
