"""How well a bundle's autoencoder rebuilds held-out images, which bounds what any denoiser behind it can reach.

`python -m benchmarks.autoencoder --data DATASET --bundle BUNDLE`
"""

from __future__ import annotations

import statistics

from PIL import Image

from benchmarks.held_out import load_from_arguments
from diffv2ir.evaluate import central_square
from diffv2ir.imaging import open_image
from diffv2ir.metrics import psnr, ssim
from diffv2ir.pipeline import DiffV2IRPipeline


def main() -> None:
    pipe, held_out = load_from_arguments(__doc__)
    for role in ("infrared", "visible"):
        originals = [central_square(open_image(getattr(example, role))) for example in held_out]
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
