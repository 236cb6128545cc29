"""Cleaning as the paper asks for IR-500K (Sec. 4): stages that drop examples, count them, and keep some to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from diffv2ir.data.alignment import THRESHOLD
from diffv2ir.data.copies import Copies
from diffv2ir.data.hashing import NEAR, check_near, near_pairs
from diffv2ir.data.measure import Measures

STAGES = ("unreadable", "unequal", "small", "constant", "border", "duplicate", "misaligned")


@dataclass(frozen=True)
class CleaningConfig:
    """Where each stage begins to drop.

    Attributes:
        smallest: pixels of the shorter side. contrast: standard deviation of gray levels. black: share of black wedges.
        near: bits of 256 by which both perceptual hashes may differ (`hashing`).
        alignment: `alignment.alignment` below this is misaligned (`benchmarks/data/alignment.md`).
        skip: names of stages that drop nothing.
    """

    smallest: int = 64
    contrast: float = 3.0
    black: float = 0.01
    near: int = NEAR
    alignment: float = THRESHOLD
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.skip) - set(STAGES[1:]):
            raise ValueError(f"skip must be among {STAGES[1:]}, got {sorted(unknown)}")
        if self.smallest < 0:
            raise ValueError(f"smallest must be at least 0 pixels, got {self.smallest}")
        if not 0 <= self.contrast < 128:
            raise ValueError(f"contrast must lie in [0, 128), got {self.contrast}")
        if not 0 < self.black <= 1:
            raise ValueError(f"black must lie in (0, 1], got {self.black}")
        check_near(self.near)
        if not -1 <= self.alignment <= 1:
            raise ValueError(f"alignment must lie in [-1, 1], got {self.alignment}")


DEFAULT = CleaningConfig()


@dataclass
class Cleaned:
    """Places in the list of examples.

    Attributes:
        kept: what is left, in order. dropped: what each stage dropped.
        copies: (a, b), a < b, that look alike, as few as connect all that do. Of all that reached that stage.
        originals: of each that is a duplicate, the first one that stays and looks like it.
    """

    kept: list[int]
    dropped: dict[str, list[int]] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)
    originals: dict[int, int] = field(default_factory=dict)


def clean(measures: Sequence[Measures], config: CleaningConfig = DEFAULT) -> Cleaned:
    """Take the examples through the stages, one after the other; an example is counted where it is dropped."""
    result = Cleaned(list(range(len(measures))))
    for stage in STAGES:
        if stage == "duplicate":
            places, copies = result.kept, Copies(len(result.kept))
            for first, second in near_pairs([measures[place].hashes for place in places], config.near):
                copies.add(first, second)
            result.copies = [(places[i], places[j]) for i, j in copies.links]
            result.originals = {places[j]: places[i] for j, i in copies.originals.items()}
            bad = set(result.originals)
        else:
            bad = {place for place in result.kept if _is_bad(stage, measures[place], config)}
        if stage in config.skip:
            bad = set()
        result.dropped[stage] = [place for place in result.kept if place in bad]
        result.kept = [place for place in result.kept if place not in bad]
    return result


def _is_bad(stage: str, measures: Measures, config: CleaningConfig) -> bool:
    if stage == "unreadable":
        return bool(measures.error)
    if stage == "unequal":
        return len(set(measures.sizes)) > 1
    if stage == "small":
        return min(min(size) for size in measures.sizes) < config.smallest
    if stage == "constant":
        return measures.contrast < config.contrast
    if stage == "border":
        return measures.black >= config.black
    return measures.alignment < config.alignment
