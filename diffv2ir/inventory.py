"""Which bundles and models are on this machine, how large they are, and whether they are complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffv2ir import bundle, hub, partial
from diffv2ir.convert.released import bundles_folder

_CHECKPOINTS = (".ckpt", ".pth", ".safetensors")
# Below the folder that the program runs in: what README's conversions and trainings make.
_RESULTS = ("bundles/*", "runs/*/bundle", "runs/*/result", "runs/*/*/result")


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


def inventory(folders: Sequence[Path] = ()) -> list[Entry]:
    """The embedded bundle, `folders` and single files, what conversions and trainings made in `bundles/` and `runs/`,
    what the paper's checkpoints were converted to, and what the hub's cache holds of use for this program.
    """
    entries = []
    try:
        entries.append(_bundle_entry(bundle.TINY, bundle.resolve(bundle.TINY)))
    except bundle.BundleError as error:
        entries.append(Entry(bundle.TINY, "the embedded bundle", Path(), 0, str(error)))
    for folder in folders:
        entries.extend(_given(folder))
    given = {folder.resolve() for folder in folders}
    entries.extend(_bundle_entry(str(path), path) for path in _results() if path.resolve() not in given)
    for name, source in hub.SOURCES.items():
        entries.extend(_source_entries(name, source))
    entries.extend(_bundle_entry(path.name, path) for path in _converted())
    entries.extend(_cached_bundles())
    return entries


def _results() -> list[Path]:
    """The bundles among `_RESULTS`, and none of the text-to-image folders of base and phase 1."""
    return [path for pattern in _RESULTS for path in sorted(Path().glob(pattern)) if _is_bundle(path)]


def _converted() -> list[Path]:
    """The bundles that were made of released checkpoints at first use."""
    return sorted(path for path in bundles_folder().glob("[!.]*") if path.is_dir() and _is_bundle(path))


def _bundle_entry(name: str, folder: Path) -> Entry:
    try:
        bundle.check(folder)
        problem = ""
    except bundle.BundleError as error:
        problem = str(error)
    return Entry(name, _description(folder), folder, _size(folder), problem)


def _description(folder: Path) -> str:
    index = _json(folder / bundle.INDEX)
    if not index:
        return "no bundle"
    styles = [style for style in index.get("styles") or [] if style != bundle.GENERAL_STYLE]
    return f"bundle {index.get('name') or folder.name}" + (f", styles {', '.join(styles)}" if styles else "")


def _given(path: Path) -> Iterator[Entry]:
    """A file or a folder that the user names, also one that `fetch NAME --to FOLDER` filled."""
    if path.is_file() and path.suffix in _CHECKPOINTS:
        yield _checkpoint_entry(path)
        return
    files = list(_files_of_sources(path))
    yield from files
    index = _json(path / bundle.INDEX)
    if index.get("_class_name", "DiffV2IRPipeline") != "DiffV2IRPipeline":
        yield _text_to_image_entry(path, index)
    elif not index and "model_type" in (config := _json(path / "config.json")):
        yield _model_entry(path, f"a model of type {config['model_type']}", bundle.model_problems(path))
    elif index or not files:
        yield _begun_entry(path) or _bundle_entry(str(path), path)


def _checkpoint_entry(path: Path) -> Entry:
    known = (source for source in hub.SOURCES.values() if source.file and Path(source.file).name == path.name)
    what = next((source.what for source in known), "a single checkpoint")
    problems = bundle.weight_problems(path) if path.suffix == ".safetensors" else []
    return Entry(str(path), what, path, _size(path), "\n".join(problems))


def _files_of_sources(folder: Path) -> Iterator[Entry]:
    for name, source in hub.SOURCES.items():
        if source.file is None:
            continue
        path = folder / source.file
        if path.is_file():
            yield _checkpoint_entry(path)
        elif begun := hub.parts(source, folder):
            yield Entry(str(path), source.what, folder, sum(map(_size, begun)), _goes_on(name, folder))


def _text_to_image_entry(folder: Path, index: dict) -> Entry:
    listed = [name for name in bundle.COMPONENTS if (index.get(name) or [None])[0]]
    problems = [problem for name in listed for problem in bundle.folder_problems(folder, name)]
    return _model_entry(folder, f"text-to-image folder ({index['_class_name']})", problems)


def _model_entry(folder: Path, what: str, problems: Sequence[str]) -> Entry:
    name = _fetched_as(folder)
    if name is not None:
        what = hub.SOURCES[name].what
        problems = [*problems, _goes_on(name, folder)] if problems or _begun(folder) else []
    return Entry(str(folder), what, folder, _size(folder), "\n".join(problems))


def _begun_entry(folder: Path) -> Entry | None:
    """A folder that a fetch was interrupted in before there was anything to tell it by but its first part."""
    begun = _begun(folder)
    if not begun or (folder / bundle.INDEX).is_file():
        return None
    size = sum(map(_size, begun))
    return Entry(str(folder), "the beginning of a model", folder, size, "incomplete: the same `fetch` again goes on")


def _begun(folder: Path) -> list[Path]:
    return list(partial.downloads(folder).rglob(f"*{partial.SUFFIX}"))


def _fetched_as(folder: Path) -> str | None:
    """The name in `hub.SOURCES` whose commit huggingface_hub noted beside the files of a folder."""
    notes = partial.downloads(folder).rglob("*.metadata")
    commits = {note.read_text().partition("\n")[0] for note in notes}
    return next((name for name, source in hub.SOURCES.items() if {source.revision} == commits), None)


def _goes_on(name: str, folder: Path | None = None) -> str:
    return f"incomplete: `python -m diffv2ir fetch {name}{f' --to {folder}' if folder else ''}` goes on"


def _source_entries(name: str, source: hub.Source) -> Iterator[Entry]:
    """The commit that the source names, or else what is here of it; and commits that were fetched by NAME@REVISION."""
    repository = hub.repository_folder(source)
    found: list[Path] = []
    for revision in (source.revision, *sorted(path.name for path in (repository / "snapshots").glob("*"))):
        try:
            path = hub.here(replace(source, revision=revision))
        except hub.HubError:
            continue
        if path not in found:
            found.append(path)
            yield Entry(name if revision == source.revision else f"{name}@{revision}", source.what, path, _size(path))
    begun = hub.parts(source)
    size = sum(map(_size, begun)) if source.file else _size(repository / "blobs")
    if begun or (size and not found):
        yield Entry(name, source.what, repository, size, _goes_on(name))


def _cached_bundles() -> Iterator[Entry]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    known = {source.repo_id for source in hub.SOURCES.values()}
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        newest = max(repository.revisions, key=lambda revision: revision.last_modified, default=None)
        if repository.repo_id not in known and newest is not None and _is_bundle(newest.snapshot_path):
            yield _bundle_entry(repository.repo_id, newest.snapshot_path)


def _is_bundle(folder: Path) -> bool:
    return _json(folder / bundle.INDEX).get("_class_name") == "DiffV2IRPipeline"


def _json(path: Path) -> dict:
    """Empty if there is no such file, or another one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
