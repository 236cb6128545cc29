"""The numbers of an evaluation: what each is called, how it is written, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One number. `better` is 1 when larger values are better, -1 when smaller ones are, 0 when it only describes."""

    name: str
    title: str
    decimals: int
    better: int
    unit: str = ""

    def format(self, value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}.{self.decimals}f}"


# One value for every image.
IMAGE_MEASURES = (
    Measure("psnr", "PSNR", 2, 1, " dB"),
    Measure("ssim", "SSIM", 3, 1),
    Measure("perceptual_efficientnet_lite0", "perceptual", 3, -1),
    Measure("lpips", "LPIPS", 3, -1),
    Measure("edge_f1", "edge F1", 3, 1),
    Measure("edge_f1_visible", "to visible", 3, 0),
    Measure("person_contrast", "contrast", 1, 0, " levels"),
    Measure("person_brighter", "brighter", 2, 0),
    Measure("person_sign", "as real", 2, 1),
    Measure("person_error", "error", 1, -1, " levels"),
)

# One value for a set of images.
SET_MEASURES = (
    Measure("frechet_efficientnet_lite0", "Fréchet", 1, -1),
    Measure("kernel_efficientnet_lite0", "kernel", 4, -1),
    Measure("fid", "FID", 1, -1),
    Measure("kid", "KID", 4, -1),
)

MEASURES = {measure.name: measure for measure in (*IMAGE_MEASURES, *SET_MEASURES)}
