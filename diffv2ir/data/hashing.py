"""Perceptual hashes of images, and the pairs of examples that look alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

_SIDE = 16
BITS = _SIDE * _SIDE

# Of BITS. A copy that is resized and compressed anew differs in few bits, another scene in about half of them.
NEAR = 32
_CHUNK = 512


def difference_hash(image: Image.Image) -> bytes:
    """32 bytes: for each place of a 16x16 grid, whether the image gets brighter to the right."""
    gray = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes()


def check_near(near: int) -> None:
    """Raises ValueError where a number of bits is none that hashes can differ by."""
    if not 0 <= near < BITS:
        raise ValueError(f"near must lie in [0, {BITS}), got {near}")


def near_pairs(hashes: Sequence[tuple[bytes, bytes | None]], near: int = NEAR) -> list[tuple[int, int]]:
    """All (i, j), i < j, whose hashes differ in at most `near` bits: those of the infrared and of the visible images.

    Args:
        hashes: (infrared, visible or None) of every example. Where one of two has no visible image, the infrared
            images decide.

    Every pair is compared, which is exact and takes about a minute for 100,000 examples.
    """
    infrared = _words([first for first, _ in hashes])  # [N, 4] uint64
    visible = _words([second or bytes(BITS // 8) for _, second in hashes])
    alone = np.array([second is None for _, second in hashes], dtype=bool)
    found = []
    for start in range(0, len(hashes), _CHUNK):
        rows = slice(start, start + _CHUNK)
        i, j = np.nonzero(_distance(infrared[rows], infrared[start:]) <= near)
        i, j = i + start, j + start
        apart = np.bitwise_count(visible[i] ^ visible[j]).sum(axis=-1, dtype=np.int64)
        keep = (i < j) & ((apart <= near) | alone[i] | alone[j])
        found += zip(i[keep].tolist(), j[keep].tolist(), strict=True)
    return found


def _words(hashes: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, BITS // 64)


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hamming distances (n, m) of hashes (n, 4) and (m, 4)."""
    total = np.zeros((len(first), len(second)), dtype=np.int16)
    for word in range(first.shape[1]):
        total += np.bitwise_count(first[:, None, word] ^ second[None, :, word])
    return total
