"""What an adapter of a public data set is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffv2ir.data.examples import DataError, is_image


@dataclass(frozen=True)
class Found:
    """One example as a data set's authors publish it.

    Attributes:
        name: unique in the data set; the path less its suffix.
        scene: what has to stay on one side of a split.
        split: "train" or "test" as the authors split it (their validation part is "train"), None = they do not.
        kind, source, band: None = what the adapter says.
        joined: see `Example`.
    """

    name: str
    scene: str
    infrared: Path
    visible: Path | None = None
    split: str | None = None
    segmentation: Path | None = None
    caption: str | None = None
    kind: str | None = None
    source: str | None = None
    band: str | None = None
    joined: str = ""


@dataclass(frozen=True)
class Source:
    """A public data set: how to find its examples, and what to know before asking for it.

    Attributes:
        find: yields the examples of a folder. Raises DataError where the folder lacks what it should hold.
        border: pixels to cut off on every side; the images are then stored anew, as PNG, else byte by byte.
        layout: the folders it reads. known: where that is known from, or that it is assumed.
    """

    key: str
    title: str
    band: str
    what: str
    terms: str
    where: str
    layout: str
    known: str
    find: Callable[[Path], Iterator[Found]]
    border: int = 0


def folder(root: Path, *names: str) -> Path:
    """The first of `names` (relative, any case) that is a folder of `root`.

    Raises:
        DataError: none of them is; says which were looked for and what is there.
    """
    for name in names:
        place = root
        for part in name.split("/"):
            place = next((p for p in sorted(_entries(place)) if p.name.lower() == part.lower()), None)
            if place is None or not place.is_dir():
                break
        else:
            return place
    there = ", ".join(p.name for p in sorted(_entries(root))[:12]) or "nothing" if root.is_dir() else "no such folder"
    raise DataError(f"{root} has no folder {' or '.join(f'{name}/' for name in names)}; there: {there}")


def _entries(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if not is_hidden(path)] if place.is_dir() else []


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is no part of a data set, by its name: what a Mac leaves in folders and archives."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def optional_folder(root: Path, *names: str) -> Path | None:
    """As `folder`, but None where there is none."""
    try:
        return folder(root, *names)
    except DataError:
        return None


def subfolders(root: Path, pattern: str) -> list[Path]:
    """The folders of `root` whose whole name matches the regular expression `pattern`, in order of name.

    Raises:
        DataError: there is none.
    """
    chosen = [p for p in sorted(_entries(root)) if p.is_dir() and re.fullmatch(pattern, p.name)]
    if not chosen:
        raise DataError(f"{root} has no folder whose name matches {pattern}")
    return chosen


def images(place: Path) -> list[Path]:
    """The image files of a folder, in order of name.

    Raises:
        DataError: there is none.
    """
    files = [path for path in sorted(place.iterdir()) if is_image(path)]
    if not files:
        raise DataError(f"{place} holds no image")
    return files


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Files by their names less the suffix.

    Raises:
        DataError: two have one name; says which.
    """
    named: dict[str, Path] = {}
    for path in files:
        if other := named.get(path.stem):
            raise DataError(f"{other} and {path.name} have one name: which of them is meant?")
        named[path.stem] = path
    return named


def partners(visible: Path, infrared: Path) -> Iterator[tuple[str, Path, Path]]:
    """(stem, visible, infrared) of files of equal stem in two folders.

    Raises:
        DataError: files without a partner, or of one stem in a folder, by name.
    """
    first, second = by_stem(images(visible)), by_stem(images(infrared))
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys())
        raise DataError(
            f"{len(alone)} image(s) have no partner in {visible} and {infrared}: {', '.join(alone[:10])}"
            + (" ..." if len(alone) > 10 else "")
        )
    for stem in sorted(first):
        yield stem, first[stem], second[stem]
