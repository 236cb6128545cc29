"""What every benchmark of a bundle starts with: its pipeline, and the pairs that the training held out."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from diffv2ir.data import Example, read_parts
from diffv2ir.evaluate import spread
from diffv2ir.pipeline import DiffV2IRPipeline


def load_from_arguments(description: str) -> tuple[DiffV2IRPipeline, list[Example]]:
    """Read `--data` and `--bundle` from the command line; the bundle, and the held-out pairs of the dataset's train."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="tiny")
    arguments = parser.parse_args()
    pipe = DiffV2IRPipeline.from_pretrained(arguments.bundle)
    pipe.set_progress_bar_config(disable=True)
    _, held_out = read_parts(arguments.data, choose=lambda example: example.kind == "pairs")
    return pipe, few_of_each_scene(held_out)


def few_of_each_scene(examples: Sequence[Example], most: int = 5) -> list[Example]:
    """At most so many examples of a scene, so that no video outweighs a camera."""
    scenes: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        scenes[example.place].append(example)
    return [example for scene in scenes.values() for example in spread(scene, most)]
