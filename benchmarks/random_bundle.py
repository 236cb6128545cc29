"""A pipeline of random weights at true shape: it takes the real one's time and memory, and nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.vlum import SamSegmenter

SCHEDULE = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="linspace"
)


def random_pipeline(shapes: Mapping[str, Any], device: str | torch.device, dtype: torch.dtype) -> DiffV2IRPipeline:
    """A pipeline with random weights, made on `device`; SAM's are float32, as in a bundle."""
    with TemporaryDirectory() as folder:
        tokenizer, words = clip_tokenizer(Path(folder)), _bert_tokenizer(Path(folder), shapes["captioner"])
    vision = shapes["captioner"]["vision_config"]
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    torch.manual_seed(0)
    with torch.device(device):
        models = {
            "unet": UNet2DConditionModel(**shapes["unet"]),
            "vae": AutoencoderKL(**shapes["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shapes["text_encoder"])),
            "captioner": BlipForConditionalGeneration(BlipConfig(**shapes["captioner"])),
        }
        segmenter = SamSegmenter(**shapes["segmenter"]).eval()
    return DiffV2IRPipeline(
        **{name: model.to(dtype).eval() for name, model in models.items()},
        segmenter=segmenter,
        tokenizer=tokenizer,
        scheduler=DDPMScheduler(**SCHEDULE),
        captioner_processor=BlipProcessor(BlipImageProcessor(size=size), words),
        name="random weights",
    )


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, with single letters for a vocabulary."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _bert_tokenizer(folder: Path, captioner: Mapping[str, Any]) -> BertTokenizer:
    """BLIP's, with as many words as the model can say."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    count = captioner["text_config"]["vocab_size"] - len(special)
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{number}" for number in range(count))]) + "\n")
    return BertTokenizer(str(folder / "vocab.txt"))
