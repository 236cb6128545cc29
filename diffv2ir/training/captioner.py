"""The tiny BLIP: real classes at 128 px, trained on visible images and captions from scratch."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from diffv2ir.data import Example
from diffv2ir.training.images import load_rgb, random_integer, resize_shorter
from diffv2ir.training.loop import Draw, Loop, LoopConfig, write_atomically
from diffv2ir.vlum import caption_images

logger = logging.getLogger(__name__)

MAX_TOKENS = 36
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
_MIRROR = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class CaptionerConfig:
    """Widths of BLIP's vision and text towers, image side in pixels, and how often object crops are seen."""

    loop: LoopConfig
    hidden_size: int = 160
    vision_layers: int = 4
    text_layers: int = 3
    heads: int = 4
    image_size: int = 128
    patch_size: int = 16
    crops_weight: float = 0.15
    smallest_crop: float = 0.75
    dropout: float = 0.1


def build_processor(captions: Iterable[str], image_size: int) -> BlipProcessor:
    """A `BlipProcessor` whose vocabulary is the words of the captions, and single characters for all others."""
    counts = Counter(word for caption in captions for word in re.findall(r"\w+|[^\w\s]", caption.lower()))
    characters = sorted({character for word in counts for character in word} | set("abcdefghijklmnopqrstuvwxyz"))
    entries = [*_SPECIAL, *(word for word, _ in counts.most_common())]
    entries += [c for c in characters if c not in counts] + [f"##{c}" for c in characters]
    tokenizer = BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, model_max_length=64)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return BlipProcessor(BlipImageProcessor(size={"height": image_size, "width": image_size}), tokenizer)


def build_captioner(config: CaptionerConfig, processor: BlipProcessor) -> BlipForConditionalGeneration:
    """BLIP of the configured widths, with random weights."""
    tokenizer = processor.tokenizer
    towers = dict(hidden_size=config.hidden_size, intermediate_size=4 * config.hidden_size)
    model = BlipForConditionalGeneration(
        BlipConfig(
            vision_config=dict(
                **towers,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
            ),
            text_config=dict(
                **towers,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.heads,
                encoder_hidden_size=config.hidden_size,
                vocab_size=len(tokenizer),
                max_position_embeddings=64,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                bos_token_id=tokenizer.bos_token_id,
                sep_token_id=tokenizer.sep_token_id,
                eos_token_id=tokenizer.sep_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            projection_dim=config.hidden_size,
            image_text_hidden_size=config.hidden_size,
        )
    )
    model.generation_config.max_new_tokens = MAX_TOKENS
    return model


def train_captioner(examples: Sequence[Example], output: Path, config: CaptionerConfig) -> Path:
    """Train; writes `captioner/` and `captioner_processor/` into `output`, returns the former. Resumable."""
    done = output / "captioner"
    if (done / "config.json").is_file():
        return done
    chosen = [example for example in examples if example.visible and example.caption]
    processor = build_processor((e.caption for e in chosen), config.image_size)
    torch.manual_seed(config.loop.seed)
    model = build_captioner(config, processor)
    pictures = [np.asarray(resize_shorter(load_rgb(e.visible), config.image_size + 32)) for e in chosen]
    tokenizer = processor.tokenizer

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        images, texts = [], []
        for draw in draws:
            image, caption = _augment(pictures[draw.index], chosen[draw.index].caption, config, draw.generator())
            images.append(image)
            texts.append(caption)
        device = next(model.parameters()).device
        pixels = processor.image_processor(images, return_tensors="pt").pixel_values.to(device)
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(device)
        tokens.input_ids[:, 0] = tokenizer.bos_token_id  # [DEC] begins a caption, as in BLIP
        labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)
        output = model(
            pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=labels
        )
        return {"loss": output.loss}

    def save(folder: Path, model: nn.Module) -> None:
        model.save_pretrained(folder / "captioner")
        processor.save_pretrained(folder / "captioner_processor")

    loop = Loop(
        config.loop, output, model, loss, len(chosen), save=save, name="captioner",
        weights=[1.0 if e.kind == "pairs" else config.crops_weight for e in chosen],
    )  # fmt: skip
    trained = loop.run().eval()
    (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": loop.history}))
    processor.save_pretrained(output / "captioner_processor")
    write_atomically(done, trained.save_pretrained)
    return done


def _augment(
    picture: np.ndarray, caption: str, config: CaptionerConfig, generator: torch.Generator
) -> tuple[Image.Image, str]:
    """A random crop, mirrored half of the time; a mirrored picture's caption has left and right exchanged."""
    share = config.smallest_crop + (1 - config.smallest_crop) * float(torch.rand((), generator=generator))
    height, width = (round(side * share) for side in picture.shape[:2])
    top = random_integer(picture.shape[0] - height, generator)
    left = random_integer(picture.shape[1] - width, generator)
    image = Image.fromarray(picture[top : top + height, left : left + width])
    if torch.rand((), generator=generator) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        caption = re.sub(r"\b(left|right)\b", lambda match: _MIRROR[match.group()], caption)
    return image, caption


def names_time_of_day(caption: str) -> str | None:
    """ "night" or "day" if a caption says which, else None."""
    if re.search(r"\b(night|dark)\b", caption):
        return "night"
    return "day" if re.search(r"\b(day|daylight|sunny|sunlit|sunlight)\b", caption) else None


def time_of_day_accuracy(
    model: BlipForConditionalGeneration, processor: BlipProcessor, examples: Sequence[Example]
) -> float:
    """Share of the examples whose caption says day or night for which BLIP says the same."""
    asked = [e for e in examples if e.visible and e.caption and names_time_of_day(e.caption)]
    said = caption_images(model, processor, [load_rgb(e.visible) for e in asked])
    return sum(names_time_of_day(s) == names_time_of_day(e.caption) for s, e in zip(said, asked, strict=True)) / len(
        asked
    )
