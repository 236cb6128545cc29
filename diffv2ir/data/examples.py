"""A dataset is a folder: with a `manifest.jsonl`, or `[rgb/] ir/ [seg/]` of equal file names, or shards (`shards`).

The second layout is what the README of the paper's code asks of a data set (captions in `captions.json` when present);
there, files numbered on end are one scene, in blocks of 50.
Shards are what `python -m train.data build` makes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from diffv2ir.data.splits import block
from diffv2ir.imaging import ImageError, open_image
from diffv2ir.members import ImageFile

KINDS = ("pairs", "crops", "infrared")
ROLES = ("visible", "infrared", "segmentation")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_FOLDERS = ("rgb", "ir", "seg")
_MAX_LISTED = 20
# Examples that are handed to the threads of a check at a time.
_TOGETHER = 1000
# Of a source of few scenes, one is held out if it is at most this share of its examples.
_LARGEST_SHARE = 0.2
# Frames whose scenes nobody published, of object crops and of plain folders: so many on end are one. Crops of a frame
# are numbered after it.
_FRAMES = 50
_CROP = re.compile(r"_(\d+)_\d+$")
# Crops and pairs of one recording, whose frames have the same numbers: RoadScene's pairs are frames of FLIR ADAS.
_RECORDINGS = {"flir": "roadscene"}
_PAIR_OF_RECORDING = re.compile(r"roadscene[-_]FLIR_(\d+)")


class DataError(ValueError):
    """A dataset that cannot be used; the message names the offending files."""


@dataclass(frozen=True)
class Example:
    """One scene. `visible` is RGB, `infrared` is gray; either may be None, never both. `band`: "LWIR", ... or "".

    Attributes:
        joined: the name, over all sources, of a scene that several sources show, "SOURCE/SCENE"; "" of a scene of one.
        map_style: of a map that was made for the data, see `segmentation_map`; "" of one that came with it.
    """

    id: str
    kind: str
    source: str
    scene: str
    split: str
    visible: ImageFile | None
    infrared: ImageFile | None
    segmentation: ImageFile | None = None
    caption: str | None = None
    band: str = ""
    joined: str = ""
    map_style: str = ""

    @property
    def place(self) -> str:
        """What has to stay on one side of any split: the scene of its source, or what that was joined with."""
        return self.joined or f"{self.source}/{self.scene}"


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image; hidden ones, such as a Mac's `._1.png`, are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_examples(
    folder: str | Path,
    split: str | None = None,
    kinds: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> list[Example]:
    """Read the examples of a dataset folder, filtered by split, kind and source.

    Raises:
        DataError: the folder has neither layout, a record is malformed, a named file is missing, or nothing is left.
    """
    folder = Path(folder)
    if (folder / "manifest.jsonl").is_file():
        examples = _read_manifest(folder)
    elif (folder / "manifest.parquet").is_file():
        from diffv2ir.data.shards import read_shards  # here: it is made of this module's parts

        examples = read_shards(folder)
    elif (folder / "ir").is_dir():
        examples = _read_folders(folder)
    else:
        raise DataError(
            f"{folder} is not a dataset: expected a manifest.jsonl, a manifest.parquet with shards/, or folders rgb/ "
            "and ir/ of equal names"
        )
    chosen = [
        example
        for example in examples
        if (split is None or example.split == split)
        and (kinds is None or example.kind in kinds)
        and (sources is None or example.source in sources)
    ]
    if not chosen:
        raise DataError(
            f"{folder} has no example with split={split!r}, kinds={kinds!r}, sources={sources!r}; "
            f"it has splits {sorted({e.split for e in examples})}, kinds {sorted({e.kind for e in examples})}, "
            f"sources {sorted({e.source for e in examples})}"
        )
    return chosen


def _read_manifest(folder: Path) -> list[Example]:
    examples, problems = [], []
    for number, line in enumerate((folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            paths = {key: folder / record[key] if record.get(key) else None for key in ROLES}
            example = Example(
                id=record["id"],
                kind=record["kind"],
                source=record["source"],
                scene=record.get("scene", record["id"]),
                split=record["split"],
                caption=record.get("caption"),
                band=record.get("band", ""),
                joined=record.get("joined", ""),
                **paths,
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"manifest.jsonl line {number}: {type(error).__name__}: {error}")
            continue
        if example.kind not in KINDS:
            problems.append(f"{example.id}: kind {example.kind!r} is none of {KINDS}")
        elif example.kind != "infrared" and (example.visible is None or example.infrared is None):
            problems.append(f"{example.id}: kind {example.kind!r} needs a visible and an infrared image")
        problems += [f"{example.id}: no file {path}" for path in paths.values() if path and not path.is_file()]
        examples.append(example)
    counts = Counter(example.id for example in examples)
    problems += [f"the id {name!r} is there {count} times" for name, count in counts.items() if count > 1]
    _raise_problems(folder, problems)
    return _crops_with_their_frames(examples)


def _crops_with_their_frames(examples: list[Example]) -> list[Example]:
    """Object crops that have no scene but themselves get that of their frame, or those of one frame would lie on both
    sides of a split. `flir_day_train_car_04357_5` is crop 5 of frame 4357: it belongs to the scene of the nearest
    pair of the same recording and split, if that is near, else to some dozens of frames on end.
    """
    scenes = defaultdict(dict)  # recording and split -> frame -> scene
    for example in examples:
        if example.kind == "pairs" and (frame := _frame(example)) is not None:
            scenes[example.source, example.split][frame] = example.place
    gathered = []
    for example in examples:
        frame = _frame(example) if example.kind == "crops" and example.scene == example.id else None
        if frame is None:
            gathered.append(example)
            continue
        pairs = scenes[_RECORDINGS.get(example.source), example.split]
        nearest = min(pairs, key=lambda other: abs(other - frame), default=None)
        near = nearest is not None and abs(nearest - frame) <= _FRAMES
        joined = pairs[nearest] if near else ""
        gathered.append(replace(example, scene=block(f"{example.source}_{frame}", _FRAMES), joined=joined))
    return gathered


def near_frames(examples: Sequence[Example], others: Sequence[Example]) -> set[str]:
    """Ids of those crops and pairs of one recording that a pair, or a crop, among `others` is near.

    As near as crops take the scene of a pair: so many frames that the scene is likely the same.
    """
    partner = {"crops": "pairs", "pairs": "crops"}
    frames = defaultdict(list)
    for other in others:
        if (frame := _frame(other)) is not None:
            frames[other.kind, _RECORDINGS.get(other.source, other.source)].append(frame)
    found = set()
    for example in examples:
        if (frame := _frame(example)) is not None:
            near = frames[partner[example.kind], _RECORDINGS.get(example.source, example.source)]
            if any(abs(number - frame) <= _FRAMES for number in near):
                found.add(example.id)
    return found


def _frame(example: Example) -> int | None:
    """The frame of a recording that a crop was cut from, or that a pair is, by its name."""
    patterns = {"crops": _CROP.search, "pairs": _PAIR_OF_RECORDING.fullmatch}
    number = patterns[example.kind](example.id) if example.kind in patterns else None
    return None if number is None else int(number[1])


def _read_folders(folder: Path) -> list[Example]:
    """Pairs of equal names in rgb/ and ir/; what is in ir/ only is infrared alone."""
    found = {name: [path for path in sorted((folder / name).glob("*")) if is_image(path)] for name in _FOLDERS}
    files = {name: {path.stem: path for path in paths} for name, paths in found.items()}
    captions_file = folder / "captions.json"
    try:
        captions = json.loads(captions_file.read_text(encoding="utf-8")) if captions_file.is_file() else {}
    except ValueError as error:
        raise DataError(f"{captions_file} is not JSON: {error}") from error
    problems = [
        f"{name}/{path.name} and {name}/{files[name][path.stem].name} have one name"
        for name, paths in found.items()
        for path in paths
        if path != files[name][path.stem]
    ]
    problems += [
        f"rgb/{path.name} has no partner in ir/" for stem, path in files["rgb"].items() if stem not in files["ir"]
    ]
    _raise_problems(folder, problems)
    return [
        Example(
            id=stem,
            kind="pairs" if stem in files["rgb"] else "infrared",
            source=folder.name,
            scene=block(stem, _FRAMES),
            split="train",
            visible=files["rgb"].get(stem),
            infrared=path,
            segmentation=files["seg"].get(stem),
            caption=captions.get(stem) or captions.get(path.name),
        )
        for stem, path in files["ir"].items()
    ]


def check_examples(examples: Iterable[Example]) -> None:
    """Decode every image once and compare sizes, so that a broken file stops a training before it starts.

    Raises:
        DataError: lists each file that cannot be read and each pair of unequal sizes.
    """
    examples, problems = list(examples), []
    bar = tqdm(total=len(examples), desc="images checked", delay=5, mininterval=5)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), _TOGETHER):
            for found in pool.map(_image_problems, examples[start : start + _TOGETHER]):
                problems += found
                bar.update()
    _raise_problems("the dataset", problems)


def _image_problems(example: Example) -> list[str]:
    """What is wrong with the images of one example."""
    problems, sizes = [], {}
    for role in ROLES:
        path = getattr(example, role)
        if path is None:
            continue
        try:
            sizes[role] = open_image(path).size
        except ImageError as error:
            problems.append(str(error))
    if len(set(sizes.values())) > 1:
        problems.append(f"{example.id}: sizes differ: {', '.join(f'{k} {w}x{h}' for k, (w, h) in sizes.items())}")
    return problems


def split_validation(examples: Sequence[Example], fraction: float = 0.1) -> tuple[list[Example], list[Example]]:
    """Split train examples into (train, validation) by scene.

    A scene is held out when the hash of its name falls into the first `fraction` of the range. Of a source of few
    scenes that may be none: then its first one by hash is, if that is no more than `_LARGEST_SHARE` of the source, so
    that choices are made on that camera, too. A scene that several sources show is held out by its hash alone. So only
    the scenes of the same source matter. Every stage and every phase holds out the same ones if all train examples are
    split, before some are chosen (`read_parts`).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must lie in [0, 1), got {fraction}")
    sizes = Counter(example.source for example in examples)
    scenes = Counter(example.place for example in examples)
    position = {scene: _position(scene) for scene in scenes}
    held_out = {scene for scene in scenes if position[scene] < fraction}
    joined = {example.joined for example in examples}
    if fraction:
        for source in sizes.keys() - {example.source for example in examples if example.place in held_out}:
            own = {e.place: scenes[e.place] for e in examples if e.source == source and e.place not in joined}
            first = min(own, key=position.__getitem__, default=None)
            if first is not None and own[first] <= _LARGEST_SHARE * sizes[source]:
                held_out.add(first)
    train = [example for example in examples if example.place not in held_out]
    return train, [example for example in examples if example.place in held_out]


def read_parts(
    folder: str | Path, fraction: float = 0.1, choose: Callable[[Example], bool] = lambda example: True
) -> tuple[list[Example], list[Example]]:
    """The chosen train examples of a dataset as (train, validation), of which one may be empty.

    What is held out does not depend on what is chosen, see `split_validation`.

    Raises:
        DataError: see `read_examples`.
    """
    train, validation = split_validation(read_examples(folder, split="train"), fraction)
    return [example for example in train if choose(example)], [e for e in validation if choose(e)]


def _position(scene: str) -> float:
    """Where a name's hash lies in [0, 1)."""
    return int.from_bytes(hashlib.sha256(scene.encode()).digest()[:4], "big") / 2**32


def _raise_problems(where: str | Path, problems: list[str]) -> None:
    if problems:
        more = f"\n  ... and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise DataError(f"{len(problems)} problem(s) in {where}:\n  " + "\n  ".join(problems[:_MAX_LISTED]) + more)
