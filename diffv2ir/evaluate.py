"""Score a bundle on pairs of visible and real infrared images, per camera and overall.

Protocol: both images of a pair are cut to their central square and resized to 256 px; the model sees that square and
its output is compared as 8-bit gray. Two methods that know nothing of infrared are scored beside it: the visible image
turned gray, and one gray level for all images of a camera, the mean of its real ones.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont, ImageStat

from diffv2ir.bootstrap import mean_interval
from diffv2ir.data import Example
from diffv2ir.imaging import open_image
from diffv2ir.metrics import FRECHET_NAME, frechet_distance, frechet_features, has_frechet_weights, psnr, ssim
from diffv2ir.settings import MAX_SEED, GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

EVALUATION_SIZE = 256
OVERALL = "all"
_SHEET_COLUMNS = ("visible", "map", "ours", "real")


@dataclass(frozen=True)
class Translation:
    """One evaluated pair, all images at the evaluation size; `infrared` and `real` are 8-bit gray."""

    example: Example
    visible: Image.Image
    segmentation: Image.Image
    infrared: Image.Image
    real: Image.Image
    caption: str


@dataclass(frozen=True)
class Score:
    """Means over `count` images, with the 95 % bootstrap intervals of PSNR and SSIM.

    The Fréchet distance is None without its weights or for fewer than two images.
    """

    count: int
    psnr: float
    ssim: float
    frechet_efficientnet_lite0: float | None
    psnr_interval: tuple[float, float]
    ssim_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {name: _finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Report:
    """Scores by camera (`OVERALL` for all together) of the model, the visible image turned gray, and a constant.

    `images` has the model's PSNR and SSIM of every pair, by example id, for comparisons of two methods.
    """

    settings: GenerationSettings
    model: dict[str, Score]
    visible_gray: dict[str, Score]
    constant: dict[str, Score]
    images: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        protocol = f"central square, {EVALUATION_SIZE} px, 8-bit gray; settings.seed is combined with each example's id"
        scores = {
            name: {camera: score.to_dict() for camera, score in group.items()}
            for name, group in self._methods().items()
        }
        images = {key: {name: _finite(value) for name, value in row.items()} for key, row in self.images.items()}
        return {"protocol": protocol, "settings": self.settings.to_dict(), **scores, "images": images}

    def _methods(self) -> dict[str, dict[str, Score]]:
        return {"model": self.model, "visible_gray": self.visible_gray, "constant": self.constant}

    def table(self) -> str:
        """The scores as aligned text."""
        lines = [f"{'camera':<12} {'images':>6}  {'method':<12} {'PSNR, 95 %':>20}  {'SSIM, 95 %':>20} {'Fréchet':>8}"]
        for camera in self.model:
            for name, group in self._methods().items():
                value = group[camera]
                psnrs, ssims = _range(value.psnr_interval, 2), _range(value.ssim_interval, 3)
                lines.append(
                    f"{camera:<12} {value.count:>6}  {name:<12} {value.psnr:>5.2f} {psnrs:>14}  {value.ssim:>5.3f} "
                    f"{ssims:>14} {_number(value):>8}"
                )
        return "\n".join([*lines, f"Fréchet: {FRECHET_NAME}, not comparable with FID"])


def _range(interval: tuple[float, float], decimals: int) -> str:
    low, high = interval
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _number(value: Score) -> str:
    return "-" if value.frechet_efficientnet_lite0 is None else f"{value.frechet_efficientnet_lite0:.1f}"


def _finite(value: Any) -> Any:
    """The value for JSON, which knows no infinity: equal images have an infinite PSNR."""
    if isinstance(value, tuple):
        return [_finite(part) for part in value]
    return value if value is None or math.isfinite(value) else None


def central_square(image: Image.Image, size: int = EVALUATION_SIZE) -> Image.Image:
    """The largest central square of an image, resized to `size` px a side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


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


def translate_examples(
    pipe: DiffV2IRPipeline,
    examples: Sequence[Example],
    settings: GenerationSettings,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
    without: Sequence[str] = (),
) -> list[Translation]:
    """Translate the visible image of each example. `progress(done, total)` is called after each batch.

    Args:
        without: "caption" and "map" are switched off when named here.

    Raises:
        ValueError: an example lacks its visible or its infrared image, or one of them cannot be read.
    """
    for example in examples:
        if example.visible is None or example.infrared is None:
            raise ValueError(f"{example.id}: an evaluation needs a visible and an infrared image")
    translations: list[Translation] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        visible = [central_square(open_image(example.visible)) for example in batch]
        off = {"caption": "" if "caption" in without else None, "segmentation": False if "map" in without else None}
        conditionings = [pipe.prepare(image, **settings.preparation, **off) for image in visible]
        seeds = [example_seed(example, settings.seed or 0) for example in batch]
        outputs = pipe.generate_batch(conditionings, settings, seeds=seeds)
        for example, image, output in zip(batch, visible, outputs, strict=True):
            real = central_square(open_image(example.infrared).convert("L"))
            drawn = output.segmentation or Image.new("RGB", image.size)
            translations.append(Translation(example, image, drawn, output.image, real, output.caption or ""))
        if progress is not None:
            progress(len(translations), len(examples))
    return translations


def score(translations: Sequence[Translation], settings: GenerationSettings) -> Report:
    """Score finished translations, per camera and overall."""
    cameras = [translation.example.source for translation in translations]
    real = [translation.real for translation in translations]
    made = [translation.infrared for translation in translations]
    gray = [translation.visible.convert("L") for translation in translations]
    real_features = frechet_features(real) if has_frechet_weights() else None
    figures = _figures(made, real)
    ids = [translation.example.id for translation in translations]
    return Report(
        settings=settings,
        model=_scores(figures, _features(made, real_features), real_features, cameras),
        visible_gray=_scores(_figures(gray, real), _features(gray, real_features), real_features, cameras),
        constant=_scores(_figures(_constants(real, cameras), real), None, None, cameras),
        images={key: {name: values[row] for name, values in figures.items()} for row, key in enumerate(ids)},
    )


def _figures(images: Sequence[Image.Image], real: Sequence[Image.Image]) -> dict[str, list[float]]:
    """PSNR and SSIM of each image."""
    pairs = list(zip(images, real, strict=True))
    return {"psnr": [psnr(*pair) for pair in pairs], "ssim": [ssim(*pair) for pair in pairs]}


def _features(images: list[Image.Image], real_features: Any) -> Any:
    return None if real_features is None else frechet_features(images)


def _constants(real: Sequence[Image.Image], cameras: Sequence[str]) -> list[Image.Image]:
    """For each image a plain one at the mean level of its camera's real images."""
    levels = [ImageStat.Stat(image).mean[0] for image in real]
    means = {
        camera: round(statistics.fmean(level for level, own in zip(levels, cameras, strict=True) if own == camera))
        for camera in set(cameras)
    }
    return [Image.new("L", image.size, means[camera]) for image, camera in zip(real, cameras, strict=True)]


def _scores(figures: dict[str, list[float]], features: Any, real_features: Any, cameras: list[str]) -> dict[str, Score]:
    result = {}
    for camera in [*sorted(set(cameras)), OVERALL]:
        rows = [index for index, name in enumerate(cameras) if camera in (name, OVERALL)]
        psnrs, ssims = ([figures[name][row] for row in rows] for name in ("psnr", "ssim"))
        distance = None
        if features is not None and len(rows) > 1:
            distance = frechet_distance(features[rows], real_features[rows])
        result[camera] = Score(
            len(rows), statistics.fmean(psnrs), statistics.fmean(ssims), distance,
            mean_interval(psnrs), mean_interval(ssims),
        )  # fmt: skip
    return result


def evaluate(
    pipe: DiffV2IRPipeline,
    examples: Sequence[Example],
    settings: GenerationSettings | None = None,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Translate and score examples; `settings` default to the bundle's own, with seed 0."""
    settings = pipe.default_settings if settings is None else settings
    settings = settings.replace(seed=settings.seed or 0)
    return score(translate_examples(pipe, examples, settings, batch_size, progress), settings)


def save_sheet(translations: Sequence[Translation], path: str | Path, tile: int = 160, blocks: int = 3) -> None:
    """Write a sheet of scenes, each as visible | map | ours | real, `blocks` scenes a row."""
    header, margin = 22, 12
    blocks = min(blocks, len(translations))
    rows = -(-len(translations) // blocks)
    block_width = tile * len(_SHEET_COLUMNS)
    sheet = Image.new("RGB", (blocks * block_width + (blocks - 1) * margin, header + rows * tile), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for block in range(blocks):
        for column, title in enumerate(_SHEET_COLUMNS):
            x = block * (block_width + margin) + column * tile + tile // 2
            draw.text((x, header // 2), title, fill="black", font=font, anchor="mm")
    for index, scene in enumerate(translations):
        row, block = divmod(index, blocks)
        for column, image in enumerate((scene.visible, scene.segmentation, scene.infrared, scene.real)):
            square = image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(square, (block * (block_width + margin) + column * tile, header + row * tile))
    sheet.save(path)
