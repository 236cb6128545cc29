"""JSON on disk, a value a line: adding some does not write the others again, and a killed process loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> Iterator[Any]:
    """What `append_lines` wrote into a file, without a line that was cut off; nothing where there is no file."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:  # it was being written when the process was killed
            continue


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Add values to a file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(f"{json.dumps(value)}\n" for value in values).encode())


def read_pairs(path: Path) -> dict[str, str]:
    """What `append_pairs` wrote into a file; of one key what was written last."""
    return dict(read_lines(path))


def append_pairs(path: Path, pairs: Mapping[str, str]) -> None:
    """Add pairs of texts to a file."""
    append_lines(path, pairs.items())
