"""Which bundles and models are on this machine, how large they are, and whether they are complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffv2ir import bundle, hub


@dataclass(frozen=True)
class Entry:
    """Something that is here, wholly or in part.

    Attributes:
        name: by which the command line takes it.
        size: bytes.
        problem: what is missing; "" of what is complete.
    """

    name: str
    what: str
    folder: Path
    size: int
    problem: str = ""


def inventory(folders: Sequence[Path] = (), cache_dir: Path | None = None) -> list[Entry]:
    """The embedded bundle, `folders`, and what the hub's cache holds of use for this program."""
    entries = []
    try:
        entries.append(_bundle_entry(bundle.TINY, bundle.resolve(bundle.TINY)))
    except bundle.BundleError as error:
        entries.append(Entry(bundle.TINY, "the embedded bundle", Path(), 0, str(error)))
    entries.extend(_bundle_entry(str(folder), folder) for folder in folders)
    entries.extend(_cached(cache_dir))
    return entries


def _bundle_entry(name: str, folder: Path) -> Entry:
    try:
        bundle.check(folder)
        problem = ""
    except bundle.BundleError as error:
        problem = str(error)
    return Entry(name, _description(folder), folder, _size(folder), problem)


def _description(folder: Path) -> str:
    try:
        index = json.loads((folder / bundle.INDEX).read_text(encoding="utf-8"))
        styles = [style for style in index.get("styles") or [] if style != bundle.GENERAL_STYLE]
    except (OSError, ValueError, AttributeError):
        return "no bundle"
    return f"bundle {index.get('name') or folder.name}" + (f", styles {', '.join(styles)}" if styles else "")


def _cached(cache_dir: Path | None) -> Iterator[Entry]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        newest = max(repository.revisions, key=lambda revision: revision.last_modified, default=None)
        known = {name: source for name, source in hub.SOURCES.items() if source.repo_id == repository.repo_id}
        for name, source in known.items():
            yield from _source_entry(name, source, cache_dir, repository.repo_path)
        if not known and newest is not None and _is_bundle(newest.snapshot_path):
            yield _bundle_entry(repository.repo_id, newest.snapshot_path)


def _source_entry(name: str, source: hub.Source, cache_dir: Path | None, repository: Path) -> Iterator[Entry]:
    """Nothing if of several files in a repository this one was never asked for."""
    try:
        path = hub.here(source, cache_dir)
    except hub.HubError:
        if source.file is None:
            size = _size(repository / "blobs")
            yield Entry(name, source.what, repository, size, f"incomplete: `python -m diffv2ir fetch {name}` goes on")
        return
    yield Entry(name, source.what, path, _size(path))


def _is_bundle(folder: Path) -> bool:
    try:
        return json.loads((folder / bundle.INDEX).read_text())["_class_name"] == "DiffV2IRPipeline"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
