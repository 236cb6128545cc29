"""Models from the Hugging Face hub (`hub_sources`): getting them, and one sentence for each way to fail.

huggingface_hub does the work: it goes on with the files that are missing, locks each so that one process gets it while
others wait, and shows the progress. What is added here: whether the disk has room, large files that go on in the middle
(`partial`), checksums, and plain words.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffv2ir import partial
from diffv2ir.errors import first_line
from diffv2ir.hub_sources import SOURCES, Source, named

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

logger = logging.getLogger(__name__)

_IGNORED = ["*.msgpack", "*.h5", "*.onnx", "*.ckpt"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_IN_PART = "only a part of it is here, and the hub cannot be reached; fetch it again online"


class HubError(ValueError):
    """Something could not be fetched; the message says what to do."""


def locate(name: str, to: Path | None = None, tell: Callable[[str], Any] = logger.info) -> Path:
    """A local path as it is, or one of `SOURCES` (or "NAME@REVISION"), fetched if it is not here yet.

    Raises:
        HubError: neither, or it cannot be fetched.
    """
    path = Path(name).expanduser()
    source = named(name)
    if source is not None and (name in SOURCES or not path.exists()):
        return download(source, to, tell=tell)
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
        tell: called with a sentence before gigabytes are on their way, and with the commit that was taken.

    Raises:
        HubError: offline, refused, not there, no room on the disk, or damaged on the way.
    """
    place = {"cache_dir": cache_dir} if to is None else {"local_dir": to}
    try:
        with _told(source):
            plan = _plan(source, place)
    except _Offline as offline:
        path = _without_hub(source, place, offline)
        tell(f"{source.repo_id}: the hub cannot be reached; what is here is taken{_commit_in(path)}")
        return path
    with _told(source, under_way=True):
        missing = [(entry, _etag(source, entry)) for entry in plan if entry.will_download]
        large = [
            _partial(source, entry, etag, place)
            for entry, etag in missing
            if _SHA256.fullmatch(etag) and entry.file_size is not None
        ]
        if missing:
            _check_room(source, [entry for entry, _ in missing], large, _root(place), tell)
        for file in large:
            _fetch(source, file)
        path = _get(source, place)
        compared = {file.sha256 for file in large}
        for entry, etag in missing:
            _verify(source, entry, {etag, source.sha256} - {"", None} - compared)
    if plan:
        tell(f"{source.repo_id}: commit {plan[0].commit_hash}")
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
    from huggingface_hub import HfApi, constants

    # One request that is not repeated: without a connection, those of the plan are, for half a minute.
    if not (_COMMIT.fullmatch(source.revision) and "cache_dir" in place and _is_here(source, place)):
        HfApi().repo_info(
            source.repo_id,
            repo_type=source.repo_type,
            revision=source.revision,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    plan = _get(source, place, dry_run=True)
    return plan if isinstance(plan, list) else [plan]


def _is_here(source: Source, place: dict[str, Any]) -> bool:
    try:
        with _told(source):
            return bool(_get(source, place, local_files_only=True))
    except HubError:
        return False


def _without_hub(source: Source, place: dict[str, Any], offline: _Offline) -> Path:
    """What was fetched before; else it matters that there is no connection, not what huggingface_hub misses then."""
    begun = parts(source, place.get("local_dir"), place.get("cache_dir"))
    try:
        if begun and "local_dir" in place:  # of which huggingface_hub knows only that something is in it
            raise offline
        with _told(source):
            return _get(source, place, local_files_only=True)
    except _Offline:
        if begun:
            raise HubError(f"{source.repo_id}: {_IN_PART}") from offline
        raise offline from None


def _commit_in(path: Path) -> str:
    """The commit that a path in the hub's cache names, as the end of a sentence; a user's folder names none."""
    commit = next((part for part in path.parts if _COMMIT.fullmatch(part)), None)
    return f": commit {commit}" if commit else ""


def repository_folder(source: Source, cache_dir: Path | str | None = None) -> Path:
    """Where the hub's cache keeps a source's repository, there or not."""
    from huggingface_hub.file_download import repo_folder_name

    return _root({"cache_dir": cache_dir}) / repo_folder_name(repo_id=source.repo_id, repo_type=source.repo_type)


def parts(source: Source, to: Path | None = None, cache_dir: Path | str | None = None) -> list[Path]:
    """What interrupted fetches have left of a source's large files."""
    folder = partial.downloads(_root({"local_dir": to})) if to else repository_folder(source, cache_dir) / "blobs"
    name = partial.flat_name(source.file) if source.file else "*"
    return sorted(folder.rglob(f"*.{name}{partial.SUFFIX}"))


def _root(place: dict[str, Any]) -> Path:
    from huggingface_hub import constants

    return Path(place.get("local_dir") or place.get("cache_dir") or constants.HF_HUB_CACHE).expanduser().resolve()


def _etag(source: Source, entry: DryRunFileInfo) -> str:
    from huggingface_hub import get_hf_file_metadata

    return get_hf_file_metadata(_url(source, entry)).etag or ""


def _url(source: Source, entry: DryRunFileInfo) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(source.repo_id, entry.filename, repo_type=source.repo_type, revision=entry.commit_hash)


def _partial(source: Source, entry: DryRunFileInfo, etag: str, place: dict[str, Any]) -> partial.PartialFile:
    file = (entry.filename, _url(source, entry), etag, entry.file_size)
    if "local_dir" in place:
        return partial.in_folder(_root(place), *file)
    return partial.in_cache(repository_folder(source, place["cache_dir"]), *file)


def _check_room(
    source: Source,
    missing: Sequence[DryRunFileInfo],
    large: Sequence[partial.PartialFile],
    folder: Path,
    tell: Callable[[str], Any],
) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    begun = sum(file.begun for file in large)
    needed = sum(entry.file_size or 0 for entry in missing) - begun
    orphans = sum(path.stat().st_size for file in large for path in file.orphans())
    free = shutil.disk_usage(there).free + orphans  # they are removed first
    if needed > free:
        raise HubError(
            f"{source.repo_id}: {needed / 1e9:.1f} GB are to be fetched, but {folder} has only {free / 1e9:.1f} GB free"
        )
    rest = f" ({begun / 1e9:.2f} GB of them were here already)" if begun else ""
    tell(f"{source.repo_id}: fetching {len(missing)} files, {needed / 1e9:.2f} GB{rest}, to {folder}")


def _fetch(source: Source, file: partial.PartialFile) -> None:
    try:
        file.fetch()
    except partial.DamagedError:
        raise _damaged(source, file.name) from None


def _verify(source: Source, entry: DryRunFileInfo, wanted: set[str]) -> None:
    """Compare a file that was fetched with the checksums that are not compared yet; remove it if it is damaged."""
    path = Path(entry.local_path)
    try:
        if all(partial.checksum(path, len(checksum)) == checksum for checksum in wanted):
            return
    except FileNotFoundError:
        pass  # another process found it damaged, and removed it
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise _damaged(source, entry.filename)


def _damaged(source: Source, name: str) -> HubError:
    return HubError(f"{source.repo_id}: {name} arrived damaged and was removed; fetch it again")


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
        reason = first_line(error)
        if under_way:
            raise HubError(
                f"{source.repo_id}: it broke off ({reason}); fetch it again, what has arrived is kept"
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
        return f"neither a folder here nor a repository on the hub{_access()}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {source.revision!r}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"there is no file {source.file!r} in revision {source.revision!r}"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return "the hub refuses the access token: log in anew with `hf auth login`, or correct HF_TOKEN"
    if isinstance(error, errors.LocalEntryNotFoundError) and "is incomplete" in str(error):
        return _IN_PART
    return None


def _access() -> str:
    """How else the hub says "not found": to who lacks the rights, and of public repositories too, to a wrong token."""
    from huggingface_hub import get_token

    if get_token() is None:
        return " (or a private one: log in with `hf auth login`)"
    variable = next((name for name in _TOKENS if os.environ.get(name)), None)  # goes before what a login has saved
    remedy = f"correct or unset {variable}" if variable else "log in anew with `hf auth login`"
    return f"; or the access token is wrong, or may not read it: {remedy}"
