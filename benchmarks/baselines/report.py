"""Scores of several methods on the same scenes as one table, and their pictures side by side."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from benchmarks.baselines.pictures import Scene
from diffv2ir.comparison import compare_images
from diffv2ir.evaluate import OVERALL, Score, Translation, score_methods, score_real
from diffv2ir.measures import MEASURES
from diffv2ir.rows import picture_rows
from diffv2ir.scores import View

OURS = "ours"
_COLUMNS = ("camera", "images", "method", "psnr", "psnr_low", "psnr_high", "ssim", "ssim_low", "ssim_high")
_FRECHET = "frechet_efficientnet_lite0"
_IMAGE = ("psnr", "ssim")
_TASKS = ("edge_f1", "edge_f1_visible", "person_contrast", "person_error")


@dataclass(frozen=True)
class MethodScores:
    """Scores by camera (and `OVERALL`), and by example id its camera (`source`), PSNR and SSIM."""

    cameras: dict[str, Score]
    images: dict[str, dict[str, Any]]


def score_pictures(
    scenes: Sequence[Scene], pictures: Mapping[str, Sequence[Image.Image]], views: Sequence[View] | None = None
) -> tuple[dict[str, MethodScores], dict[str, Score]]:
    """Score the pictures of every method (8-bit gray, in the order of the scenes) by `diffv2ir.evaluate`.

    Args:
        views: see `diffv2ir.scores.score`.

    Returns:
        Method -> its scores; camera -> what the real infrared has of the measures, to read the others beside it.
    """
    translations = as_translations(scenes)
    # A set of equal images has no distribution to compare.
    scores, rows = score_methods(pictures, translations, views, without_distances=("constant",))
    methods = {
        method: MethodScores(
            cameras,
            {
                scene.example.id: {
                    "source": scene.example.source,
                    **{name: rows[method][name][place] for name in _IMAGE},
                }
                for place, scene in enumerate(scenes)
            },
        )
        for method, cameras in scores.items()
    }
    return methods, score_real(rows, translations)


def as_translations(scenes: Sequence[Scene]) -> list[Translation]:
    """The scenes as `diffv2ir.evaluate` has them, with the real picture in place of a method's."""
    return [Translation(scene.example, scene.visible, None, scene.real, scene.real, "") for scene in scenes]


def to_csv(scores: dict[str, MethodScores]) -> str:
    """One line for each camera and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    distances = [_FRECHET, *_literature(scores)]
    writer.writerow([*_COLUMNS, *(f"{name}{end}" for name in distances for end in ("", "_low", "_high"))])
    for camera, method, value in _rows(scores):
        figures = [value.psnr, *value.psnr_interval, value.ssim, *value.ssim_interval]
        cells = [f"{figure:.4f}" for figure in figures]
        for name in distances:
            ends = [value.values.get(name), *value.intervals.get(name, (None, None))]
            cells += ["" if end is None else f"{end:.{MEASURES[name].decimals + 1}f}" for end in ends]
        writer.writerow([camera, value.count, method, *cells])
    return text.getvalue()


def to_markdown(scores: dict[str, MethodScores], real: Mapping[str, Score]) -> str:
    """The table by camera, the best figure of each camera in bold; behind it edges and people, and ours against each.

    Args:
        real: see `score_pictures`.
    """
    more = _literature(scores)
    lines = [
        "| camera (images) | method | PSNR, dB (95 %) | SSIM (95 %) | Fréchet (95 %) |"
        + "".join(f" {MEASURES[name].title} (95 %) |" for name in more),
        "| --- | --- | --- | --- | --- |" + " --- |" * len(more),
    ]
    for camera, method, value in _rows(scores):
        others = [own.cameras[camera] for own in scores.values()]
        psnrs = _bold(f"{value.psnr:.2f}", value.psnr == max(other.psnr for other in others))
        ssims = _bold(f"{value.ssim:.3f}", value.ssim == max(other.ssim for other in others))
        psnrs += " ({:.2f} to {:.2f})".format(*value.psnr_interval)
        ssims += " ({:.3f} to {:.3f})".format(*value.ssim_interval)
        cells = [psnrs, ssims, _distance_cell(_FRECHET, value, others)]
        cells += [_distance_cell(name, value, others) for name in more]
        lines.append(f"| {camera} ({value.count}) | {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_tasks(scores, real), *_against(scores)]) + "\n"


def _rows(scores: dict[str, MethodScores]) -> list[tuple[str, str, Score]]:
    cameras = next(iter(scores.values())).cameras
    return [(camera, method, own.cameras[camera]) for camera in cameras for method, own in scores.items()]


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _literature(scores: dict[str, MethodScores]) -> list[str]:
    """Of FID, KID and LPIPS those that were measured."""
    values = [score.values for own in scores.values() for score in own.cameras.values()]
    return [name for name in ("fid", "kid", "lpips") if any(own.get(name) is not None for own in values)]


def _distance_cell(name: str, value: Score, others: Sequence[Score]) -> str:
    """A distance, in bold where it is the smallest, and its interval."""
    distance, form = value.values.get(name), MEASURES[name].format
    if distance is None:
        return "-"
    smallest = min(own for other in others if (own := other.values.get(name)) is not None)
    low, high = (form(end) for end in value.intervals[name])
    return f"{_bold(form(distance), distance == smallest)} ({low} to {high})"


def _tasks(scores: dict[str, MethodScores], real: Mapping[str, Score]) -> list[str]:
    """How edges and people survive, over all scenes."""
    overall = real[OVERALL]
    lines = [
        "",
        f"| all ({overall.count}; people on {overall.people}) | edge F1 (95 %) | with the photo's edges (95 %) | "
        "people's contrast, levels (95 %) | its error, levels (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, value in {"real": overall, **{name: own.cameras[OVERALL] for name, own in scores.items()}}.items():
        lines.append(f"| {method} | {' | '.join(value.cell(name) for name in _TASKS)} |")
    return lines


def _against(scores: dict[str, MethodScores]) -> list[str]:
    """Ours less each other method, image by image, by camera and over all scenes."""
    if OURS not in scores:
        return []
    lines = [
        "",
        "| camera (images) | ours less | PSNR, dB (95 %) | better on | SSIM (95 %) | better on |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ours = scores[OURS]
    compared = {method: compare_images(ours.images, own.images) for method, own in scores.items() if method != OURS}
    for camera, value in ours.cameras.items():
        for method, cameras in compared.items():
            cells = []
            for name in _IMAGE:
                result, form = cameras[camera][name], MEASURES[name].format
                low, high = (form(bound, "+") for bound in result.interval)
                cells += [f"{form(result.difference, '+')} ({low} to {high})", f"{result.win_rate:.0%}"]
            lines.append(f"| {camera} ({value.count}) | {method} | {' | '.join(cells)} |")
    return lines


def to_json(scores: dict[str, MethodScores]) -> dict[str, dict]:
    """Per method the scores by camera and of each image; an infinite PSNR, of equal images, is None."""
    return {
        method: {
            "cameras": {camera: value.to_dict() for camera, value in own.cameras.items()},
            "images": {
                key: {**row, **{name: row[name] if math.isfinite(row[name]) else None for name in _IMAGE}}
                for key, row in own.images.items()
            },
        }
        for method, own in scores.items()
    }


def choose_scenes(scenes: Sequence[Scene], count: int, seed: int) -> list[int]:
    """Places of `count` scenes drawn by a seed, from each camera in turn as long as it has any."""
    cameras: dict[str, list[int]] = {}
    for place in random.Random(seed).sample(range(len(scenes)), len(scenes)):
        cameras.setdefault(scenes[place].example.source, []).append(place)
    turns = [[own[turn] for _, own in sorted(cameras.items()) if turn < len(own)] for turn in range(len(scenes))]
    return [place for turn in turns for place in turn][:count]


def draw_sheet(
    scenes: Sequence[Scene], pictures: dict[str, Sequence[Image.Image]], places: Sequence[int], tile: int = 192
) -> Image.Image:
    """Figure 3 of the paper: a row for each scene of `places`, columns visible, each method, real; ours comes last."""
    methods = [name for name in pictures if name != OURS] + [name for name in pictures if name == OURS]
    titles = ["visible", *methods, "real"]
    chosen = [(scenes[place], [pictures[name][place] for name in methods]) for place in places]
    rows = [[scene.visible, *made, scene.real] for scene, made in chosen]
    return picture_rows(titles, rows, tile, [scene.example.source for scene, _ in chosen])
