"""Pairs of texts on disk, a line each: adding some does not write the others again, and a killed process loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def read_pairs(path: Path) -> dict[str, str]:
    """What `append_pairs` wrote into a file, without a line that was cut off; nothing where there is no file."""
    pairs: dict[str, str] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            key, value = json.loads(line)
        except ValueError:  # it was being written when the process was killed
            continue
        pairs[key] = value
    return pairs


def append_pairs(path: Path, pairs: Mapping[str, str]) -> None:
    """Add pairs to a file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(f"{json.dumps(pair)}\n" for pair in pairs.items()).encode())
