"""Score settings of a bundle on the held-out scenes of the training split, to choose its defaults; prints Markdown.

`python -m benchmarks.choose_defaults --data DATASET --bundle BUNDLE`
"""

from __future__ import annotations

import time

from benchmarks.held_out import load_from_arguments
from diffv2ir.data import Example
from diffv2ir.evaluate import OVERALL, Translation, central_square, example_seed, gray_square, score
from diffv2ir.imaging import open_image
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings

CANDIDATES = [
    *[dict(steps=1, edge_radius=6, resolution=resolution) for resolution in (128, 160, 192, 256)],
    *[dict(steps=1, edge_radius=radius, resolution=160) for radius in (0, 3, 10)],
    *[dict(steps=1, edge_radius=6, resolution=160, visible_scale=scale) for scale in (1.25, 1.5)],
    dict(steps=1, edge_radius=6, resolution=160, visible_scale=1.5, segmentation_scale=1.5, text_scale=1.5),
    dict(steps=1, edge_radius=8, resolution=160, visible_scale=1.25),
    *[dict(steps=steps, edge_radius=6, resolution=160) for steps in (4, 10)],
    dict(steps=10, edge_radius=6, resolution=160, sampler="euler_ancestral"),
]


def main() -> None:
    pipe, held_out = load_from_arguments(__doc__)
    conditionings = [pipe.prepare(central_square(open_image(example.visible))) for example in held_out]
    print(f"{len(held_out)} held-out pairs of train\n\n| settings | PSNR | SSIM | Fréchet | s per picture |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    base = pipe.default_settings.replace(
        sampler="dpmpp_2m", visible_scale=1.0, segmentation_scale=1.0, text_scale=1.0, seed=0
    )
    for changes in CANDIDATES:
        settings = base.replace(**changes)
        started = time.perf_counter()
        translations = [
            translate(pipe, example, conditioning, settings)
            for example, conditioning in zip(held_out, conditionings, strict=True)
        ]
        seconds = (time.perf_counter() - started) / len(held_out)
        result = score(translations, settings).model[OVERALL]
        cells = f"{result.psnr:.2f} | {result.ssim:.3f} | {result.frechet_efficientnet_lite0 or 0:.0f} | {seconds:.2f}"
        print(f"| {', '.join(f'{name} {value}' for name, value in changes.items())} | {cells} |", flush=True)


def translate(
    pipe: DiffV2IRPipeline, example: Example, conditioning: Conditioning, settings: GenerationSettings
) -> Translation:
    output = pipe.generate(conditioning, settings.replace(seed=example_seed(example, settings.seed)))
    real = gray_square(example.infrared)
    return Translation(example, conditioning.image, conditioning.segmentation, output.image, real, output.caption)


if __name__ == "__main__":
    main()
