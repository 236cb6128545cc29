"""Table 1 of the paper: the same recipe on a random split and on a split by scene of the same images."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffv2ir.bootstrap import mean_interval
from diffv2ir.data import DataError, Example
from diffv2ir.data.audit import audit
from diffv2ir.data.hashing import BITS, NEAR
from diffv2ir.evaluate import OVERALL
from diffv2ir.scores import View
from diffv2ir.training.ablation import report
from diffv2ir.training.ablation.cells import Cells, device_name, model_hash
from diffv2ir.training.ablation.scoring import Photos, by_lot, generating, load_pipe, score_cell
from diffv2ir.training.ablation.trainings import Trainings
from diffv2ir.training.learnt import digest, examples_hash
from diffv2ir.training.loop import process_state
from diffv2ir.training.phases import PhaseConfig

NAME = "table1"
_PARTS = ("train", "test")
_METHODS = {"model": "ours", "visible_gray": "visible, gray", "constant": "constant"}


@dataclass(frozen=True)
class Split:
    """The same images, parted in one of two ways. `seen` are the test images whose scene is also trained on."""

    name: str
    train: list[Example]
    test: list[Example]

    @property
    def seen(self) -> list[Example]:
        scenes = {example.place for example in self.train}
        return [example for example in self.test if example.place in scenes]

    def copied(self) -> list[str]:
        """Names of the test images that have a near-duplicate among those trained on; all images are read."""
        leaks, _ = audit([replace(example, split=part) for part in _PARTS for example in getattr(self, part)])
        return sorted({leak.held_out.id for leak in leaks})


def make_splits(examples: Sequence[Example], fraction: float, seed: int = 0) -> tuple[Split, Split]:
    """A random split and one by scene, with equally many test images of every camera.

    By scene, whole scenes in random order go to the test part, until it has `fraction` of a camera's images; the last
    scene of a camera stays in training, unless another camera's test part has it, too.

    Raises:
        ValueError: the fraction is not in (0, 1).
        DataError: no camera has two scenes, or no scene two images: both splits would be the same.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test-fraction must lie between 0 and 1, got {fraction}")
    cameras: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        cameras[example.source].append(example)
    scenes = {
        example.place
        for own in cameras.values()
        for example in _whole_scenes(own, math.ceil(fraction * len(own)), seed)
    }
    by_scene, at_random = {example for example in examples if example.place in scenes}, set()
    for own in cameras.values():
        at_random.update(by_lot(own, seed)[: sum(example in by_scene for example in own)])
    splits = tuple(
        Split(name, [e for e in examples if e not in test], [e for e in examples if e in test])
        for name, test in (("random", at_random), ("by scene", by_scene))
    )
    if not splits[1].test:
        raise DataError("no camera has two scenes: there is nothing to split by scene")
    if not splits[0].seen:
        raise DataError("no scene of the random split's test part is trained on: choose cameras with larger scenes")
    return splits


def _whole_scenes(examples: Sequence[Example], wanted: int, seed: int) -> list[Example]:
    """All images of scenes in random order, at least `wanted` where there are enough; never all scenes."""
    order = list(dict.fromkeys(example.place for example in by_lot(examples, seed)))
    chosen: list[Example] = []
    for scene in order[:-1]:
        if len(chosen) >= wanted:
            break
        chosen += [example for example in examples if example.place == scene]
    return chosen


def compare_splits(
    examples: Sequence[Example],
    config: PhaseConfig,
    start: Path,
    trainings: Trainings,
    output: Path,
    *,
    fraction: float = 0.2,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    views: Sequence[View] | None = None,
) -> Path:
    """Train `config` from `start` on both splits, score both, write table and plot; returns the table.

    Args:
        changes: to the settings that pictures are made with, which are those of the trained bundle.
        views: see `scores.score`.
    """
    splits = make_splits([example for example in examples if config.fits(example)], fraction, seed)
    results = [trainings.result(split.name.replace(" ", "-"), config, split.train, start) for split in splits]
    if not process_state().is_main_process:
        return output
    device, cells, rows = process_state().device, Cells(output / "cells", views), []
    for split, folder in zip(splits, results, strict=True):
        key = {
            "table": NAME,
            "bundle": model_hash(folder),
            "pairs": examples_hash(split.test),
            "device": device_name(device),
            "changes": digest([changes, seed]),
        }
        result = cells.get(key, lambda split=split, folder=folder: _score(split, folder, changes or {}, seed, views))
        looked_at = {"table": NAME, "near": NEAR, **{part: examples_hash(getattr(split, part)) for part in _PARTS}}
        copied = cells.get(looked_at, lambda split=split: {"copied": split.copied()})["copied"]
        rows += _rows(split, result, set(copied))
    _write(output, splits, rows, config)
    return output / f"{NAME}.md"


def _score(
    split: Split, folder: Path, changes: dict[str, Any], seed: int, views: Sequence[View] | None
) -> dict[str, Any]:
    pipe = load_pipe(folder)
    settings = pipe.default_settings.replace(**{"seed": seed, **changes})
    return score_cell(Photos(pipe, split.test, settings, views), settings, generating(pipe, settings))


def _rows(split: Split, result: dict[str, Any], copied: set[str]) -> list[report.Row]:
    """The whole test part by method, and ours on test images whose scene was trained on, on those of which a copy was
    (`Split.copied`), and on the others of either.
    """
    rows = [
        {"split": split.name, "method": title, "images": "all", **report.score_fields(result["methods"][name][OVERALL])}
        for name, title in _METHODS.items()
    ]
    every, seen = ({example.id for example in part} for part in (split.test, split.seen))
    for known, titles in ((seen, ("scene trained on", "scene new")), (copied, ("copy trained on", "no copy"))):
        for title, ids in zip(titles, (known, every - known), strict=True):
            if ids and known:
                rows.append({"split": split.name, "method": "ours", "images": title, **_means(result["images"], ids)})
    return rows


def _means(images: dict[str, dict[str, float]], ids: set[str]) -> report.Row:
    row: report.Row = {"count": len(ids)}
    for measure in ("psnr", "ssim"):
        values = [images[key][measure] for key in sorted(ids)]
        low, high = mean_interval(values)
        row |= {measure: sum(values) / len(values), f"{measure}_low": low, f"{measure}_high": high}
    return row


def _write(output: Path, splits: Sequence[Split], rows: list[report.Row], config: PhaseConfig) -> None:
    counts = "; ".join(
        f"{split.name}: {len(split.train)} train, {len(split.test)} test, {len(split.seen)} of them of a scene that is "
        f"also trained on"
        for split in splits
    )
    text = [
        f"Table 1 of the paper: the same recipe ({config.loop.steps} steps, batch {config.loop.batch_size}) on two "
        f"splits of the same images. {counts}. 95 % bootstrap intervals.",
        "The test parts hold equally many images of every camera, but not the same images: what the two methods that "
        "learn nothing score says how far they differ in difficulty. Both start from the same folder: what that has "
        "seen of the images, it has seen of both test parts. A copy is a near-duplicate as `train.data audit` finds "
        f"it, within {NEAR} of {BITS} bits. The Fréchet distance is not FID.",
    ]
    labels = [f"{row['split']}, {row['method']}" + (f", {row['images']}" * (row["images"] != "all")) for row in rows]
    report.plot_rows(output / f"{NAME}.png", rows, labels)
    columns = ["split", "images", "method", "count", *report.measures_of(rows)]
    report.write_table(output, NAME, rows, columns, text, [f"{NAME}.png"])
    ids = {split.name: {part: [e.id for e in getattr(split, part)] for part in _PARTS} for split in splits}
    (output / "splits.json").write_text(json.dumps(ids, indent=1), encoding="utf-8")
