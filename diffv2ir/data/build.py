"""From public data sets to one cleaned set of shards (paper Sec. 4)."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffv2ir.data.cleaning import DEFAULT, STAGES, Cleaned, CleaningConfig, clean
from diffv2ir.data.contact import contact_sheet, evenly
from diffv2ir.data.examples import DataError
from diffv2ir.data.measure import Measures, check_workers, cut_border, measure_all, spread
from diffv2ir.data.shards import LONGEST_KEY, Entry, check_length, write_shards
from diffv2ir.data.sources import SOURCES, Found, Source
from diffv2ir.data.splits import check_fraction, cut_scenes, join_scenes, official_report, split_by_scene
from diffv2ir.files import write_atomically
from diffv2ir.imaging import open_image
from diffv2ir.members import ImageFile

logger = logging.getLogger(__name__)

REPORT = "cleaning.json"


@dataclass(frozen=True)
class Candidate:
    """An example that was found, with the adapter it came from.

    Attributes:
        id: unique over all sources. key: likewise, and fit for a tar. order: place in what the sources list.
    """

    id: str
    key: str
    source: Source
    found: Found
    order: int

    @property
    def name(self) -> str:
        """Of the source; a folder of this project keeps the sources of its examples."""
        return self.found.source or self.source.key

    @property
    def scene(self) -> str:
        """Over all sources; where it was joined with another before, that one's name, as `Example.place` has it."""
        return self.found.joined or f"{self.name}/{self.found.scene}"


def build(
    sources: Sequence[tuple[str, Path]],
    target: Path,
    config: CleaningConfig = DEFAULT,
    *,
    test_fraction: float = 0.1,
    keep_official: bool = False,
    shard_length: int = 1000,
    workers: int = 1,
) -> dict[str, Any]:
    """Read data sets, clean them, split them by scene, and write shards, manifest, report and contact sheets.

    What is measured is kept beside `target` until that is there: a run that was stopped goes on where it was.

    Args:
        sources: (key of `SOURCES`, folder) of each; target: a folder that is not there yet, or empty.
        test_fraction, keep_official: see `split_by_scene`.

    Returns:
        What was found, dropped by each stage, and kept, what became of the authors' splits (`official_report`), and
        warnings; also in `target/cleaning.json`.

    Raises:
        ValueError: a setting is out of its range.
        DataError: a folder lacks what its data set should hold, two examples share an id, nothing is left, or a process
            that reads images was killed.
    """
    check_fraction(test_fraction)
    check_length(shard_length)
    check_workers(workers)
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is there already and not empty: name another folder, or remove it")
    candidates = find(sources)
    jobs = [(c.found.visible, c.found.infrared, c.source.border) for c in candidates]
    kept = target.with_name(f".{target.name}.measures.jsonl")
    measures = list(tqdm(measure_all(jobs, workers, kept), desc="measuring", total=len(jobs), mininterval=5))
    cleaned = clean(measures, config)
    if not cleaned.kept:
        raise DataError(f"nothing is left of {len(candidates)} examples: dropped {_counts(cleaned.dropped)}")
    scenes = join_scenes([c.scene for c in candidates], cleaned.copies)
    splits = split_by_scene(scenes, [c.found.split for c in candidates], test_fraction, keep_official=keep_official)
    chosen = sorted(cleaned.kept, key=lambda i: (candidates[i].name, splits[i], scenes[i], candidates[i].key))
    shared = _of_several_sources(candidates, scenes)
    report = {
        "found": dict(sorted(Counter(c.name for c in candidates).items())),
        "dropped": _counts(cleaned.dropped),
        "kept": dict(sorted(Counter(f"{candidates[i].name}/{splits[i]}" for i in chosen).items())),
        "joined_scenes": len({c.scene for c in candidates}) - len(set(scenes)),
        **_split_report(candidates, scenes, splits, chosen),
        "config": asdict(config) | {"test_fraction": test_fraction, "keep_official": keep_official},
    }

    def write(folder: Path) -> None:
        entries = (_entry(candidates[i], measures[i], scenes[i], splits[i], scenes[i] in shared) for i in chosen)
        write_shards(tqdm(entries, desc="writing", total=len(chosen), mininterval=5), folder, shard_length)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        _write_sheets(candidates, measures, cleaned, folder / "sheets")

    write_atomically(target, write)
    kept.unlink(missing_ok=True)
    return report


def find(sources: Sequence[tuple[str, Path]]) -> list[Candidate]:
    """All examples of all sources, pairs first: of a pair and its infrared alone, cleaning keeps what comes first.

    Raises:
        DataError: an unknown source; see `build`.
    """
    every: list[tuple[str, Found]] = []
    for key, root in sources:
        if key not in SOURCES:
            raise DataError(f"there is no source {key!r}; known are {', '.join(SOURCES)}")
        if not root.is_dir():
            raise DataError(f"{key}: {root} is not a folder")
        found = list(SOURCES[key].find(root))
        logger.info("%s: %d examples in %s", key, len(found), root)
        every += [(key, one) for one in found]
    keys = _keys(every)
    candidates = [
        Candidate(one.name if source == "folder" else key, key, SOURCES[source], one, order)
        for order, ((source, one), key) in enumerate(zip(every, keys, strict=True))
    ]
    for names in ([c.id for c in candidates], keys):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(
                f"{len(twice)} example(s) have the same id, such as {twice[0]}: was a source named twice, or do two "
                "folders use one id?"
            )
    return sorted(candidates, key=lambda c: (c.found.visible is None, c.key))


def _keys(every: Sequence[tuple[str, Found]]) -> list[str]:
    """Letters, digits, - and _ only: WebDataset ends a key at the first dot.

    Names that would become one key, or one that is too long for a tar, are told apart by a hash of them.
    """
    names = [found.name if source == "folder" else f"{source}-{found.name}" for source, found in every]
    keys = [re.sub(r"[^\w-]+", "_", name, flags=re.ASCII) for name in names]
    often = Counter(keys)
    for number, (name, (_, found)) in enumerate(zip(names, every, strict=True)):
        if often[keys[number]] > 1 or len(keys[number]) > LONGEST_KEY:
            file = name + Path(str(found.infrared)).suffix
            digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            keys[number] = f"{keys[number][: LONGEST_KEY - 9]}-{digest}"
    return keys


def _of_several_sources(candidates: Sequence[Candidate], scenes: Sequence[str]) -> set[str]:
    sources = defaultdict(set)
    for candidate, scene in zip(candidates, scenes, strict=True):
        sources[scene].add(candidate.name)
    return {scene for scene, names in sources.items() if len(names) > 1}


def _split_report(
    candidates: Sequence[Candidate], scenes: Sequence[str], splits: Sequence[str], kept: Sequence[int]
) -> dict[str, Any]:
    """What became of the authors' splits, and warnings, which are logged too: writing takes long."""
    official = [c.found.split for c in candidates]
    cut = cut_scenes(scenes, official)
    names = [c.name for c in candidates]
    report = official_report(*([column[i] for i in kept] for column in (names, scenes, official, splits)), cut)
    warnings = _without_test({names[i] for i in kept}, {names[i] for i in kept if splits[i] == "test"}, report)
    if cut:
        logger.warning("%d scene(s) lie on both sides of the authors' splits: %s", len(cut), _listed(cut))
    for warning in warnings:
        logger.warning("%s", warning)
    return {"official_split": report, "warnings": warnings}


def _without_test(sources: set[str], tested: set[str], official: dict[str, dict[str, int]]) -> list[str]:
    """Of every source, and of the whole set, that ends without a test image."""
    warnings = [] if tested else ["the whole set has no test image: nothing is held out"]
    for source in sorted(sources - tested):
        lost = official.get(source, {}).get("test_lost", 0)
        why = (
            f": its authors hold out {lost}, but not whole scenes, so these were split anew; keep_official "
            "(--keep-official) leaves every image where they have it"
        )
        warnings.append(f"{source} has no test image{why if lost else ''}")
    return warnings


def _listed(scenes: set[str], most: int = 10) -> str:
    return ", ".join(sorted(scenes)[:most]) + (" ..." if len(scenes) > most else "")


def _counts(dropped: dict[str, list[int]]) -> dict[str, int]:
    return {stage: len(places) for stage, places in dropped.items()}


def _entry(candidate: Candidate, measures: Measures, scene: str, split: str, is_shared: bool) -> Entry:
    found, border = candidate.found, candidate.source.border
    files = {}
    for role in ("visible", "infrared", "segmentation"):
        if file := getattr(found, role):
            files[role] = _content(file, border, role)
    digests = {f"{role}_sha256": hashlib.sha256(content).hexdigest() for role, (content, _) in files.items()}
    width, height = measures.sizes[-1]
    together = "".join(digests.get(f"{role}_sha256", "") for role in ("visible", "infrared"))
    row = {
        "id": candidate.id,
        "key": candidate.key,
        "order": candidate.order,
        "kind": found.kind or ("pairs" if found.visible else "infrared"),
        "source": candidate.name,
        "band": found.band or candidate.source.band,
        "scene": scene.removeprefix(f"{candidate.name}/"),
        "joined": scene if is_shared or found.joined else None,
        "split": split,
        "caption": found.caption,
        "sha256": hashlib.sha256(together.encode()).hexdigest(),
        "width": width,
        "height": height,
        **digests,
    }
    return Entry(row, files)


def _content(file: ImageFile, border: int, role: str) -> tuple[bytes, str]:
    """Bytes and suffix of a file: its own, or those of a PNG without its border, or with its counts spread."""
    image = spread(file) if role == "infrared" else None
    if image is None and not border:
        return file.read_bytes(), Path(str(file)).suffix.lower()
    buffer = io.BytesIO()
    cut_border(image or open_image(file), border).save(buffer, format="PNG")
    return buffer.getvalue(), ".png"


def _write_sheets(
    candidates: Sequence[Candidate], measures: Sequence[Measures], cleaned: Cleaned, folder: Path
) -> None:
    """One sheet for every stage that dropped something, spread over what it dropped; a copy is beside its original."""
    folder.mkdir()
    for number, stage in enumerate(STAGES):
        cells, is_copy = [], stage == "duplicate"
        for place in evenly(cleaned.dropped[stage]):
            shown = [candidates[place], *([candidates[cleaned.originals[place]]] if is_copy else [])]
            files = [file for one in shown for file in (one.found.visible, one.found.infrared)]
            cells.append((files, _why(stage, measures[place]) + " is like ".join(one.key for one in shown)))
        if cells:
            contact_sheet(cells, folder / f"{number + 1}-{stage}.jpg", columns=2 if is_copy else 4)


def _why(stage: str, measures: Measures) -> str:
    figure = {"constant": measures.contrast, "border": measures.black, "misaligned": measures.alignment}.get(stage)
    return "" if figure is None else f"{figure:.3f} "
