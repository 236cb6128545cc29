"""The tiny BLIP: real classes at 128 px, trained on visible images and captions from scratch.

A few hundred captions do not teach prose: trained on them as they are, BLIP recites the ones it remembers. It learns
their plain form instead, which names what is in the picture, always in the same order, and when it was taken. Nor do
they teach to see: the vision tower may learn to predict what a network that knows ImageNet sees in the same photos.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from diffv2ir.data import Example
from diffv2ir.efficientnet import EfficientNetLite0, network_pixels
from diffv2ir.files import write_atomically, write_file_atomically
from diffv2ir.imaging import open_image
from diffv2ir.training.cache import CaptionCache, file_hash
from diffv2ir.training.images import expose_differently, random_integer, resize_shorter
from diffv2ir.training.loop import Draw, Loop, LoopConfig
from diffv2ir.training.seeing import FeatureTarget
from diffv2ir.training.teacher import load_network

logger = logging.getLogger(__name__)

MAX_TOKENS = 36
_UNSEEN_CAPTIONS = "captions.json"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")

# What a plain caption names, in this order, and the words of a free caption that stand for it.
_THINGS = {
    "a street": "street|streets|road|intersection|crosswalk|crossing|lane|highway|roundabout|avenue",
    "buildings": "building|buildings|house|houses|facade|tower|church|shop|castle|rooftops|storey|high-rise",
    "cars": "car|cars|suv|pickup|truck|van|bus|vehicles|jeep|taxi",
    "people": "person|people|crowd|pedestrian|pedestrians|man|woman|cyclist|courier|rider|child|children",
    "bicycles": "bicycle|bicycles|bike|motorbike|motorbikes|motorcycle|scooter",
    "trees": "tree|trees|palm|palms|bushes|bush|wood|woods|forest|hedge|hedges|bamboo|leaves|shrubs|trunk|trunks",
    "grass": "grass|grassy|lawn|field|fields|meadow|vineyard|vineyards|clearing",
    "water": "water|lake|river|sea|pond|stream|fountain|waterfall|canal",
    "mountains": "mountain|mountains|hill|hills|hillside|rock|rocks|rocky|cliff|glacier|slope",
    "snow": "snow|snowy|ice|icy",
    "lamps": "lamp|lamps|lights|lit|headlights|neon|lanterns|illuminated",
    "the sky": "sky|clouds|cloudy|overcast",
}
_INDOORS = "indoor|indoors|interior|office|room|corridor|hall|desk|desks|table|kitchen"


@dataclass(frozen=True)
class CaptionerConfig:
    """Widths of BLIP's vision and text towers, image side in pixels, and how often object crops are seen.

    `jitter` is how far the exposure of the photos varies, as in `ViewConfig`. `folds`: so many more models are trained,
    each on the scenes of the other folds alone; 0 = none. A model knows the scenes it was trained on better than new
    ones: who learns from its captions of them trusts them too much (stacking, Wolpert 1992).

    `seeing` is the weight, beside the loss of the captions, of how far the vision tower is from the features of
    EfficientNet-Lite0 (Romero et al. 2015), the mean of the squares of their standardised difference; 0 = not learnt.
    """

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
    jitter: float = 0.0
    folds: int = 0
    seeing: float = 0.0

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0 or at least 2, got {self.folds}")
        if self.seeing < 0:
            raise ValueError(f"seeing must be at least 0, got {self.seeing}")


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
    """Train; writes `captioner/` and `captioner_processor/` into `output`, returns the former. Resumable.

    With `config.folds`, `output/captions.json` has captions of the examples by models that have not seen their scenes,
    for `train_phase`.
    """
    done, unseen = output / "captioner", output / _UNSEEN_CAPTIONS
    if (done / "config.json").is_file() and (not config.folds or unseen.is_file()):
        return done
    chosen = [example for example in examples if example.visible and example.caption]
    processor = build_processor([plain_caption(example.caption) for example in chosen], config.image_size)
    if not (done / "config.json").is_file():
        model = _train(chosen, output, config, processor)
        processor.save_pretrained(output / "captioner_processor")
        write_atomically(done, model.save_pretrained)
    if config.folds:
        captions = _caption_unseen(chosen, output, config, processor)
        write_file_atomically(unseen, lambda path: path.write_text(json.dumps(captions)))
    return done


def unseen_captions(output: Path) -> Path | None:
    """The captions, in the run folder of a captioner, by models that have not seen the photos; None without folds."""
    path = output / _UNSEEN_CAPTIONS
    return path if path.is_file() else None


def _caption_unseen(
    examples: Sequence[Example], output: Path, config: CaptionerConfig, processor: BlipProcessor
) -> dict[str, str]:
    """SHA-256 of a photo -> its caption by a model that was trained on the other folds' scenes."""
    loop = replace(config.loop, steps=max(1, round(config.loop.steps * (1 - 1 / config.folds))))
    captions: dict[str, str] = {}
    folds = _folds(examples, config.folds)
    for number, fold in enumerate(folds):
        others = [example for other in folds if other is not fold for example in other]
        model = _train(others, output / f"fold{number}", replace(config, loop=loop), processor)
        cache = CaptionCache(output / f"fold{number}", model, processor, always=True)
        cache.fill(fold)
        captions |= {file_hash(example.visible): cache.caption(example) for example in fold}
    return captions


def _folds(examples: Sequence[Example], count: int) -> list[list[Example]]:
    """Examples in `count` parts, every scene whole, the scenes of each source spread over all."""
    scenes = sorted({example.place for example in examples})
    fold = {scene: number % count for number, scene in enumerate(scenes)}
    return [[e for e in examples if fold[e.place] == number] for number in range(count)]


class CaptionObjective(nn.Module):
    """BLIP, and a head that reads from its vision tower what an ImageNet network sees in the same photos.

    Args:
        network: None = there is no head. photos: what its features are standardised over.
    """

    def __init__(
        self, blip: BlipForConditionalGeneration, network: EfficientNetLite0 | None, photos: Sequence[Image.Image]
    ):
        super().__init__()
        self.blip = blip
        self._network = (network,)  # in a tuple: not a part of this module
        if network is None:
            return
        self.target = FeatureTarget(torch.cat([self._look([photo]).mean((2, 3)) for photo in photos]).T)
        self.head = nn.Linear(blip.config.vision_config.hidden_size, self.target.channels)

    @property
    def sees(self) -> bool:
        """Whether there is a head."""
        return self._network[0] is not None

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, 3, s, s), tokens, mask and labels (N, L) -> loss of the captions, features (N, 320, h, w)."""
        output = self.blip(pixel_values=pixels, input_ids=tokens, attention_mask=mask, labels=labels)
        if not self.sees:
            return output.loss, None
        patches = output.last_hidden_state[:, 1:]  # [N, h * w, C]
        side = round(patches.shape[1] ** 0.5)
        return output.loss, self.head(patches).transpose(1, 2).unflatten(2, (side, side))

    def distance(self, predicted: Tensor, photos: Sequence[Image.Image]) -> Tensor:
        """Mean squared difference of predicted features to those of the N square photos."""
        return self.target.distance(predicted, self._look(photos)).mean()

    @torch.no_grad()
    def _look(self, photos: Sequence[Image.Image]) -> Tensor:
        """What the network sees in photos of one size: its last map, (N, 320, H / 32, W / 32)."""
        return self._network[0].maps(torch.stack([network_pixels(photo) for photo in photos]))[-1]


def _train(
    examples: Sequence[Example], output: Path, config: CaptionerConfig, processor: BlipProcessor
) -> BlipForConditionalGeneration:
    """A captioner, trained on `examples` in the run folder `output`."""
    torch.manual_seed(config.loop.seed)
    blip = build_captioner(config, processor)
    captions = [plain_caption(example.caption) for example in examples]
    pictures = [np.asarray(resize_shorter(open_image(e.visible), config.image_size + 32)) for e in examples]
    network = load_network() if config.seeing else None
    objective = CaptionObjective(blip, network, [Image.fromarray(picture) for picture in pictures])
    tokenizer = processor.tokenizer

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        images = [_augment(pictures[draw.index], config, draw.generator()) for draw in draws]
        texts = [captions[draw.index] for draw in draws]
        device = next(model.parameters()).device
        pixels = processor.image_processor(images, return_tensors="pt").pixel_values.to(device)
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(device)
        tokens.input_ids[:, 0] = tokenizer.bos_token_id  # [DEC] begins a caption, as in BLIP
        labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)
        captioning, seen = model(pixels, tokens.input_ids, tokens.attention_mask, labels)
        if seen is None:
            return {"loss": captioning}
        side = (config.image_size, config.image_size)
        seeing = objective.distance(seen, [image.resize(side, Image.Resampling.BICUBIC) for image in images])
        return {"loss": captioning + config.seeing * seeing, "captioning": captioning, "seeing": seeing}

    def save(folder: Path, model: nn.Module) -> None:
        model.blip.save_pretrained(folder / "captioner")
        processor.save_pretrained(folder / "captioner_processor")

    loop = Loop(
        config.loop, output, objective, loss, len(examples), save=save, name="captioner",
        weights=[1.0 if e.kind == "pairs" else config.crops_weight for e in examples],
    )  # fmt: skip
    trained = loop.run().blip.eval()
    (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": loop.history}))
    return trained


def _augment(picture: np.ndarray, config: CaptionerConfig, generator: torch.Generator) -> Image.Image:
    """A random crop, mirrored half of the time, of another exposure."""
    share = config.smallest_crop + (1 - config.smallest_crop) * float(torch.rand((), generator=generator))
    height, width = (round(side * share) for side in picture.shape[:2])
    top = random_integer(picture.shape[0] - height, generator)
    left = random_integer(picture.shape[1] - width, generator)
    image = Image.fromarray(picture[top : top + height, left : left + width])
    if config.jitter:
        image = expose_differently(image, config.jitter, generator)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand((), generator=generator) < 0.5 else image


def things_named(caption: str) -> dict[str, int]:
    """The things of a plain caption that a free one names, in their fixed order, and where in the text each comes."""
    found = ((thing, re.search(rf"\b({words})\b", caption.lower())) for thing, words in _THINGS.items())
    return {thing: match.start() for thing, match in found if match}


def plain_caption(caption: str) -> str:
    """The things a free caption names and its time, e.g. "a street, cars and trees in daylight"."""
    text = caption.lower()
    things = list(things_named(caption)) or ["an object"]
    listed = " and ".join(filter(None, [", ".join(things[:-1]), things[-1]]))
    if re.search(r"\b(night|nighttime)\b", text):
        return f"{listed} at night"
    if re.search(r"\b(dusk|twilight|dawn)\b", text):
        return f"{listed} at dusk"
    return f"{listed} indoors" if re.search(rf"\b({_INDOORS})\b", text) else f"{listed} in daylight"
