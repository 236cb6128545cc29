"""What examples that look alike come to: which of them stay, and which belong together."""

from __future__ import annotations

import numpy as np


class Copies:
    """Made of the near pairs of a list of examples, which come in parts: what is kept grows with the examples only.

    Attributes:
        originals: place of an example that goes -> place of the first one that stays and looks like it.
        links: (a, b), a < b, that look alike; as few as connect all that are connected by pairs that look alike.
    """

    def __init__(self, count: int):
        self.originals: dict[int, int] = {}
        self.links: list[tuple[int, int]] = []
        self._goes = np.zeros(count, dtype=bool)
        self._parents = np.arange(count)

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Take in a part of the pairs, as `hashing.near_pairs` yields them: all of one `second`, in their order."""
        places, starts = np.unique(second, return_index=True)
        for place, alike in zip(places.tolist(), np.split(first, starts[1:]), strict=False):
            staying = alike[~self._goes[alike]]
            if len(staying):
                self._goes[place] = True
                self.originals[place] = int(staying[0])
            groups, members = np.unique(self._roots(alike), return_index=True)
            self._parents[[*groups, place]] = groups[0]
            self.links += [(int(alike[member]), place) for member in members]

    def _roots(self, places: np.ndarray) -> np.ndarray:
        """The place that stands for the group of each."""
        roots = self._parents[places]
        while (self._parents[roots] != roots).any():
            roots = self._parents[roots]
        self._parents[places] = roots
        return roots
