"""Folders and files that are either complete or not there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """Where this program keeps what it can make again, there or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffv2ir"


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, flush it, and only then give it its name. A failure leaves nothing behind."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def write_file_atomically(path: Path, write: Callable[[Path], None], flush: bool = False, shared: bool = False) -> None:
    """Let `write` fill a new file beside `path`, of the same suffix, and only then give it its name.

    A killed process leaves no half file under the name. With `flush`, not even a power cut does. With `shared`, another
    process may write the same file meanwhile, with the same content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid.uuid4().hex}" if shared else ""
    partial = path.with_name(f".{path.name}{own}.partial{path.suffix}")
    write(partial)
    if flush:
        _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
