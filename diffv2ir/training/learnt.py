"""What a training learnt from and how long it took, as its run folder has it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffv2ir.data import Example, check_examples
from diffv2ir.data.examples import ROLES
from diffv2ir.files import write_file_atomically
from diffv2ir.members import file_state
from diffv2ir.training.hashes import file_hash
from diffv2ir.training.loop import process_state

logger = logging.getLogger(__name__)

_EXAMPLES, _CHECKED = "examples.json", "checked.json"


def digest(value: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def examples_hash(examples: Sequence[Example]) -> str:
    """Hash of the examples' names, images, captions and bands; their order does not matter."""
    return digest(sorted(map(_example_parts, examples), key=json.dumps))


def _example_parts(example: Example) -> list[str | None]:
    files = (example.visible, example.infrared, example.segmentation)
    hashes = (file_hash(file) if file else None for file in files)
    return [example.source, example.id, example.kind, example.band, example.caption, *hashes]


def record_examples(training: Path, examples: Sequence[Example]) -> None:
    """Note in the folder of a training what it learns from."""
    content = json.dumps({"hash": examples_hash(examples)})
    write_file_atomically(training / _EXAMPLES, lambda partial: partial.write_text(content, encoding="utf-8"))


def recorded_examples(training: Path) -> str | None:
    """The `examples_hash` of what a training learnt from; None where that was not noted."""
    path = training / _EXAMPLES
    return json.loads(path.read_text(encoding="utf-8"))["hash"] if path.is_file() else None


def check_once(training: Path, examples: Sequence[Example]) -> None:
    """`check_examples` by the main process, the others wait; not again in this folder until a file has changed.

    Raises:
        DataError: see `check_examples`.
    """
    processes = process_state()
    if processes.is_main_process and examples:
        note = training / _CHECKED
        files = [[getattr(example, role) for role in ROLES] for example in examples]
        states = digest([[file and file_state(file) for file in images] for images in files])
        if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != {"hash": states}:
            logger.info("checking %d examples", len(examples))
            check_examples(examples)
            content = json.dumps({"hash": states})
            write_file_atomically(note, lambda partial: partial.write_text(content, encoding="utf-8"))
    processes.wait_for_everyone()


def training_seconds(history: Iterable[Mapping[str, float]]) -> float:
    """How long a training took, by the rows of its history that have `seconds_per_step`, the mean since the last."""
    seconds, before = 0.0, 0
    for row in history:
        if "seconds_per_step" in row:
            seconds += (row["step"] - before) * row["seconds_per_step"]
            before = row["step"]
    return seconds
