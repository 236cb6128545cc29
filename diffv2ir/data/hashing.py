"""Perceptual hashes of images, and the pairs of examples that look alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from PIL import Image

_SIDE = 16
BITS = _SIDE * _SIDE

# Of BITS. A copy that is resized and compressed anew differs in few bits, another scene in about half of them.
NEAR = 32
_CHUNK = 512
# Of the index: a band has at most 32 bits, and is looked up with up to so many of them changed.
_LEAST_BANDS, _CHANGED = 8, 2
_AT_ONCE = 1 << 22  # candidates, for the memory that they take


def difference_hash(image: Image.Image) -> bytes:
    """32 bytes: for each place of a 16x16 grid, whether the image gets brighter to the right."""
    gray = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes()


def check_near(near: int) -> None:
    """Raises ValueError where a number of bits is none that hashes can differ by."""
    if not 0 <= near < BITS:
        raise ValueError(f"near must lie in [0, {BITS}), got {near}")


def near_pairs(
    hashes: Sequence[tuple[bytes, bytes | None]], near: int = NEAR
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All i < j whose hashes differ in at most `near` bits: those of the infrared and of the visible images.

    Args:
        hashes: (infrared, visible or None) of every example. Where one of two has no visible image, the infrared
            images decide.

    Yields:
        Parts (i, j), in the order of j and, for one j, of i; all of one j are in one part. Of a small set, every pair
        is compared; of a large one, those that the index by bands finds, which misses none.
    """
    infrared = _words([first for first, _ in hashes])  # [N, 4] uint64
    visible = _words([second or bytes(BITS // 8) for _, second in hashes])
    alone = np.array([second is None for _, second in hashes], dtype=bool)
    index = _Bands(infrared, near) if _pays(len(hashes), near) else None
    for start in range(0, len(hashes), _CHUNK):
        stop = min(start + _CHUNK, len(hashes))
        if index:
            i, j = index.find(start, stop)
        else:
            j, i = np.nonzero(_distance(infrared[start:stop], infrared[:stop]) <= near)
            j = j + start
        keep = (i < j) & ((_apart(visible, i, j) <= near) | alone[i] | alone[j])
        yield i[keep], j[keep]


class _Bands:
    """Hashes by bands of their bits.

    Of two hashes that differ in at most `near` bits, one of `count` bands differs in at most `near // count`, for else
    they would differ in more. So whatever is near a hash has one of its bands, but for so many changed bits. A band's
    bits are taken from all over the image: neighbouring ones are alike in many images.

    Args:
        words: (N, 4) uint64.
    """

    def __init__(self, words: np.ndarray, near: int):
        self.words, self.near = words, near
        places = np.array_split(np.random.default_rng(0).permutation(BITS), _band_count(near))
        self.values = np.empty((len(places), len(words)), dtype=np.uint32)
        for start in range(0, len(words), _AT_ONCE // BITS):
            rows = slice(start, start + _AT_ONCE // BITS)
            bits = np.unpackbits(words[rows].view(np.uint8), axis=1)  # [n, 256]
            for values, own in zip(self.values, places, strict=True):
                values[rows] = bits[:, own] @ (np.uint32(1) << np.arange(len(own), dtype=np.uint32))
        self.order = np.argsort(self.values, axis=1, kind="stable").astype(np.int32)
        self.sorted = np.take_along_axis(self.values, self.order, axis=1)
        self.changes = [_changes(len(own), near // len(places)) for own in places]

    def find(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The pairs (i, j), i < j, start <= j < stop, that differ in at most `near` bits, sorted by j and then i."""
        found = [np.empty(0, dtype=np.int64)]
        for values, order, known, changes in zip(self.values, self.order, self.sorted, self.changes, strict=True):
            wanted = (values[start:stop, None] ^ changes).ravel()
            first = np.searchsorted(known, wanted)
            hits = np.flatnonzero(known[np.minimum(first, len(known) - 1)] == wanted)
            counts = np.searchsorted(known, wanted[hits], "right") - first[hits]
            bounds = np.searchsorted(np.cumsum(counts), np.arange(_AT_ONCE, counts.sum() + 1, _AT_ONCE))
            for part in np.split(np.arange(len(hits)), bounds):
                own = counts[part]
                j = np.repeat(start + hits[part] // len(changes), own)
                within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
                i = order[np.repeat(first[hits[part]], own) + within]
                earlier = i < j
                i, j = i[earlier], j[earlier]
                near = _apart(self.words, i, j) <= self.near
                found.append(j[near] * len(order) + i[near])
        pairs = np.unique(np.concatenate(found))
        return pairs % len(self.words), pairs // len(self.words)


def _band_count(near: int) -> int:
    return max(_LEAST_BANDS, near // (_CHANGED + 1) + 1)


def _changes(width: int, most: int) -> np.ndarray:
    """What to change a band of `width` bits by, for everything that differs in at most `most` bits: uint32 masks."""
    masks = [sum(1 << bit for bit in bits) for count in range(most + 1) for bits in combinations(range(width), count)]
    return np.array(masks, dtype=np.uint32)


def _pays(count: int, near: int) -> bool:
    """Whether looking bands up takes less time than comparing `count` hashes with each other."""
    bands = _band_count(near)
    lookups = bands * len(_changes(BITS // bands, near // bands))
    return lookups * (3 + count / 2 ** (BITS // bands)) < count / 2


def _words(hashes: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, BITS // 64)


def _apart(words: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Hamming distances of the hashes at the places `i` and `j`, one by one."""
    return np.bitwise_count(words[i] ^ words[j]).sum(axis=-1, dtype=np.int64)


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hamming distances (n, m) of hashes (n, 4) and (m, 4)."""
    total = np.zeros((len(first), len(second)), dtype=np.int16)
    for word in range(first.shape[1]):
        total += np.bitwise_count(first[:, None, word] ^ second[None, :, word])
    return total
