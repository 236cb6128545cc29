"""The evaluated scenes, and the pictures that each method makes of them: all as in `diffv2ir.evaluate`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageStat
from torch import nn

from benchmarks.baselines import ip2p
from diffv2ir.data import Example, check_examples, read_examples
from diffv2ir.evaluate import central_square, example_seed, gray_square, spread, translate_examples
from diffv2ir.imaging import from_levels, open_image, to_tensor
from diffv2ir.outputs import output_path
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings


@dataclass(frozen=True)
class Scene:
    """A pair at the evaluation size: `visible` RGB, `real` 8-bit gray."""

    example: Example
    visible: Image.Image
    real: Image.Image

    @property
    def seed(self) -> int:
        """Of everything random in the picture that a method makes of it."""
        return example_seed(self.example, 0)


def read_scenes(data: Path, split: str, limit: int | None = None) -> list[Scene]:
    """The pairs of a split, or `limit` of them, evenly spread.

    Raises:
        DataError: no dataset, no such pairs, or files that cannot be read.
    """
    examples = spread(read_examples(data, split=split, kinds=["pairs"]), limit)
    check_examples(examples)
    return [
        Scene(example, central_square(open_image(example.visible)), gray_square(example.infrared))
        for example in examples
    ]


def camera_levels(training: Sequence[Example]) -> tuple[dict[str, float], float]:
    """The mean gray level 0..255 of each camera's infrared training images, and of all of them."""
    levels: dict[str, list[float]] = {}
    for example in training:
        levels.setdefault(example.source, []).append(ImageStat.Stat(gray_square(example.infrared)).mean[0])
    overall = statistics.fmean(level for own in levels.values() for level in own)
    return {camera: statistics.fmean(own) for camera, own in levels.items()}, overall


def constant_pictures(scenes: Sequence[Scene], training: Sequence[Example]) -> Iterator[Image.Image]:
    """One gray level for all images of a camera, of a camera that was never trained on that of all training images."""
    levels, overall = camera_levels(training)
    for scene in scenes:
        yield Image.new("L", scene.real.size, round(levels.get(scene.example.source, overall)))


def gray_pictures(scenes: Sequence[Scene]) -> Iterator[Image.Image]:
    """The photo turned gray."""
    return (scene.visible.convert("L") for scene in scenes)


@torch.no_grad()
def network_pictures(scenes: Sequence[Scene], network: nn.Module, device: str) -> Iterator[Image.Image]:
    """What a network of `networks` makes of each photo; it stays in training mode, as Pix2Pix is used."""
    network.to(device).train()
    for scene in scenes:
        with torch.random.fork_rng():
            torch.manual_seed(scene.seed)  # for dropout
            made = network(to_tensor(scene.visible)[None].to(device))[0, 0]  # [H, W]
        yield from_levels(((made + 1) / 2).cpu().numpy())


def ip2p_pictures(
    scenes: Sequence[Scene], pipe: DiffV2IRPipeline, settings: GenerationSettings
) -> Iterator[Image.Image]:
    """The InstructPix2Pix-style bundle with settings of ours, but for the style, of which it has none."""
    return ip2p.translate(pipe, [scene.visible for scene in scenes], settings, [scene.seed for scene in scenes])


def our_pictures(
    scenes: Sequence[Scene], pipe: DiffV2IRPipeline, settings: GenerationSettings
) -> Iterator[Image.Image]:
    """A bundle with its own caption and map."""
    for scene in scenes:
        yield translate_examples(pipe, [scene.example], settings.replace(seed=0))[0].infrared


def save_pictures(scenes: Sequence[Scene], pictures: Iterator[Image.Image], folder: Path) -> list[Image.Image]:
    """Write pictures as `folder/ID.png`; returns them."""
    made = []
    for scene, picture in zip(scenes, pictures, strict=True):
        path = output_path(folder, scene.example.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        made.append(picture)
    return made
