"""Names of what is cached: hashes of the contents of files, of weights and of settings; and who makes an entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

from diffv2ir.lines import append_pairs, read_pairs
from diffv2ir.members import ImageFile, TarMember, file_state

# Files that are hashed before their hashes are written.
_TOGETHER = 1000
# What the indices that were read say: hashes by `file_state`.
_indexed: dict[str, str] = {}


@dataclass(frozen=True)
class Share:
    """The part of a cache that one of several processes makes: number `index` of `count`.

    Whose an entry is follows from its name alone: the processes need not agree about what is there already.
    """

    index: int = 0
    count: int = 1

    def has(self, name: str) -> bool:
        """Whether an entry is of this part."""
        return int(entry_key(name)[:15], 16) % self.count == self.index

    @property
    def suffix(self) -> str:
        """What the name of a file of this process ends in."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


ALONE = Share()
"""All of a cache: there is one process."""


@cache  # a training asks for those of all its files in every epoch
def file_hash(file: ImageFile) -> str:
    """SHA-256 of a file's content; read from the file unless a manifest or a `HashIndex` says it."""
    return _given(file) or _indexed.get(file_state(file)) or _content_hash(file)


class HashIndex:
    """Hashes that `file_hash` need not make anew: by path, size and time of the last change, in files of `folder`.

    Each process has a file of its own for those that it makes; all files are read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.known: dict[str, str] = {}
        self.read()

    def read(self) -> None:
        """Take over what the files hold, those of other processes too."""
        for path in sorted(self.folder.glob("hashes*.jsonl")):
            self.known.update(read_pairs(path))
        _indexed.update(self.known)

    def fill(self, files: Iterable[ImageFile], share: Share = ALONE) -> None:
        """Hash what has no hash yet, of a share of the files."""
        states = ((file_state(file), file) for file in dict.fromkeys(files) if not _given(file))
        wanted = [(state, file) for state, file in states if state not in self.known and share.has(state)]
        bar = tqdm(total=len(wanted), desc="hashes of the images", disable=not wanted, mininterval=5)
        with bar, ThreadPoolExecutor() as pool:
            for start in range(0, len(wanted), _TOGETHER):
                part = wanted[start : start + _TOGETHER]
                made = dict(pool.map(_hashed, part))
                append_pairs(self.folder / f"hashes{share.suffix}.jsonl", made)
                self.known.update(made)
                bar.update(len(part))
        _indexed.update(self.known)


def _given(file: ImageFile) -> str | None:
    return file.sha256 if isinstance(file, TarMember) else None


def _hashed(entry: tuple[str, ImageFile]) -> tuple[str, str]:
    """A file's state and its hash."""
    state, file = entry
    return state, _indexed.get(state) or _content_hash(file)


def _content_hash(file: ImageFile) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names and values of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def entry_key(*parts) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
