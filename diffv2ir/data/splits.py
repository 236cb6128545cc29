"""Splits by scene: what shows one place stays on one side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence


def join_scenes(scenes: Sequence[str], copies: Sequence[tuple[int, int]]) -> list[str]:
    """Scenes in which near-duplicates were found are one: each gets the name that comes first among those joined.

    Args:
        scenes: of every example. copies: places of examples that look alike.
    """
    parent = {scene: scene for scene in scenes}

    def root(scene: str) -> str:
        while parent[scene] != scene:
            parent[scene] = parent[parent[scene]]
            scene = parent[scene]
        return scene

    for first, second in copies:
        one, other = sorted((root(scenes[first]), root(scenes[second])))
        parent[other] = one
    return [root(scene) for scene in scenes]


def split_by_scene(scenes: Sequence[Hashable], official: Sequence[str | None], test_fraction: float = 0.1) -> list[str]:
    """ "train" or "test" for every example, the same for all of a scene.

    The authors' split is kept for scenes that lie on one side of it. Scenes that it cuts through, or that have none,
    are test when the hash of their name falls into the first `test_fraction` of the range: which other scenes there
    are does not matter, so a data set that grows keeps its split.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must lie in [0, 1), got {test_fraction}")
    given = defaultdict(set)
    for scene, split in zip(scenes, official, strict=True):
        given[scene].add(split)
    chosen = {}
    for scene, splits in given.items():
        digest = hashlib.sha256(f"split/{scene}".encode()).digest()
        by_hash = "test" if int.from_bytes(digest[:4], "big") < test_fraction * 2**32 else "train"
        only = next(iter(splits)) if len(splits) == 1 else None
        chosen[scene] = only or by_hash
    return [chosen[scene] for scene in scenes]
