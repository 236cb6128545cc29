"""The tiny tokenizer and text encoder: CLIP's classes, trained contrastively on visible images and their captions."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from diffv2ir.data import Example
from diffv2ir.files import write_atomically
from diffv2ir.imaging import open_image, to_tensor
from diffv2ir.training.images import random_integer, resize_shorter
from diffv2ir.training.loop import Draw, Loop, LoopConfig
from diffv2ir.vlum.prompt import BANDS, INFRARED_PROMPT, build_prompt, known_band

logger = logging.getLogger(__name__)

MAX_TOKENS = 48


@dataclass(frozen=True)
class TextConfig:
    """Vocabulary size, and widths of CLIP's two towers; `vision_size` is the side of its images in pixels."""

    loop: LoopConfig
    vocabulary: int = 2000
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    vision_size: int = 96
    vision_patch: int = 12
    crops_weight: float = 0.2


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> CLIPTokenizer:
    """A byte-level BPE `CLIPTokenizer`; every character has a token of its own, so that no text is unknown."""
    tokenizer = CLIPTokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # As in OpenAI's vocabulary, each byte also as the end of a word. Given to the trainer in a fixed order: those it
    # finds itself it numbers at random, and a resumed training would read its captions with another vocabulary.
    endings = [f"{character}</w>" for character in alphabet]
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>", *endings],
        show_progress=False,
    )
    characters = string.ascii_lowercase + string.digits + string.punctuation
    corpus = [build_prompt(caption, band) for caption in captions for band in BANDS]
    corpus += [INFRARED_PROMPT, *characters]
    tokenizer.backend_tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)


class ClipObjective(nn.Module):
    """CLIP's two embeddings of a batch."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Images (N, 3, s, s) and token ids (N, L) -> similarity logits (N images, N texts)."""
        output = self.clip(input_ids=tokens, pixel_values=pixels)
        return output.logits_per_image


def contrastive_loss(logits: Tensor, captions: Sequence[str]) -> Tensor:
    """Symmetric cross-entropy in which every pair of equal captions is a positive; logits (N images, N texts)."""
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=logits.dtype, device=logits.device)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_text(examples: Sequence[Example], output: Path, config: TextConfig) -> Path:
    """Train both; writes `tokenizer/` and `text_encoder/` into `output` and returns the latter. Resumable."""
    done = output / "text_encoder"
    if (done / "config.json").is_file():
        return done
    chosen = [example for example in examples if example.visible and example.caption]
    tokenizer = train_tokenizer((e.caption for e in chosen if e.kind == "pairs"), config.vocabulary)
    torch.manual_seed(config.loop.seed)
    clip = _build_clip(config, tokenizer)
    side = config.vision_size
    pictures = [np.asarray(resize_shorter(open_image(e.visible), side + 16)) for e in chosen]
    tokens = tokenizer(
        [build_prompt(e.caption, known_band(e.band)) for e in chosen],
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    ).input_ids

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        pixels = torch.stack([_random_crop(pictures[d.index], side, d.generator()) for d in draws]).to(device)
        logits = model(pixels, tokens[[d.index for d in draws]].to(device))
        value = contrastive_loss(logits, [chosen[d.index].caption for d in draws])
        accuracy = (logits.argmax(1) == torch.arange(len(draws), device=device)).float().mean()
        return {"loss": value, "matched": accuracy}

    def save(folder: Path, model: nn.Module) -> None:
        _text_encoder(model.clip).save_pretrained(folder / "text_encoder")
        tokenizer.save_pretrained(folder / "tokenizer")

    loop = Loop(
        config.loop, output, ClipObjective(clip), loss, len(chosen), save=save, name="text encoder",
        weights=[1.0 if e.kind == "pairs" else config.crops_weight for e in chosen],
    )  # fmt: skip
    trained = loop.run()
    (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": loop.history}))
    tokenizer.save_pretrained(output / "tokenizer")
    write_atomically(done, _text_encoder(trained.clip).save_pretrained)
    return done


def _build_clip(config: TextConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    shared = dict(
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
    )
    text = dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(image_size=config.vision_size, patch_size=config.vision_patch)
    return CLIPModel(
        CLIPConfig(
            text_config={**shared, **text}, vision_config={**shared, **vision}, projection_dim=config.hidden_size
        )
    )


def _text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower on its own, as Stable Diffusion uses it."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


def _random_crop(picture: np.ndarray, side: int, generator: torch.Generator) -> Tensor:
    top = random_integer(picture.shape[0] - side, generator)
    left = random_integer(picture.shape[1] - side, generator)
    tensor = to_tensor(Image.fromarray(picture[top : top + side, left : left + side]))
    return tensor.flip(-1) if torch.rand((), generator=generator) < 0.5 else tensor
