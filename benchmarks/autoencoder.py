"""How well a bundle's autoencoder rebuilds held-out images, which bounds what any denoiser behind it can reach.

`python -m benchmarks.autoencoder --data DATASET --bundle BUNDLE`
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from PIL import Image

from diffv2ir.data import read_examples, split_validation
from diffv2ir.evaluate import central_square
from diffv2ir.metrics import psnr, ssim
from diffv2ir.pipeline import DiffV2IRPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="tiny")
    arguments = parser.parse_args()
    pipe = DiffV2IRPipeline.from_pretrained(arguments.bundle)
    _, held_out = split_validation(read_examples(arguments.data, split="train", kinds=["pairs"]))
    for role in ("infrared", "visible"):
        originals = [central_square(Image.open(getattr(example, role)).convert("RGB")) for example in held_out]
        rebuilt = [rebuild(pipe, original) for original in originals]
        gray = [image.convert("L") for image in originals]
        figures = [
            statistics.fmean(metric(a, b) for a, b in zip(rebuilt, gray, strict=True)) for metric in (psnr, ssim)
        ]
        print(f"{role}: PSNR {figures[0]:.2f} dB, SSIM {figures[1]:.3f} of the brightness, {len(gray)} held-out images")


def rebuild(pipe: DiffV2IRPipeline, image: Image.Image) -> Image.Image:
    """Encode and decode; 8-bit gray."""
    return pipe.decode(pipe.encode_image(image) * pipe.vae.config.scaling_factor)


if __name__ == "__main__":
    main()
