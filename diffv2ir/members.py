"""Files that lie inside a tar archive, read by their place in it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class TarMember:
    """One file in an uncompressed tar: `size` bytes of `tar` from `offset` on. Stands in for a `Path` to read.

    Several processes may read one archive at once: every reading opens it anew.

    Attributes:
        sha256: of the content, where it is known.
    """

    tar: Path
    name: str
    offset: int
    size: int
    sha256: str | None = field(default=None, compare=False, repr=False)

    @property
    def stem(self) -> str:
        """The member's name without folders and last ending, as that of a `Path`."""
        return PurePosixPath(self.name).stem

    def read_bytes(self) -> bytes:
        """The file's content.

        Raises:
            OSError: the archive is not there, or shorter than the member's place in it.
        """
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise OSError(f"{self.tar} ends before {self.name}: {len(content)} of {self.size} bytes")
        return content

    def is_file(self) -> bool:
        """Whether the archive reaches to the end of this member."""
        return self.tar.is_file() and self.tar.stat().st_size >= self.offset + self.size

    def __str__(self) -> str:
        return f"{self.tar}:{self.name}"


ImageFile = Path | TarMember


def file_state(file: ImageFile) -> str:
    """Which file this is, and in which state: a file of the same path, size and time of change has the same content.

    Of one that is not there, which file alone.
    """
    path, place = (file.tar, (file.offset, file.size)) if isinstance(file, TarMember) else (file, ())
    try:
        stat = path.stat()
    except OSError:  # whoever reads it says what is wrong
        return json.dumps([os.path.abspath(path), *place])
    return json.dumps([os.path.abspath(path), *place, stat.st_size, stat.st_mtime_ns])
