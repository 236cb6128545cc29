"""What the methods learn from, and the pairs as the networks of the baselines see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffv2ir.data import DataError, Example, check_examples, read_parts
from diffv2ir.imaging import open_image, to_tensor
from diffv2ir.training.images import random_integer, resize_shorter


@dataclass(frozen=True)
class TrainingView:
    """Shorter side to `resize`, a random square of `crop` px, and in half of the cases mirrored."""

    resize: int = 286
    crop: int = 256
    flip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be at least 1 and at most resize ({self.resize}), got {self.crop}")


def training_pairs(data: Path, kinds: Sequence[str] | None = ("pairs",)) -> list[Example]:
    """The train pairs of a dataset without the scenes that are held out for choices, every file checked.

    Args:
        kinds: of examples; None = all.

    Raises:
        DataError: no dataset, no such pairs, or files that cannot be read.
    """
    training, _ = read_parts(data, choose=lambda example: kinds is None or example.kind in kinds)
    if not training:
        raise DataError(f"{data} has no example of kinds {kinds} to train on")
    check_examples(training)
    return training


def load_view(example: Example, view: TrainingView, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random view of a pair: visible [3, crop, crop] and infrared [1, crop, crop], cut alike, in [-1, 1]."""
    images = [resize_shorter(open_image(path), view.resize) for path in (example.visible, example.infrared)]
    width, height = images[0].size
    left, top = random_integer(width - view.crop, generator), random_integer(height - view.crop, generator)
    mirrored = view.flip and bool(torch.rand((), generator=generator) < 0.5)
    tensors = []
    for image in images:
        image = image.crop((left, top, left + view.crop, top + view.crop))
        tensors.append(to_tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image))
    return tensors[0], tensors[1][:1]
