"""Scores of several methods on the same scenes as one table, and their pictures side by side."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from benchmarks.baselines.pictures import Scene
from diffv2ir.bootstrap import compare
from diffv2ir.evaluate import Score, Translation, score_methods
from diffv2ir.rows import picture_rows

OURS = "ours"
_COLUMNS = ("camera", "images", "method", "psnr", "psnr_low", "psnr_high", "ssim", "ssim_low", "ssim_high")
_FRECHET = "frechet_efficientnet_lite0"


@dataclass(frozen=True)
class MethodScores:
    """Scores by camera (and `OVERALL`), and PSNR and SSIM of every image by example id."""

    cameras: dict[str, Score]
    images: dict[str, dict[str, float]]


def score_pictures(scenes: Sequence[Scene], pictures: Mapping[str, Sequence[Image.Image]]) -> dict[str, MethodScores]:
    """Score the pictures of every method (8-bit gray, in the order of the scenes) by `diffv2ir.evaluate`."""
    translations = [Translation(scene.example, scene.visible, None, scene.real, scene.real, "") for scene in scenes]
    scores, rows = score_methods(pictures, translations)
    return {
        method: MethodScores(
            cameras,
            {
                scene.example.id: {name: rows[method][name][place] for name in ("psnr", "ssim")}
                for place, scene in enumerate(scenes)
            },
        )
        for method, cameras in scores.items()
    }


def to_csv(scores: dict[str, MethodScores]) -> str:
    """One line for each camera and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, _FRECHET])
    for camera, method, value in _rows(scores):
        frechet = value.frechet_efficientnet_lite0
        figures = [value.psnr, *value.psnr_interval, value.ssim, *value.ssim_interval]
        cells = [f"{figure:.4f}" for figure in figures]
        writer.writerow([camera, value.count, method, *cells, "" if frechet is None else f"{frechet:.2f}"])
    return text.getvalue()


def to_markdown(scores: dict[str, MethodScores]) -> str:
    """The table by camera, the best figure of each camera in bold; behind it ours against each other method."""
    lines = [
        "| camera (images) | method | PSNR, dB (95 %) | SSIM (95 %) | Fréchet |",
        "| --- | --- | --- | --- | --- |",
    ]
    for camera, method, value in _rows(scores):
        others = [own.cameras[camera] for own in scores.values()]
        psnrs = _bold(f"{value.psnr:.2f}", value.psnr == max(other.psnr for other in others))
        ssims = _bold(f"{value.ssim:.3f}", value.ssim == max(other.ssim for other in others))
        psnrs += " ({:.2f} to {:.2f})".format(*value.psnr_interval)
        ssims += " ({:.3f} to {:.3f})".format(*value.ssim_interval)
        lines.append(f"| {camera} ({value.count}) | {method} | {psnrs} | {ssims} | {_frechet_cell(value, others)} |")
    return "\n".join([*lines, *_against(scores)]) + "\n"


def _rows(scores: dict[str, MethodScores]) -> list[tuple[str, str, Score]]:
    cameras = next(iter(scores.values())).cameras
    return [(camera, method, own.cameras[camera]) for camera in cameras for method, own in scores.items()]


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _frechet_cell(value: Score, others: Sequence[Score]) -> str:
    distance = value.frechet_efficientnet_lite0
    if distance is None:
        return "-"
    return _bold(f"{distance:.1f}", distance == min(other.frechet_efficientnet_lite0 for other in others))


def _against(scores: dict[str, MethodScores]) -> list[str]:
    """Ours less each other method, image by image, over all scenes."""
    if OURS not in scores:
        return []
    lines = [
        "",
        "| ours less | PSNR, dB (95 %) | better on | SSIM (95 %) | better on |",
        "| --- | --- | --- | --- | --- |",
    ]
    ours = scores[OURS].images
    for method, own in scores.items():
        if method == OURS:
            continue
        cells = []
        for name, decimals in (("psnr", 2), ("ssim", 3)):
            result = compare([ours[key][name] for key in ours], [own.images[key][name] for key in ours])
            low, high = (f"{bound:+.{decimals}f}" for bound in result.interval)
            cells += [f"{result.difference:+.{decimals}f} ({low} to {high})", f"{result.win_rate:.0%}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def to_json(scores: dict[str, MethodScores]) -> dict[str, dict]:
    """Per method the scores by camera and of each image; an infinite PSNR, of equal images, is None."""
    return {
        method: {
            "cameras": {camera: value.to_dict() for camera, value in own.cameras.items()},
            "images": {
                key: {name: value if math.isfinite(value) else None for name, value in row.items()}
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
