"""What a bundle understands of photos: its captions against those of people, its maps against graph segmentation.

`python -m benchmarks.understanding --data DATASET --bundle BUNDLE [--split test]` prints Markdown: each figure with
its 95 % bootstrap interval, and the captions of the page's examples, which are unlike the photos of the training.

A caption is right about the time if it says night or not as the person did; about the main thing if it names the first
thing that the person's caption names. Boundary recall is the share of the boundaries of
graph segmentation (Felzenszwalb & Huttenlocher 2004, at one scale for all) within `TOLERANCE` pixels of a boundary of
the map; boundary precision the other way round.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb, find_boundaries

from diffv2ir.bootstrap import mean_interval
from diffv2ir.data import read_examples
from diffv2ir.imaging import open_image
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.captioner import things_named
from diffv2ir.ui.examples import example_photos
from diffv2ir.vlum import caption_images, segmentation_map

TOLERANCE = 2
SCALE, SMALLEST = 600.0, 190
FEW, MANY = 10, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    pipe = DiffV2IRPipeline.from_pretrained(arguments.bundle)
    examples = read_examples(arguments.data, split=arguments.split, kinds=["pairs"])
    photos = [open_image(example.visible) for example in examples]

    def caption(photo: Image.Image) -> str:
        return caption_images(pipe.captioner, pipe.captioner_processor, [photo])[0]

    captions = [caption(photo) for photo in photos]
    maps = [
        map_figures(photo, segmentation_map(pipe.segmenter.masks(photo), photo.size, "regions")) for photo in photos
    ]
    named = [(caption, example.caption) for caption, example in zip(captions, examples, strict=True) if example.caption]
    shares = caption_figures(*map(list, zip(*named, strict=True))) if named else {}
    shares[f"{FEW} to {MANY} regions"] = [float(FEW <= figure["regions"] <= MANY) for figure in maps]
    regions = [figure["regions"] for figure in maps]
    rows = [
        (name, _percent(statistics.fmean(hits)), *map(_percent, mean_interval(hits))) for name, hits in shares.items()
    ]
    for name in ("recall", "precision"):
        values = [figure[name] for figure in maps]
        rows.append((f"boundary {name}", *(f"{v:.2f}" for v in (statistics.fmean(values), *mean_interval(values)))))
    print(
        f"`{arguments.split}`, {len(photos)} photos; regions of a map: median {statistics.median(regions):g}, "
        f"{min(regions)} to {max(regions)}\n"
    )
    print("| | mean | 95 % |\n| --- | --- | --- |")
    for name, mean, low, high in rows:
        print(f"| {name} | {mean} | {low} to {high} |")
    print("\n| a photo unlike those of the training | caption |\n| --- | --- |")
    for path, _, label in example_photos(("general",)):
        print(f"| {label.lower()} | {caption(open_image(path))} |")


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def caption_figures(captions: list[str], truths: list[str]) -> dict[str, list[float]]:
    """For each caption 1 if it is right about night or day, and about the first thing that the true one names, or 0."""

    def at_night(text: str) -> bool:
        return re.search(r"\b(night|nighttime)\b", text.lower()) is not None

    def names(caption: str, truth: str) -> bool:
        return bool(things_named(truth)) and first_mentioned(truth) in things_named(caption)

    both = list(zip(captions, truths, strict=True))
    return {
        "caption: day or night": [float(at_night(caption) == at_night(truth)) for caption, truth in both],
        "caption: the main thing": [float(names(caption, truth)) for caption, truth in both],
    }


def first_mentioned(text: str) -> str | None:
    """The thing whose word comes first in a free caption; None if it names none."""
    places = things_named(text)
    return min(places, key=places.get) if places else None


def map_figures(photo: Image.Image, drawn: Image.Image) -> dict[str, float]:
    """Number of connected regions of a map of at least `SMALLEST` / 4 pixels, and how its boundaries agree."""
    colours = np.asarray(drawn).astype(np.int64) @ (1, 256, 65536)
    labels = np.unique(colours, return_inverse=True)[1].reshape(colours.shape)
    regions = 0
    for label in range(labels.max() + 1):
        areas = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)[2][
            1:, cv2.CC_STAT_AREA
        ]
        regions += int((areas >= SMALLEST / 4).sum())
    truth = find_boundaries(felzenszwalb(np.asarray(photo), scale=SCALE, sigma=0.8, min_size=SMALLEST))
    found = find_boundaries(labels)
    return {"regions": regions, "recall": share_near(truth, found), "precision": share_near(found, truth)}


def share_near(points: np.ndarray, targets: np.ndarray) -> float:
    """The share of the true pixels of `points` with a true pixel of `targets` at most `TOLERANCE` pixels away."""
    if not points.any():
        return 0.0
    wide = cv2.dilate(targets.astype(np.uint8), np.ones((2 * TOLERANCE + 1,) * 2, np.uint8)) > 0
    return float(wide[points].mean())


if __name__ == "__main__":
    main()
