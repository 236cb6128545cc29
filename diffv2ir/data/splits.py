"""Splits by scene: what shows one place stays on one side."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence


def block(stem: str, length: int = 100) -> str:
    """The scene of a frame in a numbered recording whose scenes nobody published: `length` frames on end.

    "FLIR_05164" -> "FLIR_51"; what has no number is a scene of its own. Neighbouring blocks may still show one place;
    `join_scenes` finds those that look alike.
    """
    match = re.search(r"\d+", stem[::-1])
    if match is None:
        return stem
    end = len(stem) - match.start()
    start = len(stem) - match.end()
    return f"{stem[:start]}{int(stem[start:end]) // length}{stem[end:]}"


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


def split_by_scene(
    scenes: Sequence[Hashable],
    official: Sequence[str | None],
    test_fraction: float = 0.1,
    *,
    keep_official: bool = False,
) -> list[str]:
    """ "train" or "test" for every example, the same for all of a scene.

    The authors' split is kept for scenes that lie on one side of it. Scenes that it cuts through, or that have none,
    are test when the hash of their name falls into the first `test_fraction` of the range: which other scenes there
    are does not matter, so a data set that grows keeps its split. With `keep_official`, every example keeps the side
    that its authors gave it, also in scenes that this cuts through, and what they gave none follows its scene's.
    """
    check_fraction(test_fraction)
    given = defaultdict(set)
    for scene, split in zip(scenes, official, strict=True):
        given[scene].add(split)
    chosen = {}
    for scene, splits in given.items():
        digest = hashlib.sha256(f"split/{scene}".encode()).digest()
        by_hash = "test" if int.from_bytes(digest[:4], "big") < test_fraction * 2**32 else "train"
        if keep_official:
            splits = splits - {None}
        only = next(iter(splits)) if len(splits) == 1 else None
        chosen[scene] = only or by_hash
    if keep_official:
        return [side or chosen[scene] for scene, side in zip(scenes, official, strict=True)]
    return [chosen[scene] for scene in scenes]


def check_fraction(test_fraction: float) -> None:
    """Raises ValueError where the share of scenes to test on is none."""
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must lie in [0, 1), got {test_fraction}")


def cut_scenes(scenes: Sequence[str], official: Sequence[str | None]) -> set[str]:
    """The scenes that lie on both sides of the authors' split."""
    sides = defaultdict(set)
    for scene, side in zip(scenes, official, strict=True):
        sides[scene].add(side)
    return {scene for scene, given in sides.items() if len(given - {None}) > 1}


def official_report(
    sources: Sequence[str], scenes: Sequence[str], official: Sequence[str | None], splits: Sequence[str], cut: set[str]
) -> dict[str, dict[str, int]]:
    """What became of the authors' split, for every source that has one.

    Args:
        sources, scenes, official, splits: of every example. cut: see `cut_scenes`.

    Returns:
        Of each source: `test`, images that the authors hold out; `test_lost`, how many of them are trained on;
        `moved`, images on another side than the authors'; `cut_scenes`, scenes on both sides; `cut_images` of those.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    places = defaultdict(set)
    for source, scene, side, split in zip(sources, scenes, official, splits, strict=True):
        if side is None:
            continue
        counts[source]["test"] += side == "test"
        counts[source]["test_lost"] += side == "test" != split
        counts[source]["moved"] += side != split
        if scene in cut:
            counts[source]["cut_images"] += 1
            places[source].add(scene)
    names = ("test", "test_lost", "moved", "cut_images")
    return {
        source: {name: count[name] for name in names} | {"cut_scenes": len(places[source])}
        for source, count in sorted(counts.items())
    }
