"""A leakage audit: images of a split that look like images of another one, and how many a random split would have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffv2ir.data.contact import contact_sheet, evenly
from diffv2ir.data.examples import DataError, Example, near_frames
from diffv2ir.data.hashing import NEAR, check_near, near_pairs
from diffv2ir.data.measure import Measures, check_workers, measure_all

HELD_OUT = ("test", "val", "validation")


@dataclass(frozen=True)
class Leak:
    """Two examples that look alike, in different splits; `held_out` is the one that is not trained on.

    Of a test and a validation image, `trained` is the latter: choices are made on it.
    """

    held_out: Example
    trained: Example
    same_scene: bool


def audit(examples: Sequence[Example], near: int = NEAR, workers: int = 1) -> tuple[list[Leak], dict[str, Any]]:
    """Find leaks of a split, and count what a random split of the same examples would leak.

    Returns:
        The leaks by near-duplicates, and a report: for the split as it is, and for a random one with the same number
        of held-out examples of each kind and source, how many held-out examples have a near-duplicate, or a frame of
        their scene, among those trained on.

    Raises:
        ValueError: `near` or `workers` is out of its range.
        DataError: an image cannot be read.
    """
    check_near(near)
    check_workers(workers)
    jobs = [(example.visible, example.infrared or example.visible, 0) for example in examples]
    measures = list(tqdm(measure_all(jobs, workers), desc="measuring", total=len(jobs), mininterval=5))
    if broken := [m.error for m in measures if m.error]:
        raise DataError(f"{len(broken)} image(s) cannot be read, such as {broken[0]}")
    splits = {"as_split": examples, "random_split": random_split(examples)}
    held_out = {name: np.array([is_held_out(example) for example in own]) for name, own in splits.items()}
    copied: dict[str, set[int]] = {name: set() for name in splits}
    parts = np.array([_side(example) for example in examples])
    leaks, alike = [], 0
    for first, second in near_pairs([m.hashes for m in measures], near):
        alike += len(first)
        across = parts[first] != parts[second]
        leaks += _leaks(examples, first[across], second[across])
        for name, sides in held_out.items():
            across = sides[first] != sides[second]
            both = np.concatenate([first[across], second[across]])
            copied[name].update(both[sides[both]].tolist())
    report = {"examples": len(examples), "near_duplicates": alike, "bits": near,
              "exact_copies": _exact_copies(measures),
              **{name: _count(own, copied[name]) for name, own in splits.items()}}  # fmt: skip
    return leaks, report


def random_split(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """The same examples with as many held out of each kind and source, drawn without regard to scenes.

    Where a source has no training example, and so is held out as a whole, it stays so.
    """
    generator = np.random.default_rng(seed)
    groups = defaultdict(list)
    for place, example in enumerate(examples):
        groups[example.kind, example.source].append(place)
    splits = [example.split for example in examples]
    for places in groups.values():
        for place, other in zip(places, generator.permutation(places), strict=True):
            splits[place] = examples[other].split
    return [replace(example, split=split) for example, split in zip(examples, splits, strict=True)]


def write_sheet(leaks: Sequence[Leak], path: Path) -> None:
    """Some leaks, spread over all: the held-out example to the left, the one trained on to the right."""
    cells = [
        ((k.held_out.visible, k.held_out.infrared, k.trained.visible, k.trained.infrared),
         f"{k.held_out.split} {k.held_out.id} | {k.trained.split} {k.trained.id}")
        for k in evenly(leaks)
    ]  # fmt: skip
    contact_sheet(cells, path, columns=2)


def _leaks(examples: Sequence[Example], first: np.ndarray, second: np.ndarray) -> list[Leak]:
    """Of pairs (first, second) that look alike and lie across a split."""
    leaks = []
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        held_out, trained = sorted((examples[one], examples[other]), key=_side)
        leaks.append(Leak(held_out, trained, held_out.place == trained.place))
    return leaks


def is_held_out(example: Example) -> bool:
    """Whether an example is for testing or validation."""
    return example.split in HELD_OUT


def _side(example: Example) -> int:
    return HELD_OUT.index(example.split) if is_held_out(example) else len(HELD_OUT)


def _count(examples: Sequence[Example], near: Collection[int]) -> dict[str, Any]:
    """Held-out examples, and how many of them leak, overall and per kind/source.

    Args:
        near: places of held-out examples that look like one that is trained on.
    """
    trained = [example for example in examples if not is_held_out(example)]
    trained_scenes = {example.place for example in trained}
    # A crop has the scene of a pair of its split; the pair beside its frame may be in another one.
    beside = near_frames([example for example in examples if is_held_out(example)], trained)
    held_out, copied, shared = Counter(), Counter(), Counter()
    for place, example in enumerate(examples):
        if not is_held_out(example):
            continue
        for group in ("overall", f"{example.kind}/{example.source}"):
            held_out[group] += 1
            copied[group] += place in near
            shared[group] += example.place in trained_scenes or example.id in beside
    return {
        group: {"held_out": held_out[group], "near_duplicates": copied[group], "same_scene": shared[group]}
        for group in sorted(held_out, key=lambda name: (name != "overall", name))
    }


def _exact_copies(measures: Sequence[Measures]) -> int:
    """Examples whose files are, byte by byte, those of an earlier one."""
    return len(measures) - len({m.sha256 for m in measures})
