"""BLIP captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

MIN_TOKENS, MAX_TOKENS, TOP_P = 5, 20, 0.9


@torch.inference_mode()
def caption_images(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    images: Sequence[Image.Image],
    *,
    sample: bool = False,
    seed: int = 0,
    max_tokens: int | None = None,
) -> list[str]:
    """Describe images in a few words.

    Args:
        images: RGB images of any size.
        sample: False = greedy, the same caption every time; True = top-p 0.9 with 5 to 20 tokens, as the released
            code of the paper does, repeatable through `seed`.
        max_tokens: longest caption; None = the model's own limit, else 20.
    """
    if not images:
        return []
    inputs = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    pixels = inputs.pixel_values.to(model.device, model.dtype)  # [N, 3, h, w]
    limit = max_tokens or model.generation_config.max_new_tokens or MAX_TOKENS
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": limit}
    if sample:
        options = {"do_sample": True, "top_p": TOP_P, "min_new_tokens": MIN_TOKENS, "max_new_tokens": MAX_TOKENS}
    with torch.random.fork_rng(devices=[pixels.device] if pixels.device.type == "cuda" else []):
        torch.manual_seed(seed)  # transformers' generate draws from the global generator
        tokens = model.generate(pixel_values=pixels, **options)
    return [" ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]
