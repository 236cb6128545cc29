"""From public data sets to one cleaned set of shards (paper Sec. 4)."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffv2ir.data.cleaning import DEFAULT, STAGES, CleaningConfig, clean
from diffv2ir.data.contact import MOST, contact_sheet
from diffv2ir.data.examples import DataError
from diffv2ir.data.measure import Measures, cut_border, measure_all
from diffv2ir.data.shards import Entry, write_shards
from diffv2ir.data.sources import SOURCES, Found, Source
from diffv2ir.data.splits import join_scenes, split_by_scene
from diffv2ir.files import write_atomically
from diffv2ir.imaging import open_image

logger = logging.getLogger(__name__)

REPORT = "cleaning.json"


@dataclass(frozen=True)
class Candidate:
    """An example that was found, with the adapter it came from and a key that is unique over all sources."""

    key: str
    source: Source
    found: Found

    @property
    def name(self) -> str:
        """Of the source; a folder of this project keeps the sources of its examples."""
        return self.found.source or self.source.key


def build(
    sources: Sequence[tuple[str, Path]],
    target: Path,
    config: CleaningConfig = DEFAULT,
    *,
    test_fraction: float = 0.1,
    shard_length: int = 1000,
    workers: int = 1,
) -> dict[str, Any]:
    """Read data sets, clean them, split them by scene, and write shards, manifest, report and contact sheets.

    Args:
        sources: (key of `SOURCES`, folder) of each; target: a folder that is not there yet, or empty.

    Returns:
        What was found, dropped by each stage, and kept; also in `target/cleaning.json`.

    Raises:
        DataError: a folder lacks what its data set should hold, two examples share a key, or nothing is left.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is there already and not empty: name another folder, or remove it")
    candidates = find(sources)
    jobs = [(c.found.visible, c.found.infrared, c.source.border) for c in candidates]
    measures = list(tqdm(measure_all(jobs, workers), desc="measuring", total=len(jobs), mininterval=5))
    cleaned = clean(measures, config)
    if not cleaned.kept:
        raise DataError(f"nothing is left of {len(candidates)} examples: dropped {_counts(cleaned.dropped)}")
    scenes = join_scenes([f"{c.name}/{c.found.scene}" for c in candidates], cleaned.copies)
    splits = split_by_scene(scenes, [c.found.split for c in candidates], test_fraction)
    chosen = sorted(cleaned.kept, key=lambda i: (candidates[i].name, splits[i], scenes[i], candidates[i].key))
    report = {
        "found": dict(sorted(Counter(c.name for c in candidates).items())),
        "dropped": _counts(cleaned.dropped),
        "kept": dict(sorted(Counter(f"{candidates[i].name}/{splits[i]}" for i in chosen).items())),
        "joined_scenes": len({f"{c.name}/{c.found.scene}" for c in candidates}) - len(set(scenes)),
        "config": asdict(config) | {"test_fraction": test_fraction},
    }

    def write(folder: Path) -> None:
        entries = (_entry(candidates[i], measures[i], scenes[i], splits[i]) for i in chosen)
        write_shards(tqdm(entries, desc="writing", total=len(chosen), mininterval=5), folder, shard_length)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        _write_sheets(candidates, measures, cleaned.dropped, folder / "sheets")

    write_atomically(target, write)
    return report


def find(sources: Sequence[tuple[str, Path]]) -> list[Candidate]:
    """All examples of all sources, pairs first: of a pair and its infrared alone, cleaning keeps what comes first.

    Raises:
        DataError: an unknown source; see `build`.
    """
    candidates = []
    for key, root in sources:
        if key not in SOURCES:
            raise DataError(f"there is no source {key!r}; known are {', '.join(SOURCES)}")
        if not root.is_dir():
            raise DataError(f"{key}: {root} is not a folder")
        found = list(SOURCES[key].find(root))
        logger.info("%s: %d examples in %s", key, len(found), root)
        candidates += [Candidate(_key(key, one), SOURCES[key], one) for one in found]
    if twice := [key for key, count in Counter(c.key for c in candidates).items() if count > 1]:
        raise DataError(f"{len(twice)} example(s) have the same key, such as {twice[0]}: was a source named twice?")
    return sorted(candidates, key=lambda c: (c.found.visible is None, c.key))


def _key(source: str, found: Found) -> str:
    """Letters, digits, - and _ only: WebDataset ends a key at the first dot. A folder's own ids stay as they are."""
    name = found.name if source == "folder" else f"{source}-{found.name}"
    return re.sub(r"[^\w-]+", "_", name, flags=re.ASCII)


def _counts(dropped: dict[str, list[int]]) -> dict[str, int]:
    return {stage: len(places) for stage, places in dropped.items()}


def _entry(candidate: Candidate, measures: Measures, scene: str, split: str) -> Entry:
    found, border = candidate.found, candidate.source.border
    files = {}
    for role in ("visible", "infrared", "segmentation"):
        if file := getattr(found, role):
            files[role] = _content(file, border)
    digests = {f"{role}_sha256": hashlib.sha256(content).hexdigest() for role, (content, _) in files.items()}
    width, height = measures.sizes[-1]
    together = "".join(digests.get(f"{role}_sha256", "") for role in ("visible", "infrared"))
    row = {
        "id": candidate.key,
        "kind": found.kind or ("pairs" if found.visible else "infrared"),
        "source": candidate.name,
        "band": found.band or candidate.source.band,
        "scene": scene.removeprefix(f"{candidate.name}/"),
        "split": split,
        "caption": found.caption,
        "sha256": hashlib.sha256(together.encode()).hexdigest(),
        "width": width,
        "height": height,
        **digests,
    }
    return Entry(row, files)


def _content(file: Path, border: int) -> tuple[bytes, str]:
    """Bytes and suffix of a file: its own, or those of a PNG without its border."""
    if not border:
        return file.read_bytes(), Path(str(file)).suffix.lower()
    buffer = io.BytesIO()
    cut_border(open_image(file), border).save(buffer, format="PNG")
    return buffer.getvalue(), ".png"


def _write_sheets(
    candidates: Sequence[Candidate], measures: Sequence[Measures], dropped: dict[str, list[int]], folder: Path
) -> None:
    """One sheet for every stage that dropped something, spread over what it dropped."""
    folder.mkdir()
    for number, stage in enumerate(STAGES):
        places = dropped[stage]
        count = min(MOST, len(places))
        cells = []
        for place in (places[k * len(places) // count] for k in range(count)):
            found = candidates[place].found
            cells.append(((found.visible, found.infrared), _why(stage, measures[place]) + candidates[place].key))
        if cells:
            contact_sheet(cells, folder / f"{number + 1}-{stage}.jpg")


def _why(stage: str, measures: Measures) -> str:
    figure = {"constant": measures.contrast, "border": measures.black, "misaligned": measures.alignment}.get(stage)
    return "" if figure is None else f"{figure:.3f} "
