"""Captions and maps of the visible images of one shard (paper Sec. 3.2), written beside it.

The caption table of a shard is written last: a shard that has one is done. A killed worker leaves a shard undone, never
half done. A worker holds a lock on the shard it works on, which the system releases when the worker dies. The lock file
says how many images are done: whoever started the workers, wherever they run, reads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from PIL import Image

from diffv2ir import bundle as bundles
from diffv2ir.data.examples import DataError
from diffv2ir.data.shards import (
    ANNOTATION_COLUMNS,
    ANNOTATIONS,
    COLUMNS,
    MANIFEST,
    TarWriter,
    read_table,
    stored,
    tar_key,
    write_table,
)
from diffv2ir.files import write_file_atomically
from diffv2ir.imaging import open_image
from diffv2ir.settings import MAP_STYLES

PARTS = ("captioner", "captioner_processor", "segmenter")
_BATCH = 8


class Annotator:
    """BLIP and SAM of a bundle on a device."""

    def __init__(self, bundle: Path, device: str):
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        from diffv2ir.vlum import SamSegmenter

        self.style, self.name = map_style(bundle), model_name(bundle)
        self.captioner = BlipForConditionalGeneration.from_pretrained(bundle / "captioner", dtype=torch.float32)
        self.captioner.eval().to(device)
        self.processor = BlipProcessor.from_pretrained(bundle / "captioner_processor")
        self.segmenter = SamSegmenter.from_pretrained(bundle / "segmenter").eval().to(device)

    def __call__(self, images: Sequence[Image.Image]) -> Iterator[tuple[str, Image.Image]]:
        """Caption and map, at the image's size, of each RGB image."""
        from diffv2ir.vlum import caption_images, segmentation_map

        captions = caption_images(self.captioner, self.processor, images)
        for image, caption in zip(images, captions, strict=True):
            yield caption, segmentation_map(self.segmenter.masks(image), image.size, self.style)


def map_style(bundle: Path) -> str:
    """How the bundle draws maps.

    Raises:
        DataError: it is no bundle, or lacks the parts that annotate.
    """
    index = bundle / bundles.INDEX
    if missing := [name for name in PARTS if not (bundle / name).is_dir()]:
        raise DataError(f"{bundle} cannot annotate: it has no folder {', '.join(missing)}")
    if not index.is_file():
        raise DataError(f"{bundle} is no bundle: it has no {bundles.INDEX}")
    return json.loads(index.read_text()).get("map_style", MAP_STYLES[0])


def model_name(bundle: Path) -> str:
    """A name for what annotates: a hash of the files of BLIP and SAM and the style of the maps."""
    digest = hashlib.sha256(map_style(bundle).encode())
    for file in sorted(file for part in PARTS for file in (bundle / part).rglob("*") if file.is_file()):
        digest.update(file.relative_to(bundle).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def is_done(folder: Path, shard: str, model: str) -> bool:
    """Whether a shard has its annotations.

    Raises:
        DataError: it has those of another model.
    """
    table = _table(folder, shard)
    if not table.is_file():
        return False
    if others := {row["model"] for row in read_table(table, ANNOTATION_COLUMNS)} - {model}:
        raise DataError(
            f"{table} was made by another model ({', '.join(others)}, not {model}): remove {table.parent} to annotate "
            "anew"
        )
    return True


def annotate_shard(folder: Path, shard: str, annotator: Annotator) -> int | None:
    """Annotate one shard; returns the images it took, or None where another worker is at it.

    Raises:
        DataError, ImageError, OSError: an image cannot be read; nothing is left behind but a partial file.
    """
    with _locked(folder, shard) as lock:
        if lock is None:
            return None
        if is_done(folder, shard, annotator.name):
            return 0
        rows = [row for row in read_table(folder / MANIFEST, COLUMNS, shard) if row["visible_name"]]
        tar = folder / ANNOTATIONS / shard
        made: list[dict] = []

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                made.extend(_annotate(folder, rows, annotator, TarWriter(file, tar), lock))

        write_file_atomically(tar, write, flush=True)
        table = _table(folder, shard)
        write_file_atomically(table, lambda partial: write_table(made, ANNOTATION_COLUMNS, partial), flush=True)
        return len(made)


def _annotate(
    folder: Path, rows: Sequence[dict], annotator: Annotator, writer: TarWriter, progress: TextIO
) -> list[dict]:
    made = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        images = [open_image(stored(folder, row, "visible")) for row in batch]
        for row, (caption, drawn) in zip(batch, annotator(images), strict=True):
            buffer = io.BytesIO()
            drawn.save(buffer, format="PNG")
            name = f"{tar_key(row)}.segmentation.png"
            offset, size = writer.add(name, buffer.getvalue())
            writer.add(f"{tar_key(row)}.caption.txt", caption.encode())
            made.append({"id": row["id"], "caption": caption, "name": name, "offset": offset, "size": size,
                         "model": annotator.name, "map_style": annotator.style})  # fmt: skip
            _rewrite(progress, str(len(made)))
    writer.close()
    return made


def _table(folder: Path, shard: str) -> Path:
    return folder / ANNOTATIONS / Path(shard).with_suffix(".parquet")


def progress(folder: Path, shard: str) -> tuple[int, int]:
    """When a worker last did something on a shard (0 = never; only good to be compared), and images done by then."""
    lock = _lock(folder, shard)
    try:
        return lock.stat().st_mtime_ns, int(lock.read_text() or 0)
    except OSError:
        return 0, 0


@contextmanager
def _locked(folder: Path, shard: str) -> Iterator[TextIO | None]:
    """The lock file of a shard that this process, and no other, has while it lasts, else None."""
    lock = _lock(folder, shard)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:  # another worker's count stays
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        _rewrite(file, "0")
        yield file


def _lock(folder: Path, shard: str) -> Path:
    return folder / ANNOTATIONS / ".locks" / shard


def _rewrite(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
