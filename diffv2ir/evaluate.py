"""Score a bundle on pairs of visible and real infrared images, per camera and overall.

Protocol, in full in docs/evaluation.md: both images of a pair are cut to their central square and resized to 256 px;
the model sees that square and its output is compared as 8-bit gray. Two methods that know nothing of infrared are
scored beside it: the visible image turned gray, and one gray level for all images of a camera, the mean of its real
ones.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from diffv2ir.data import Example
from diffv2ir.imaging import open_image
from diffv2ir.scores import (
    EVALUATION_SIZE,
    OVERALL,
    PROTOCOL,
    Report,
    Score,
    picture_hashes,
    score,
    score_methods,
    score_real,
)
from diffv2ir.settings import MAX_SEED, STYLE_BAND, GenerationSettings
from diffv2ir.vlum.prompt import BANDS

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

__all__ = [
    "EVALUATION_SIZE", "OVERALL", "PROTOCOL", "Report", "Score", "Translation",
    "central_square", "check_pairs", "example_seed", "gray_square", "picture_hashes", "save_sheet", "score",
    "score_methods", "score_real", "settings_for", "spread", "translate_examples",
]  # fmt: skip


@dataclass(frozen=True)
class Translation:
    """One evaluated pair, all images at the evaluation size; `infrared` and `real` are 8-bit gray.

    A picture that was read from a folder comes without `segmentation`.
    """

    example: Example
    visible: Image.Image
    segmentation: Image.Image | None
    infrared: Image.Image
    real: Image.Image
    caption: str


def central_square(image: Image.Image, size: int = EVALUATION_SIZE) -> Image.Image:
    """The largest central square of an image, resized to `size` px a side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def gray_square(path: Path) -> Image.Image:
    """The central square of a picture file as 8-bit gray (Rec. 601 luma of RGB).

    Raises:
        ImageError: the file cannot be read.
    """
    return central_square(open_image(path).convert("L"))


def spread(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples, evenly spaced over the list, so that a short evaluation still sees every camera."""
    if limit is None or limit >= len(examples):
        return list(examples)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return [examples[index * len(examples) // limit] for index in range(limit)]


def example_seed(example: Example, seed: int) -> int:
    """The seed of one example: the same whichever other examples are evaluated."""
    return (seed + zlib.crc32(example.id.encode())) % (MAX_SEED + 1)


def settings_for(example: Example, settings: GenerationSettings) -> GenerationSettings:
    """The settings for one example: its own seed and, where they leave the band open, the band of its camera."""
    open_band = settings.band == STYLE_BAND and example.band in BANDS
    band = example.band if open_band else settings.band
    return settings.replace(seed=example_seed(example, settings.seed or 0), band=band)


def check_pairs(examples: Sequence[Example]) -> None:
    """Raises ValueError where an example lacks its visible or its infrared image."""
    for example in examples:
        if example.visible is None or example.infrared is None:
            raise ValueError(f"{example.id}: an evaluation needs a visible and an infrared image")


def translate_examples(
    pipe: DiffV2IRPipeline,
    examples: Sequence[Example],
    settings: GenerationSettings,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
    without: Sequence[str] = (),
    save: Callable[[Sequence[Translation]], None] | None = None,
) -> list[Translation]:
    """Translate the visible image of each example. `progress(done, total)` is called after each batch.

    Where the settings leave the band open, each is asked for in the band of its real picture.

    Args:
        without: "caption" and "map" are switched off when named here. save: is given each batch when it is done.

    Raises:
        ValueError: an example lacks its visible or its infrared image, or one of them cannot be read.
    """
    check_pairs(examples)
    translations: list[Translation] = []
    for batch in _batches(examples, settings, batch_size):
        own = [settings_for(example, settings) for example in batch]
        visible = [central_square(open_image(example.visible)) for example in batch]
        off = {"caption": "" if "caption" in without else None, "segmentation": False if "map" in without else None}
        conditionings = [pipe.prepare(image, **settings.preparation, **off) for image in visible]
        outputs = pipe.generate_batch(conditionings, own[0], seeds=[one.seed for one in own])
        for example, image, output in zip(batch, visible, outputs, strict=True):
            real = gray_square(example.infrared)
            drawn = output.segmentation or Image.new("RGB", image.size)
            translations.append(Translation(example, image, drawn, output.image, real, output.caption or ""))
        if save is not None:
            save(translations[-len(batch) :])
        if progress is not None:
            progress(len(translations), len(examples))
    return translations


def _batches(examples: Sequence[Example], settings: GenerationSettings, size: int) -> Iterator[list[Example]]:
    """The examples in their order, at most `size` together, those of a batch in one band."""
    for _, run in itertools.groupby(examples, key=lambda example: settings_for(example, settings).band):
        alike = list(run)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def save_sheet(translations: Sequence[Translation], path: str | Path, tile: int = 160, blocks: int = 3) -> None:
    """Write a sheet of scenes, each as visible | map | ours | real, `blocks` scenes a row; no map if none has one."""
    header, margin = 22, 12
    columns = {"visible": "visible", "map": "segmentation", "ours": "infrared", "real": "real"}
    if all(scene.segmentation is None for scene in translations):
        del columns["map"]
    blocks = min(blocks, len(translations))
    rows = -(-len(translations) // blocks)
    block_width = tile * len(columns)
    sheet = Image.new("RGB", (blocks * block_width + (blocks - 1) * margin, header + rows * tile), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for block in range(blocks):
        for column, title in enumerate(columns):
            x = block * (block_width + margin) + column * tile + tile // 2
            draw.text((x, header // 2), title, fill="black", font=font, anchor="mm")
    for index, scene in enumerate(translations):
        row, block = divmod(index, blocks)
        for column, name in enumerate(columns.values()):
            square = getattr(scene, name).convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(square, (block * (block_width + margin) + column * tile, header + row * tile))
    sheet.save(path)
