"""Models from the Hugging Face hub: which ones there are, getting them, and one sentence for each way to fail.

huggingface_hub does the work: it goes on with the files that are missing, locks each so that one process gets it while
others wait, and shows the progress. What is added here: whether the disk has room, checksums, and plain words.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

logger = logging.getLogger(__name__)

_IGNORED = ["*.msgpack", "*.h5", "*.onnx", "*.ckpt"]
_GIT_SHA1_LENGTH = 40


class HubError(ValueError):
    """Something could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """A repository on the hub, or the part of it that is wanted.

    Attributes:
        what: in a few words.
        revision: a commit, or a branch, whose newest state is taken.
        file: the one file that is wanted.
        patterns: without `file`, names of the wanted files, with `*`; none = all.
        repo_type: "model" or "dataset".
        sha256: of `file`, where it is known from elsewhere than the hub.
    """

    repo_id: str
    what: str
    revision: str = "main"
    file: str | None = None
    patterns: tuple[str, ...] = ()
    repo_type: str = "model"
    sha256: str | None = None

    @property
    def page(self) -> str:
        """The repository's page on the hub."""
        return f"https://huggingface.co/{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo_id}"


def _released(file: str, what: str) -> Source:
    # Their authors put the checkpoints into the repository of their dataset. It names no version: its newest state.
    return Source("Lidong26/IR-500K", what, file=f"IR-500k/finetuned_checkpoints/{file}", repo_type="dataset")


SOURCES = {
    "sd15": Source(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5, where phase 1 starts",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        patterns=(
            "model_index.json",
            "scheduler/*",
            "tokenizer/*",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ),
    ),
    "blip": Source(
        "Salesforce/blip-image-captioning-base",
        "BLIP, base size, for captions",
        "82a37760796d32b1411fe092ab5d4e227313294b",
        patterns=("*.json", "vocab.txt", "pytorch_model.bin"),
    ),
    "sam": Source(
        "ybelkada/segment-anything",
        "SAM ViT-B, the official file, for segmentation maps",
        file="checkpoints/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "stage2": _released("after_phase_2.ckpt", "the paper's checkpoint after phase 2"),
    "m3fd": _released("M3FD.ckpt", "the paper's checkpoint of M3FD, after phase 3"),
    "flir": _released("FLIR.ckpt", "the paper's checkpoint of FLIR, after phase 3"),
}


def locate(name: str, to: Path | None = None, tell: Callable[[str], Any] = logger.info) -> Path:
    """A local path as it is, or one of `SOURCES`, fetched if it is not here yet.

    Raises:
        HubError: neither, or it cannot be fetched.
    """
    if name in SOURCES:
        return download(SOURCES[name], to, tell=tell)
    path = Path(name).expanduser()
    if not path.exists():
        raise HubError(f"{name}: no such file or folder, and none of {', '.join(SOURCES)}")
    return path


def download(
    source: Source,
    to: Path | None = None,
    cache_dir: Path | str | None = None,
    tell: Callable[[str], Any] = logger.info,
) -> Path:
    """The file or the folder of a source: what is missing of it is fetched, and its checksums are compared.

    Args:
        to: folder for it; None = the hub's cache.
        cache_dir: another cache than the user's.
        tell: called with a sentence before gigabytes are on their way.

    Raises:
        HubError: offline, refused, not there, no room on the disk, or damaged on the way.
    """
    place = {"cache_dir": cache_dir} if to is None else {"local_dir": to}
    try:
        with _told(source):
            missing = [entry for entry in _plan(source, place) if entry.will_download]
    except _Offline:
        with _told(source):
            return _get(source, place, local_files_only=True)
    if missing:
        _check_room(source, missing, to, cache_dir, tell)
    with _told(source, under_way=True):
        path = _get(source, place)
        for entry in missing:
            _verify(source, entry)
    return path


def here(source: Source, cache_dir: Path | str | None = None) -> Path:
    """The file or the folder of a source that was fetched before; asks nobody.

    Raises:
        HubError: it was not, or not completely.
    """
    with _told(source):
        return _get(source, {"cache_dir": cache_dir}, local_files_only=True)


def _get(source: Source, place: dict[str, Any], **options: Any) -> Any:
    """What huggingface_hub has or makes of a source: its path, or with dry_run=True what would be fetched."""
    from huggingface_hub import hf_hub_download, snapshot_download

    common = dict(revision=source.revision, repo_type=source.repo_type, **place, **options)
    if source.file is not None:
        result = hf_hub_download(source.repo_id, source.file, **common)
    else:
        result = snapshot_download(
            source.repo_id, allow_patterns=list(source.patterns) or None, ignore_patterns=_IGNORED, **common
        )
    return Path(result) if isinstance(result, str) else result


def _plan(source: Source, place: dict[str, Any]) -> list[DryRunFileInfo]:
    plan = _get(source, place, dry_run=True)
    return plan if isinstance(plan, list) else [plan]


def _check_room(
    source: Source,
    missing: Sequence[DryRunFileInfo],
    to: Path | None,
    cache_dir: Path | str | None,
    tell: Callable[[str], Any],
) -> None:
    from huggingface_hub import constants

    folder = Path(to or cache_dir or constants.HF_HUB_CACHE).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed, free = sum(entry.file_size or 0 for entry in missing), shutil.disk_usage(there).free
    if needed > free:
        raise HubError(
            f"{source.repo_id}: {needed / 1e9:.1f} GB are to be fetched, but {folder} has only {free / 1e9:.1f} GB free"
        )
    tell(f"{source.repo_id}: fetching {len(missing)} files, {needed / 1e9:.2f} GB, to {folder}")


def _verify(source: Source, entry: DryRunFileInfo) -> None:
    """Compare a file that was fetched with the hub's checksum, and the source's own; remove it if it is damaged."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(source.repo_id, entry.filename, repo_type=source.repo_type, revision=entry.commit_hash)
    expected = get_hf_file_metadata(url).etag
    path = Path(entry.local_path)
    wanted = [checksum for checksum in (expected, source.sha256) if checksum]
    if all(_checksum(path, len(checksum)) == checksum for checksum in wanted):
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise HubError(f"{source.repo_id}: {entry.filename} arrived damaged and was removed; fetch it again")


def _checksum(path: Path, length: int) -> str:
    """As the hub computes it: Git's SHA-1 (40 digits) for small files, SHA-256 for large ones."""
    with path.open("rb") as file:
        if length != _GIT_SHA1_LENGTH:
            return hashlib.file_digest(file, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.sha1(header + file.read()).hexdigest()


class _Offline(HubError):
    """The hub cannot be reached; a copy may be here."""


@contextmanager
def _told(source: Source, under_way: bool = False) -> Iterator[None]:
    """huggingface_hub's errors as one sentence each; `under_way`: the hub had answered before."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    try:
        yield
    except HubError:
        raise
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        # What went wrong first says most: "not in the cache" follows from it.
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        known = next((words for cause in causes if (words := _refusal(source, cause))), None)
        if known:
            raise HubError(f"{source.repo_id}: {known}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if under_way:
            raise HubError(
                f"{source.repo_id}: it broke off ({reason}); fetch it again, what is complete is kept"
            ) from error
        raise _Offline(
            f"{source.repo_id}: not a folder here, not downloaded before, and the hub cannot be reached ({reason})"
        ) from error
    except ValueError as error:
        raise HubError(f"{source.repo_id}: {error}") from error


def _refusal(source: Source, error: BaseException) -> str | None:
    """What the hub's answer means, and the remedy; None if it did not answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its terms on {source.page}, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "neither a folder here nor a repository on the hub (or a private one: log in with `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {source.revision!r}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"there is no file {source.file!r} in revision {source.revision!r}"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return "the hub refuses the access token: log in anew with `hf auth login`, or correct HF_TOKEN"
    if isinstance(error, errors.LocalEntryNotFoundError) and "is incomplete" in str(error):
        return "only a part of it is here, and the hub cannot be reached; fetch it again online"
    return None
