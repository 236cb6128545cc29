"""Score settings of a bundle on the held-out scenes of the training split, to choose its defaults; prints Markdown.

What each costs: `python -m train.ablate table4`.

`python -m benchmarks.choose_defaults --data DATASET --bundle BUNDLE`
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from diffv2ir.data import Example, read_parts
from diffv2ir.evaluate import OVERALL, Translation, central_square, gray_square, score, settings_for, spread
from diffv2ir.imaging import open_image
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings
from diffv2ir.training.tiny import DEFAULTS

# What tiny is packed with, and settings around it.
CENTRE = {name: DEFAULTS[name] for name in ("steps", "resolution", "edge_radius", "visible_scale", "gain_control")}
AROUND = [
    *[CENTRE | {"resolution": resolution} for resolution in (128, 160, 192, 224, 256)],
    *[CENTRE | {"edge_radius": radius} for radius in (0, 6, 8, 10, 14, 16, 20)],
    *[CENTRE | {"visible_scale": scale} for scale in (0.75, 0.9, 1.0, 1.1, 1.25, 1.5)],
    *[CENTRE | {"gain_control": share} for share in (0, 0.1, 0.15, 0.25, 0.5)],
    CENTRE | {"segmentation_scale": 1.5, "text_scale": 1.5},
    *[CENTRE | {"steps": steps} for steps in (1, 2, 4, 10)],
    CENTRE | {"steps": 10, "sampler": "euler_ancestral"},
]
CANDIDATES = [CENTRE, *[changes for changes in AROUND if changes != CENTRE]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="tiny")
    arguments = parser.parse_args()
    pipe = DiffV2IRPipeline.from_pretrained(arguments.bundle)
    _, held_out = read_parts(arguments.data, choose=lambda example: example.kind == "pairs")
    held_out = few_of_each_scene(held_out)
    conditionings = [pipe.prepare(central_square(open_image(example.visible))) for example in held_out]
    print(f"{len(held_out)} held-out pairs of train; each row changes the first one\n")
    print("| settings | PSNR | SSIM | Fréchet |")
    print("| --- | --- | --- | --- |", flush=True)
    base = pipe.default_settings.replace(**DEFAULTS, seed=0)
    for changes in CANDIDATES:
        settings = base.replace(**changes)
        translations = [
            translate(pipe, example, conditioning, settings)
            for example, conditioning in zip(held_out, conditionings, strict=True)
        ]
        result = score(translations, settings).model[OVERALL]
        distance = result.frechet_efficientnet_lite0
        cells = f"{result.psnr:.2f} | {result.ssim:.3f} | {'-' if distance is None else f'{distance:.0f}'}"
        shown = {name: value for name, value in changes.items() if changes is CENTRE or CENTRE.get(name) != value}
        print(f"| {', '.join(f'{name} {value}' for name, value in shown.items())} | {cells} |", flush=True)


def few_of_each_scene(examples: Sequence[Example], most: int = 5) -> list[Example]:
    """At most so many examples of a scene, so that no video outweighs a camera."""
    scenes: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        scenes[example.place].append(example)
    return [example for scene in scenes.values() for example in spread(scene, most)]


def translate(
    pipe: DiffV2IRPipeline, example: Example, conditioning: Conditioning, settings: GenerationSettings
) -> Translation:
    output = pipe.generate(conditioning, settings_for(example, settings))
    real = gray_square(example.infrared)
    return Translation(example, conditioning.image, conditioning.segmentation, output.image, real, output.caption)


if __name__ == "__main__":
    main()
