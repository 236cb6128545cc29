"""Figure I of the paper: given photos through the phases of the training, as a sheet, pictures and a table."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from diffv2ir.evaluate import central_square, gray_square
from diffv2ir.imaging import open_image
from diffv2ir.phases import draw_phases, held_phases
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.reference import compare
from diffv2ir.rows import picture_rows
from diffv2ir.settings import GenerationSettings
from diffv2ir.training.ablation import report
from diffv2ir.training.ablation.cells import Cells, device_name, model_hash
from diffv2ir.training.cache import file_hash

logger = logging.getLogger(__name__)

NAME = "phases"
TILE = 192
_HEADER = 22


def draw_sheet(
    pipe: DiffV2IRPipeline,
    photos: Sequence[Path],
    settings: GenerationSettings,
    output: Path,
    real: Sequence[Path] = (),
) -> Path:
    """Draw the central square of each photo after each phase that the bundle holds; returns the table.

    Args:
        real: the real infrared picture of each photo, to compare with; none = pictures only.

    Raises:
        ValueError: not as many real pictures as photos, or two photos of one name. ImageError: one cannot be read.
    """
    if real and len(real) != len(photos):
        raise ValueError(f"expected a real picture for each of the {len(photos)} photos, got {len(real)}")
    if len({photo.stem for photo in photos}) < len(photos):
        raise ValueError("two photos have one name: their pictures would overwrite each other")
    names, cells = held_phases(pipe), Cells(output / "cells")
    if "base" not in names:
        logger.warning("%s holds no base and no phase 1: train.tiny --hold-phases keeps them", pipe.folder)
    rows, lines = [], []
    for number, photo in enumerate(photos):
        square = central_square(open_image(photo))
        target = gray_square(real[number]) if real else None
        own = _draw_photo(pipe, photo, square, names, settings, output, cells)
        pictures = [Image.open(output / row["file"]) for row in own]
        if target:
            own = [{**row, **_measures(picture, target)} for row, picture in zip(own, pictures, strict=True)]
        rows += own
        lines.append([square, *pictures, *([target] if target else [])])
    titles = ["visible", *names, *(["real"] if real else [])]
    picture_rows(titles, lines, TILE, header=_HEADER).save(output / f"{NAME}.png")
    return _write(output, rows, pipe, settings)


def _draw_photo(
    pipe: DiffV2IRPipeline,
    photo: Path,
    square: Image.Image,
    names: Sequence[str],
    settings: GenerationSettings,
    output: Path,
    cells: Cells,
) -> list[report.Row]:
    """One photo after each phase: one cell each, with a picture file; the photo is prepared if one is missing.

    The picture has the cell's hash in its name: pictures of other settings lie beside it.
    """
    known: list[Conditioning] = []
    bundle, rows = model_hash(pipe.folder), []
    for name in names:
        key = {"table": NAME, "bundle": bundle, "photo": file_hash(photo), "name": name, "settings": settings.to_dict()}
        file = output / f"{photo.stem}, {name}, {cells.path(key).stem}.png"
        if not file.is_file():  # a cell without its picture is not finished
            cells.path(key).unlink(missing_ok=True)

        def draw(name: str = name, file: Path = file) -> dict[str, float]:
            if not known:
                known.append(pipe.prepare(square, **settings.preparation))
            wall, busy = time.perf_counter(), time.process_time()
            (picture,) = draw_phases(pipe, known[0], settings, only=name)
            times = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - busy}
            output.mkdir(parents=True, exist_ok=True)
            picture.image.save(file)
            return times

        rows.append({"photo": photo.stem, "phase": name, **cells.get(key, draw), "file": file.name})
    return rows


def _measures(picture: Image.Image, target: Image.Image) -> report.Row:
    comparison = compare(picture, target)
    return {"psnr": comparison.psnr, "ssim": comparison.ssim}


def _write(output: Path, rows: list[report.Row], pipe: DiffV2IRPipeline, settings: GenerationSettings) -> Path:
    measures = [name for name in ("psnr", "ssim") if any(name in row for row in rows)]
    text = [
        f"Figure I of the paper with `{pipe.config.name}`: ![Photos through the phases]({NAME}.png)",
        f"The central square of each photo, seed {settings.seed}. Base and phase 1 know no photo as a condition: they "
        f"repaint it (SDEdit), in at least 20 steps. Times are on {device_name(pipe.compute_device)}, without the "
        f"preparation of the photo, with the loading of base and phase 1.",
    ]
    columns, plots = ["photo", "phase", *measures, "seconds", "cpu_seconds"], []
    if measures:
        labels = [f"{row['photo']}, {row['phase']}" for row in rows]
        plots = [f"{NAME}-scores.png"]
        report.plot_rows(output / plots[0], rows, labels, measures)
    return report.write_table(output, NAME, rows, columns, text, plots)
