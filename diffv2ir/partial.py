"""A large file from the hub by way of a part on the disk: after an interruption only the rest is asked for.

huggingface_hub writes every download under a new name, throws it away when it breaks off, and leaves it behind for good
when the process is killed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".part"


class DamagedError(OSError):
    """What arrived is not what the hub announced; it has been removed."""


@dataclass(frozen=True)
class PartialFile:
    """A file of the hub that is not here, or not wholly.

    Attributes:
        name: path in the repository.
        url: of the file in one commit.
        sha256: as the hub gives it.
        size: bytes.
        destination: where huggingface_hub looks for it when it is complete.
        folder: of the part.
        lock: huggingface_hub's own for this file, so that its downloads wait for ours.
    """

    name: str
    url: str
    sha256: str
    size: int
    destination: Path
    folder: Path
    lock: Path

    @property
    def part(self) -> Path:
        return self.folder / f"{self.sha256}.{flat_name(self.name)}{SUFFIX}"

    @property
    def begun(self) -> int:
        """Bytes that are here."""
        return self.part.stat().st_size if self.part.exists() else 0

    def orphans(self) -> list[Path]:
        """What killed downloads of huggingface_hub have left of the same file; nobody goes on with them."""
        return list(self.folder.glob(f"*{self.sha256}*.incomplete"))

    def fetch(self) -> None:
        """Get what is missing, compare the checksum, and only then give the file its name. Others wait meanwhile.

        Raises:
            DamagedError: the checksum is another one.
            HTTPError, OSError: it broke off; the part is kept.
        """
        from huggingface_hub.utils import WeakFileLock

        for path in (self.lock, self.part, self.destination):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.lock):
            if self.destination.is_file() and checksum(self.destination) == self.sha256:
                return  # someone else got it while this process waited
            for orphan in self.orphans():
                orphan.unlink(missing_ok=True)
            self._get_rest()
            if checksum(self.part) != self.sha256:
                self.part.unlink()
                raise DamagedError(self.name)
            self.part.replace(self.destination)
            for older in self.folder.glob(f"*.{flat_name(self.name)}{SUFFIX}"):
                older.unlink(missing_ok=True)

    def _get_rest(self) -> None:
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        if self.begun > self.size:
            self.part.unlink()
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # compressed bytes have other positions
        begun = self.begun
        with self.part.open("ab") as file:
            http_get(
                self.url,
                file,
                resume_size=begun,
                headers=headers,
                expected_size=self.size,
                displayed_filename=self.name,
            )


def in_cache(repository: Path, name: str, url: str, sha256: str, size: int) -> PartialFile:
    """A file of a repository in the hub's cache, whose folder is `repository`."""
    blobs = repository / "blobs"
    lock = repository.parent / ".locks" / repository.name / f"{sha256}.lock"
    return PartialFile(name, url, sha256, size, blobs / sha256, blobs, lock)


def in_folder(folder: Path, name: str, url: str, sha256: str, size: int) -> PartialFile:
    """A file for a folder of the user's."""
    own = (downloads(folder) / name).parent
    return PartialFile(name, url, sha256, size, folder / name, own, own / f"{Path(name).name}.lock")


def downloads(folder: Path) -> Path:
    """Where huggingface_hub keeps what it has to remember of the files in a folder of the user's."""
    return folder / ".cache" / "huggingface" / "download"


def flat_name(name: str) -> str:
    """The path in a repository as one name: which file a part belongs to."""
    return name.replace("/", "--")


def checksum(path: Path, length: int = 64) -> str:
    """As the hub computes it: Git's SHA-1 (40 digits) for small files, SHA-256 for large ones."""
    with path.open("rb") as file:
        if length != 40:
            return hashlib.file_digest(file, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.sha1(header + file.read()).hexdigest()
