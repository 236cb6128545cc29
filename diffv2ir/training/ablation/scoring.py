"""Photos that are understood once and translated as often as there are cells, by the protocol of `evaluate`."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffv2ir.data import DataError, Example, read_examples, read_parts
from diffv2ir.evaluate import Translation, central_square, gray_square, score, settings_for
from diffv2ir.imaging import open_image
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.scores import View
from diffv2ir.settings import GenerationSettings
from diffv2ir.training.loop import process_state

logger = logging.getLogger(__name__)

SPLITS = ("validation", "train", "test")

Draw = Callable[[Example, Conditioning], tuple[Image.Image, int]]
"""An example and what is known of its photo -> the picture, and how often the UNet was evaluated for it."""


class Photos:
    """Pairs with everything that is known about their photos; made at the first use, by `pipe`.

    Bundles of one training share captioner, segmenter, text encoder and autoencoder, so one understanding serves all.

    Args:
        views: networks of the distances that pictures of these photos are scored by, see `scores.score`.
    """

    def __init__(
        self,
        pipe: DiffV2IRPipeline,
        examples: Sequence[Example],
        settings: GenerationSettings,
        views: Sequence[View] | None = None,
    ):
        self.pipe, self.examples, self.settings, self.views = pipe, list(examples), settings, views

    @cached_property
    def conditionings(self) -> list[Conditioning]:
        """One for each example, of the central square of its photo."""
        logger.info("preparing %d photos", len(self.examples))
        preparation = self.settings.preparation
        return [self.pipe.prepare(central_square(open_image(e.visible)), **preparation) for e in self.examples]


def load_pipe(bundle: str | Path) -> DiffV2IRPipeline:
    """A bundle on this process's device, quiet."""
    pipe = DiffV2IRPipeline.from_pretrained(bundle).to(process_state().device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def choose_pairs(
    data: Path, split: str = "validation", sources: Sequence[str] | None = None, limit: int | None = None, seed: int = 0
) -> list[Example]:
    """Pairs of a dataset folder to score on, in the dataset's order.

    Args:
        split: "validation" is the held-out scenes of train, "train" the rest of it.
        limit: at most so many, drawn by `seed`; a larger limit draws the same and more.

    Raises:
        DataError: there is none. ValueError: an unknown split, or a limit below 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if split == "test":
        examples = read_examples(data, "test", ["pairs"], sources)
    else:
        train, validation = read_parts(
            data, choose=lambda e: e.kind == "pairs" and (sources is None or e.source in sources)
        )
        examples = validation if split == "validation" else train
    if not examples:
        raise DataError(f"{data} has no pairs of sources {sources} in its {split} part; choose another split")
    drawn = set(by_lot(examples, seed)[:limit])
    return [example for example in examples if example in drawn]


def by_lot(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in a random order that depends on `seed` and their names alone."""
    return sorted(
        examples, key=lambda example: hashlib.sha256(f"{seed}/{example.source}/{example.id}".encode()).digest()
    )


def switch_off(conditioning: Conditioning, without: Sequence[str]) -> Conditioning:
    """The same photo with "map" or "caption" off, as if it had been prepared so."""
    changes: dict[str, Any] = {}
    if "map" in without:
        changes |= {
            "segmentation": None,
            "segmentation_latents": torch.zeros_like(conditioning.segmentation_latents),
            "own_map": False,
        }
    if "caption" in without:
        changes |= {"caption": "", "prompt": "", "prompt_embeds": conditioning.null_embeds}
    return replace(conditioning, **changes)


def generating(pipe: DiffV2IRPipeline, settings: GenerationSettings, without: Sequence[str] = ()) -> Draw:
    """Draws with `pipe`; each example has its own noise, the same in every cell."""
    pipe.set_style(settings.style)  # before any clock runs

    def draw(example: Example, conditioning: Conditioning) -> tuple[Image.Image, int]:
        output = pipe.generate(switch_off(conditioning, without), settings_for(example, settings))
        return output.image, output.evaluations

    return draw


def warm_up(photos: Photos, draw: Draw) -> None:
    """One picture that nobody times: the first one pays for what a device sets up."""
    draw(photos.examples[0], photos.conditionings[0])


def score_cell(photos: Photos, settings: GenerationSettings, draw: Draw) -> dict[str, Any]:
    """Draw and score all photos, one at a time, so that the times are those of one photo.

    Returns:
        `methods`: model, visible_gray, constant -> camera -> `Score`; `images`: PSNR and SSIM by example; means per
        photo, without its preparation: `seconds` on the clock, `cpu_seconds` over all threads of this process, which
        other work on the machine does not lengthen, and `evaluations` of the UNet.
    """
    translations, totals = [], {"seconds": 0.0, "cpu_seconds": 0.0, "evaluations": 0}
    for example, conditioning in zip(photos.examples, photos.conditionings, strict=True):
        wall, busy = time.perf_counter(), time.process_time()
        image, evaluations = draw(example, conditioning)
        totals["seconds"] += time.perf_counter() - wall
        totals["cpu_seconds"] += time.process_time() - busy
        totals["evaluations"] += evaluations
        real = gray_square(example.infrared)
        drawn = conditioning.segmentation or Image.new("RGB", image.size)
        translations.append(Translation(example, conditioning.image, drawn, image, real, conditioning.caption))
    report = score(translations, settings, photos.views).to_dict()
    return {
        "methods": {name: report[name] for name in ("model", "visible_gray", "constant")},
        "images": report["images"],
        **{name: total / len(translations) for name, total in totals.items()},
    }
