"""A data set as tar shards (WebDataset) with one Parquet manifest that knows where in them every image lies.

    DIR/manifest.parquet                 one row an example, columns in `COLUMNS`
    DIR/shards/00000.tar                 KEY.visible.EXT, KEY.infrared.EXT, [KEY.segmentation.EXT,] KEY.json, ...
    DIR/annotations/00000.tar, .parquet  captions and maps of that shard, if made (`annotate`)

Any WebDataset reader can stream the tars. Here images are read by their place: random access gives a training the same
examples in the same order as from a folder, on any number of processes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diffv2ir.data.examples import ROLES, DataError, Example
from diffv2ir.members import TarMember

MANIFEST, SHARDS, ANNOTATIONS = "manifest.parquet", "shards", "annotations"

COLUMNS = {
    **dict.fromkeys(("id", "kind", "source", "band", "scene", "split", "caption", "sha256", "shard"), "string"),
    "key": "string", "joined": "string", "order": "int64",
    **dict.fromkeys(("width", "height"), "int32"),
    **{f"{role}_{part}": kind for role in ROLES
       for part, kind in (("name", "string"), ("offset", "int64"), ("size", "int64"), ("sha256", "string"))},
}  # fmt: skip
# What a manifest may lack: those of earlier versions do.
OPTIONAL = {"key", "joined", "order", "map_style"}
# Of ASCII characters. A name in a tar has at most 100, of which ".segmentation.jpeg" is the longest ending.
LONGEST_KEY = 82
ANNOTATION_COLUMNS = {"id": "string", "caption": "string", "name": "string", "offset": "int64", "size": "int64",
                      "model": "string", "map_style": "string"}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What goes into a shard: the row of the manifest, as far as known, and the bytes and suffix of every image.

    The files' names in the tar begin with the row's "key", or its "id" where it has none.
    """

    row: dict[str, Any]
    files: dict[str, tuple[bytes, str]]


class TarWriter:
    """An uncompressed tar whose bytes depend on nothing but what is put in."""

    def __init__(self, file: BinaryIO, path: Path):
        self.path = path
        self.tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, name: str, content: bytes) -> tuple[int, int]:
        """Append a file; returns (offset, size) of its content.

        Raises:
            DataError: the name is too long for a tar.
        """
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        start = self.tar.offset
        try:
            self.tar.addfile(info, io.BytesIO(content))
        except ValueError as error:
            raise DataError(f"{self.path} cannot hold {name}: {error}") from error
        return start + tarfile.BLOCKSIZE, len(content)

    def close(self) -> None:
        self.tar.close()


def write_shards(entries: Iterable[Entry], folder: Path, length: int = 1000) -> list[dict[str, Any]]:
    """Write entries into `folder`, `length` to a shard, and the manifest; returns its rows."""
    check_length(length)
    (folder / SHARDS).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, part in enumerate(_parts(entries, length)):
        path = folder / SHARDS / f"{number:05d}.tar"
        with path.open("wb") as file:
            writer = TarWriter(file, path)
            rows += [_write_entry(writer, entry) for entry in part]
            writer.close()
    write_table(rows, COLUMNS, folder / MANIFEST)
    return rows


def check_length(length: int) -> None:
    """Raises ValueError where a number of examples is none that a shard can hold."""
    if length < 1:
        raise ValueError(f"a shard must hold at least 1 example, got {length}")


def _parts(entries: Iterable[Entry], length: int) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    for entry in entries:
        part.append(entry)
        if len(part) == length:
            yield part
            part = []
    if part:
        yield part


def tar_key(row: dict[str, Any]) -> str:
    """What the names of an example's files in a tar begin with."""
    return row.get("key") or row["id"]


def _write_entry(writer: TarWriter, entry: Entry) -> dict[str, Any]:
    row, key = {"shard": writer.path.name, **entry.row}, tar_key(entry.row)
    for role, (content, suffix) in entry.files.items():
        name = f"{key}.{role}{suffix}"
        row[f"{role}_name"] = name
        row[f"{role}_offset"], row[f"{role}_size"] = writer.add(name, content)
    described = {key: value for key, value in sorted(entry.row.items()) if value is not None}
    writer.add(f"{key}.json", json.dumps(described, ensure_ascii=False).encode())
    return row


def write_table(rows: Sequence[dict[str, Any]], columns: dict[str, str], path: Path) -> None:
    """Rows as a Parquet file with exactly `columns` (name: Arrow type); what a row lacks is null."""
    pa, parquet = _arrow()
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def read_table(path: Path, columns: dict[str, str], shard: str | None = None) -> list[dict[str, Any]]:
    """The rows of a Parquet file, all or those of one shard.

    Raises:
        DataError: it is no Parquet file, or lacks one of `columns`.
    """
    pa, parquet = _arrow()
    try:
        filters = None if shard is None else [("shard", "=", shard)]
        table = parquet.read_table(path, filters=filters, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    if missing := [name for name in columns if name not in table.column_names and name not in OPTIONAL]:
        raise DataError(f"{path} lacks the columns {missing}")
    return table.to_pylist()


def _arrow():
    """pyarrow and its Parquet part: inference never needs them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"shards need the package pyarrow ({error}): pip install pyarrow") from error
    return pyarrow, parquet


def read_shards(folder: Path) -> list[Example]:
    """The examples of a folder of shards, in the sources' order, with captions and maps where `annotate` made them.

    A caption or map that came with the data goes before a made one.

    Raises:
        DataError: the manifest is damaged, or shards are missing or shorter than it says.
    """
    rows = read_table(folder / MANIFEST, COLUMNS)
    _check_shards(folder, rows)
    made = _annotations(folder, {row["shard"] for row in rows})
    rows.sort(key=lambda row: row.get("order") or 0)  # stable: without an order, the manifest's
    return [_example(folder, row, made.get(row["id"])) for row in rows]


def stored(folder: Path, row: dict[str, Any], role: str) -> TarMember | None:
    """The image of a row of the manifest."""
    return _member(folder / SHARDS / row["shard"], row, f"{role}_")


def _example(folder: Path, row: dict[str, Any], made: dict[str, Any] | None) -> Example:
    files, map_style = {role: stored(folder, row, role) for role in ROLES}, ""
    if made and files["segmentation"] is None:
        files["segmentation"] = _member(folder / ANNOTATIONS / row["shard"], made, "")
        map_style = made.get("map_style") or ""
    return Example(
        **{name: row[name] for name in ("id", "kind", "source", "scene", "split", "band")},
        **files,
        caption=row["caption"] or (made or {}).get("caption"),
        joined=row.get("joined") or "",
        map_style=map_style,
    )


def _member(tar: Path, row: dict[str, Any], prefix: str) -> TarMember | None:
    if not row[f"{prefix}name"]:
        return None
    place = row[f"{prefix}name"], row[f"{prefix}offset"], row[f"{prefix}size"]
    return TarMember(tar, *place, row.get(f"{prefix}sha256"))


def _check_shards(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    ends: dict[str, int] = {}
    for row in rows:
        reach = max((row[f"{role}_offset"] or 0) + (row[f"{role}_size"] or 0) for role in ROLES)
        ends[row["shard"]] = max(ends.get(row["shard"], 0), reach)
    for name, end in sorted(ends.items()):
        path = folder / SHARDS / name
        if not path.is_file():
            raise DataError(f"{folder} lacks the shard {SHARDS}/{name} that its manifest names")
        if path.stat().st_size < end:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, the manifest names {end:,}: copy it again")


def _annotations(folder: Path, shards: Iterable[str]) -> dict[str, dict[str, Any]]:
    made = {}
    for name in shards:
        table = folder / ANNOTATIONS / Path(name).with_suffix(".parquet")
        if table.is_file():
            made |= {row["id"]: row for row in read_table(table, ANNOTATION_COLUMNS)}
    return made
