"""Many photos in one go: a result for each, a broken one reported, and all of them in one zip."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffv2ir.imaging import ImageError, ImageSource
from diffv2ir.memory import OutOfDeviceMemory
from diffv2ir.settings import GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline, Output

DONE, FAILED, STOPPED = "done", "failed", "stopped"

Callback = Callable[[int, int, int], Any]


@dataclass(frozen=True)
class PhotoResult:
    """What became of one photo.

    Attributes:
        number: of the photo among those given, from 0.
        name: of its file, without folders.
        status: "done", "failed" (see `error`) or "stopped" (the callback ended it).
        output: of a photo that is done, else None.
        error: why it failed, in words that name neither the file nor its folder; else "".
        seconds: spent on it.
    """

    number: int
    name: str
    status: str
    output: Output | None
    error: str
    seconds: float


def translate_photos(
    pipe: DiffV2IRPipeline,
    photos: Sequence[str | os.PathLike],
    settings: GenerationSettings,
    caption: str | None = None,
    segmentation: ImageSource | None | bool = None,
    callback: Callback | None = None,
) -> Iterator[PhotoResult]:
    """Translate photo after photo, yielding a result for each; one that cannot be used fails and the rest goes on.

    Args:
        settings: of all photos; without a seed each draws its own.
        caption, segmentation: of all photos, as for `DiffV2IRPipeline.prepare`.
        callback: called as callback(number, step, steps), with step 0 before a photo is understood and again before it
            is denoised; returning False ends the work there, and the photo in work is yielded as "stopped".

    Raises:
        ValueError: what is wrong for every photo, such as a style that the bundle does not have.
    """
    for number, photo in enumerate(map(Path, photos)):

        def goes_on(step: int, steps: int, estimate: Any = None, number: int = number) -> bool:
            return callback is None or callback(number, step, steps) is not False

        if not goes_on(0, settings.steps):
            return
        output, status, error = None, DONE, ""
        started, own = time.monotonic(), settings.with_seed()
        try:
            conditioning = pipe.prepare(photo, caption, segmentation, **own.preparation)
            if goes_on(0, settings.steps):
                output = pipe.generate(conditioning, own, goes_on)
        except (ImageError, FloatingPointError, OutOfDeviceMemory) as problem:
            status, error = FAILED, without_folder(str(problem), photo)
        else:
            if output is None or output.cancelled:
                output, status = None, STOPPED
        yield PhotoResult(number, photo.name, status, output, error, time.monotonic() - started)
        if status == STOPPED:
            return


def without_folder(message: str, path: Path) -> str:
    """An error message of `imaging` about a file, without the file's name in front and its folder anywhere."""
    return message.removeprefix(f"{path}: ").replace(str(path), path.name)


def output_paths(out: Path, stem: str) -> tuple[Path, Path]:
    """Where the infrared picture and the segmentation map of a photo go."""
    return out / f"{stem}_ir.png", out / f"{stem}_map.png"


def output_stems(photos: Sequence[Path], out: Path | None = None) -> list[str]:
    """One stem per photo: its own, or with a number where that is taken.

    Args:
        out: folder of the results, in which no photo may be overwritten; None = they go elsewhere, such as into a zip.
    """
    given = set() if out is None else {str(photo.resolve()).casefold() for photo in photos}
    taken: set[str] = set()
    stems = []
    for photo in photos:
        stem, number = photo.stem, 1
        while stem.casefold() in taken or (out is not None and _places(out, stem) & given):
            number += 1
            stem = f"{photo.stem}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _places(out: Path, stem: str) -> set[str]:
    return {str(path.resolve()).casefold() for path in output_paths(out, stem)}


class ResultsZip:
    """A zip of results, written picture by picture: `<stem>_ir.png`, `<stem>_map.png` and, when closed, `results.csv`.

    Use it as a context manager; the zip is complete, with what was added, once that is left.

    Args:
        photos: those that the results' numbers count. settings: those asked for.
    """

    CSV = "results.csv"
    COLUMNS = ("file", "status", "error", "infrared", "map", "caption", "seconds")

    def __init__(self, path: Path, photos: Sequence[str | os.PathLike], settings: GenerationSettings):
        self._settings = settings
        self._stems = output_stems([Path(photo) for photo in photos])
        # PNG is compressed already.
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._text = io.StringIO()
        fields = [field.name for field in dataclasses.fields(GenerationSettings)]
        self._rows = csv.DictWriter(self._text, [*self.COLUMNS, *fields])
        self._rows.writeheader()

    def __enter__(self) -> ResultsZip:
        return self

    def __exit__(self, *error: Any) -> None:
        self._zip.writestr(self.CSV, self._text.getvalue(), zipfile.ZIP_DEFLATED)
        self._zip.close()

    def add(self, result: PhotoResult) -> None:
        """Write a result's pictures and remember its row."""
        infrared, drawn = (path.name for path in output_paths(Path(), self._stems[result.number]))
        output = result.output
        row = {
            "file": result.name,
            "status": result.status,
            "error": result.error,
            "seconds": f"{result.seconds:.2f}",
            **self._settings.to_dict(),
        }
        if output is not None:
            self._write(infrared, output.save)
            row |= {"infrared": infrared, "caption": output.caption, **output.settings.to_dict()}
            if output.segmentation is not None:
                self._write(drawn, lambda file: output.segmentation.save(file, format="PNG"))
                row["map"] = drawn
        self._rows.writerow(row)

    def _write(self, name: str, save: Callable[[Any], None]) -> None:
        buffer = io.BytesIO()
        save(buffer)
        self._zip.writestr(name, buffer.getvalue())
