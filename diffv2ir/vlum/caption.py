"""BLIP captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipProcessor

# How the released code of the paper samples, with BLIP's own code (Li et al. 2022): it goes on after these words, which
# count among the tokens and are cut off.
MIN_TOKENS, MAX_TOKENS, TOP_P, REPETITION_PENALTY = 5, 20, 0.9, 1.1
OPENING = "a picture of"


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
        sample: False = greedy, the same caption every time; True = top-p 0.9 with 5 to 20 tokens and `OPENING` before
            them, which a model whose vocabulary lacks it goes without, as the released code of the paper does;
            repeatable through `seed`.
        max_tokens: longest caption; None = the model's own limit, else 20.
    """
    if not images:
        return []
    inputs = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    pixels = inputs.pixel_values.to(model.device, model.dtype)  # [N, 3, h, w]
    limit = max_tokens or model.generation_config.max_new_tokens or MAX_TOKENS
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": limit}
    opening = ""
    if sample:
        opening, prompt = _opening(processor, len(images))
        count = prompt["input_ids"].shape[1] - 1 if prompt else 0  # the last one ends a text, and is taken away
        options = {
            **{name: value.to(model.device) for name, value in prompt.items()},
            "do_sample": True,
            "top_p": TOP_P,
            "repetition_penalty": REPETITION_PENALTY,
            "min_new_tokens": MIN_TOKENS - count,
            "max_new_tokens": MAX_TOKENS - count,
        }
    with torch.random.fork_rng(devices=[pixels.device] if pixels.device.type == "cuda" else []):
        torch.manual_seed(seed)  # transformers' generate draws from the global generator
        tokens = model.generate(pixel_values=pixels, **options)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return [" ".join(text.removeprefix(opening).split()) for text in texts]


def _opening(processor: BlipProcessor, count: int) -> tuple[str, dict[str, Tensor]]:
    """`OPENING` and its tokens, once for each of `count` images; both empty where a word of it is unknown."""
    tokenizer = processor.tokenizer
    if not set(OPENING.split()) <= tokenizer.get_vocab().keys():
        return "", {}
    tokens = tokenizer([OPENING] * count, return_tensors="pt")
    return OPENING, {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
