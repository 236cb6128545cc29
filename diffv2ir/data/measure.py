"""What the cleaning stages judge an example by: everything that needs its pixels, found in one reading."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diffv2ir import __version__
from diffv2ir.data.alignment import alignment
from diffv2ir.data.examples import DataError
from diffv2ir.data.hashing import difference_hash
from diffv2ir.imaging import ImageError, from_levels, limited_size, open_image
from diffv2ir.lines import append_lines, read_lines
from diffv2ir.members import ImageFile, TarMember, file_state

# Of 16-bit infrared: counts that span less are spread, but never further apart than a gray level each.
_FULL_SPAN, _LEAST_SPAN = 16384, 255
_ENDS = (0.001, 0.999)  # dead pixels do not count
_BORDER_SIDE = 256
_BLACK, _LIT = 4, 20
_WEDGE_LENGTH, _STRAIGHT, _ON_LINE = 0.4, 1.5, 0.8  # share of the side; pixels off the line; share of the wedge


@dataclass(frozen=True)
class Measures:
    """Of one example. Where `error` says what cannot be read, the rest is empty.

    Attributes:
        sizes: (width, height) of the visible image, if any, and of the infrared one, less the source's border.
        contrast: the smaller standard deviation of gray levels (of 255) of the two images.
        black: the larger share of the two images that a warp left black (`black_border`).
        hashes: `difference_hash` of the infrared image and of the visible one.
        alignment: see `alignment.alignment`; 1 without a visible image.
        sha256: of the bytes of the visible and of the infrared file; "" without a visible one.
    """

    error: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    contrast: float = 0.0
    black: float = 0.0
    hashes: tuple[bytes, bytes | None] = (b"", None)
    alignment: float = 1.0
    sha256: tuple[str, str] = ("", "")


def measure(visible: ImageFile | None, infrared: ImageFile, border: int = 0) -> Measures:
    """Read and measure one example; an unreadable file is an `error`, nothing is raised."""
    try:
        opened = [open_image(visible)] if visible else []
        opened.append(open_infrared(infrared))
        images = [cut_border(image, border) for image in opened]
        digests = tuple(hashlib.sha256(file.read_bytes()).hexdigest() if file else "" for file in (visible, infrared))
    except (ImageError, OSError) as error:
        return Measures(error=str(error))
    return Measures(
        sizes=tuple(image.size for image in images),
        contrast=min(float(np.asarray(image.convert("L"), dtype=np.float32).std()) for image in images),
        black=max(black_border(image) for image in images),
        hashes=(difference_hash(images[-1]), difference_hash(images[0]) if visible else None),
        alignment=alignment(*images) if visible else 1.0,
        sha256=digests,
    )


Job = tuple[ImageFile | None, ImageFile, int]  # visible, infrared, border


def measure_all(jobs: Sequence[Job], workers: int = 1, kept: Path | None = None) -> Iterator[Measures]:
    """`measure` of every job, in order, by as many processes.

    Args:
        kept: a file that gets each one when it is measured. What an earlier run has put there, of files that have not
            changed since, is not measured again.

    Raises:
        DataError: a process was killed.
    """
    if kept is None:
        yield from _measure_jobs(jobs, workers)
        return
    known, keys = _read_kept(kept), [_key(*job) for job in jobs]
    fresh = _measure_jobs([job for job, key in zip(jobs, keys, strict=True) if key not in known], workers)
    for key in keys:
        if key in known:
            yield known[key]
            continue
        one = next(fresh)
        if not one.error:  # the next run may be able to read it
            append_lines(kept, [_to_record(key, one)])
        yield one


def _measure_jobs(jobs: Sequence[Job], workers: int) -> Iterator[Measures]:
    if workers <= 1 or not jobs:
        yield from (measure(*job) for job in jobs)
        return
    try:
        with ProcessPoolExecutor(workers, initializer=_ignore_interrupt) as pool:
            yield from pool.map(measure, *zip(*jobs, strict=True), chunksize=16)
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {workers} processes that read images was killed, perhaps for want of memory: try again with fewer "
            "workers"
        ) from error


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _key(visible: ImageFile | None, infrared: ImageFile, border: int) -> str:
    """Of what measures depend on: both files by place, size and time, the border, and the version of the package."""
    parts = [__version__, border, *(file and file_state(file) for file in (visible, infrared))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _to_record(key: str, one: Measures) -> dict[str, Any]:
    hashes = [value.hex() if value is not None else None for value in one.hashes]
    return {"key": key, **asdict(one), "hashes": hashes}


def _read_kept(path: Path) -> dict[str, Measures]:
    known = {}
    for record in read_lines(path):
        try:
            key = record.pop("key")
            record["sizes"] = tuple(tuple(size) for size in record["sizes"])
            record["hashes"] = tuple(value if value is None else bytes.fromhex(value) for value in record["hashes"])
            record["sha256"] = tuple(record["sha256"])
            known[key] = Measures(**record)
        except (ValueError, LookupError, TypeError):
            continue
    return known


def check_workers(workers: int) -> None:
    """Raises ValueError where a number of processes is none."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def open_infrared(file: ImageFile) -> Image.Image:
    """An infrared image in 8 bit: as `open_image` reads it, or by `spread`."""
    image = open_image(file)  # says what is wrong with a file
    return spread(file) or image


def spread(file: ImageFile) -> Image.Image | None:
    """A camera's 14-bit counts in a 16-bit file, as 8-bit gray from the lowest to the highest; None of other files.

    By the full range of 16 bit, such an image is all but black. One that spans at least a quarter of it is left.
    """
    with Image.open(io.BytesIO(file.read_bytes()) if isinstance(file, TarMember) else file) as image:
        if image.mode != "I" and not image.mode.startswith("I;16"):
            return None
        counts = np.asarray(ImageOps.exif_transpose(image)).astype(np.float64)
        eight_bit = image.mode == "I" and counts.max() <= 255  # read as it is
    low, high = np.quantile(counts, _ENDS)
    if eight_bit or high - low >= _FULL_SPAN:
        return None
    return from_levels((counts - low) / max(_LEAST_SPAN, high - low))


def cut_border(image: Image.Image, border: int) -> Image.Image:
    """The image less `border` pixels on every side.

    Raises:
        ImageError: nothing would be left.
    """
    if not border:
        return image
    if min(image.size) <= 2 * border:
        raise ImageError(f"an image of {image.width}x{image.height} pixels has no border of {border} to cut off")
    return image.crop((border, border, image.width - border, image.height - border))


def black_border(image: Image.Image) -> float:
    """Share of the image that a warp left black: wedges at the sides, with a straight edge to a lit picture.

    A night sky is black at the frame too, but ends in an uneven line, or fades into what is lit.
    """
    small = image.convert("RGB").resize(limited_size(image.size, _BORDER_SIDE), Image.Resampling.NEAREST)
    gray = np.asarray(small).max(axis=-1)
    return min(1.0, sum(_wedge(np.rot90(gray, turns)) for turns in range(4)) / gray.size)


def _wedge(gray: np.ndarray) -> int:
    """Pixels of the black wedge at the upper side of (H, W) uint8; 0 where there is none."""
    black = gray <= _BLACK
    depth = np.where(black.all(axis=0), len(gray), black.argmin(axis=0))
    places = np.flatnonzero((depth > 0) & (depth < len(gray) // 2))  # deeper: the wedge of a neighbouring side
    if len(places) < _WEDGE_LENGTH * gray.shape[1]:
        return 0
    off = abs(depth[places] - _line(places, depth[places]))
    places = places[off <= _STRAIGHT]
    inside = gray[np.minimum(depth[places] + 3, len(gray) - 1), places]
    straight = len(places) >= _ON_LINE * len(off)
    return int(depth[places].sum()) if straight and np.median(inside) >= _LIT else 0


def _line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The line through most points, at `x`: median slope between points half the range apart; outliers do not count."""
    half = len(x) // 2
    slope = np.median((y[half:] - y[: len(y) - half]) / (x[half:] - x[: len(x) - half]))
    return slope * x + np.median(y - slope * x)
