"""Figures and a sheet of held-out scenes for a checkpoint, by the pipeline and protocol of the final score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils.torch_utils import empty_device_cache
from PIL import Image

from diffv2ir.data import Example
from diffv2ir.evaluate import EVALUATION_SIZE, OVERALL, save_sheet, score, spread, translate_examples
from diffv2ir.memory import place
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.loop import process_state

IMAGES = 12
STEPS = 8


def validate_bundle(
    bundle: Path, examples: Sequence[Example], step: int, output: Path
) -> dict[str, float | Image.Image]:
    """PSNR, SSIM and a sheet of at most `IMAGES` held-out examples; the sheet is also `output/samples/step-*.png`.

    On a GPU in half precision, and in the memory mode that fits beside the training.
    """
    device = process_state().device
    on_gpu = device.type == "cuda"
    pipe = DiffV2IRPipeline.from_pretrained(bundle, dtype=torch.float16 if on_gpu else torch.float32)
    if on_gpu:
        empty_device_cache(device.type)  # what the training's last step has left there counts as taken
    place(pipe, device)
    pipe.set_progress_bar_config(disable=True)
    defaults = pipe.default_settings
    settings = defaults.replace(
        style=pipe.styles[-1], sampler="dpmpp_2m", steps=min(STEPS, defaults.steps), seed=0,
        resolution=min(EVALUATION_SIZE, defaults.resolution),
    )  # fmt: skip
    translations = translate_examples(pipe, spread(examples, IMAGES), settings)
    samples = output / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    sheet = samples / f"step-{step:07d}.png"
    save_sheet(translations, sheet)
    overall = score(translations, settings).model[OVERALL]
    return {
        "validation/psnr": overall.psnr,
        "validation/ssim": overall.ssim,
        "validation/samples": Image.open(sheet),
    }
