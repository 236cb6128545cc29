"""The tiny SAM: real classes at 256 px, taught by regions of the photo at several scales (`region_labels`).

A point prompt has three true masks, the regions that hold it at a fine, a middle and a coarse scale, one for each of
SAM's three outputs; the IoU head learns how well each output fits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from diffv2ir.data import Example
from diffv2ir.files import write_atomically, write_file_atomically
from diffv2ir.imaging import fitted_size, open_image
from diffv2ir.training.hashes import entry_key, file_hash
from diffv2ir.training.images import random_integer
from diffv2ir.training.loop import Draw, Loop, LoopConfig
from diffv2ir.training.regions import region_labels
from diffv2ir.vlum.segment import PIXEL_MEAN, SamSegmenter

logger = logging.getLogger(__name__)

TINY_SAM = dict(
    image_size=256, patch_size=16, embed_dim=128, depth=4, num_heads=4, window_size=8, global_attn_indexes=(1, 3),
    prompt_dim=64, mask_in_chans=8, decoder_heads=4, decoder_mlp_dim=256,
    points_per_side=8, points_per_batch=64,
    # Its masks are soft and round: these let fifty a photo through, and give them the outlines of the photo.
    pred_iou_thresh=0.12, stability_score_thresh=0.1, stability_score_offset=0.4, box_nms_thresh=0.7,
    min_mask_region_area=80, edge_radius=12, region_scale=250.0,
)  # fmt: skip

# Size of the equal weights at the start, see `_look_where_the_prompt_is`.
_FOCUS = 1.5


@dataclass(frozen=True)
class SegmenterConfig:
    """Architecture (`SamSegmenter`), regions of the teacher from fine to coarse, and prompts per image."""

    loop: LoopConfig
    model: dict = field(default_factory=lambda: dict(TINY_SAM))
    regions: tuple[int, ...] = (60, 28, 12)
    points_per_image: int = 12
    kinds: tuple[str, ...] = ("pairs",)

    def __post_init__(self) -> None:
        if len(self.regions) != 3 or not self.regions[0] > self.regions[1] > self.regions[2] > 0:
            raise ValueError(f"regions must be three numbers that fall, one for each output of SAM, got {self.regions}")


class SegmenterObjective(nn.Module):
    """Images and points -> mask logits and IoU estimates, all in one forward pass."""

    def __init__(self, segmenter: SamSegmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in 0..255 and points (B, P, 2) in pixels -> logits (B, P, 3, m, m), IoU (B, P, 3)."""
        sam = self.segmenter.sam
        embeddings = sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std)  # [B, D, s, s]
        logits, scores = [], []
        for embedding, prompt in zip(embeddings, points, strict=True):
            labels = torch.ones(len(prompt), 1, dtype=torch.int, device=prompt.device)
            sparse, dense = sam.prompt_encoder(points=(prompt[:, None], labels), boxes=None, masks=None)
            masks, iou = sam.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            logits.append(masks)
            scores.append(iou)
        return torch.stack(logits), torch.stack(scores)


def train_segmenter(examples: Sequence[Example], output: Path, config: SegmenterConfig) -> Path:
    """Train on the visible images of `examples`; returns the finished component's folder. Resumable, idempotent."""
    done = output / "segmenter"
    if (done / "config.json").is_file():
        return done
    torch.manual_seed(config.loop.seed)
    segmenter = SamSegmenter(**config.model)
    _look_where_the_prompt_is(segmenter)
    # Prompts with boxes or masks never occur here, so what only serves them stays as it is.
    paths = [example.visible for example in examples if example.visible and example.kind in config.kinds]
    side = config.model["image_size"]
    images, teachers = _teach(paths, output / "teacher", config.regions, side)

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        batch = [
            _draw_prompts(images[d.index], teachers[d.index], config.points_per_image, side, d.generator())
            for d in draws
        ]
        device = next(model.parameters()).device
        pixels, points, masks = (torch.stack(parts).to(device) for parts in zip(*batch, strict=True))
        logits, scores = model(pixels, points)
        return segmentation_losses(
            logits, scores, F.adaptive_avg_pool2d(masks.flatten(0, 1), logits.shape[-2:]).view_as(logits)
        )

    loop = Loop(
        config.loop, output, SegmenterObjective(segmenter), loss, len(paths), name="segmenter",
        save=lambda folder, model: model.segmenter.save_pretrained(folder / "segmenter"),
    )  # fmt: skip
    write_atomically(done, loop.run().segmenter.eval().save_pretrained)
    (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": loop.history}))
    return done


def _look_where_the_prompt_is(segmenter: SamSegmenter) -> None:
    """Start attention between prompts and image with equal weights of queries and keys, and values handed on.

    (Mimetic initialisation, Trockman & Kolter 2023.) Both sides hold the same encoding of position, so that a prompt
    reads the image at its own place from the first step on, and what it has read is compared with every other place.
    """
    transformer = segmenter.sam.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        with torch.no_grad():
            nn.init.orthogonal_(attention.q_proj.weight, gain=_FOCUS)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            nn.init.orthogonal_(attention.v_proj.weight)
            attention.out_proj.weight.copy_(attention.v_proj.weight.T)


def segmentation_losses(logits: Tensor, scores: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Cross-entropy + dice + squared error of the IoU estimate.

    Cross-entropy counts once more inside the true masks, which are small: otherwise training stays for hundreds of
    steps where there is no mask anywhere.

    Logits and soft truth are (B, P, 3, m, m), scores (B, P, 3).
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    inside = (cross_entropy * truth).sum((-1, -2)) / truth.sum((-1, -2)).clamp(min=1)
    overlap = (probability * truth).sum((-1, -2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-1, -2)) + truth.sum((-1, -2)) + 1)
    with torch.no_grad():
        guess, true = logits > 0, truth > 0.5
        iou = (guess & true).sum((-1, -2)) / (guess | true).sum((-1, -2)).clamp(min=1)
    estimate = F.mse_loss(scores, iou)
    loss = 2.5 * cross_entropy.mean() + 0.5 * inside.mean() + dice.mean() + estimate
    return {"loss": loss, "dice": dice.mean().detach(), "iou": iou.mean()}


def _teach(paths: list[Path], cache: Path, counts: Sequence[int], side: int) -> tuple[list, list]:
    """Images (h, w, 3) uint8 with the longer side `side`, and their label maps (counts, h, w); labels kept on disk."""
    cache.mkdir(parents=True, exist_ok=True)
    images, labels = [], []
    for path in tqdm(paths, desc="regions", mininterval=5):
        image = open_image(path)
        image = image.resize(fitted_size(image.size, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        stored = cache / f"{entry_key(file_hash(path), side, list(counts))}.npy"
        if not stored.is_file():
            labelled = region_labels(pixels, counts)
            write_file_atomically(stored, lambda partial, labelled=labelled: np.save(partial, labelled))
        images.append(pixels)
        labels.append(np.load(stored))
    return images, labels


def _draw_prompts(
    image: np.ndarray, labels: np.ndarray, count: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A padded image (3, side, side), `count` points (count, 2) as (x, y), their masks (count, scales, side, side).

    Every second point lies anywhere, the others in any region of the finest scale: small things count as well.
    """
    if torch.rand((), generator=generator) < 0.5:
        image, labels = image[:, ::-1], labels[:, :, ::-1]
    height, width = image.shape[:2]
    # `Sam` pads after normalising: with its mean, seen from here.
    pixels = torch.tensor(PIXEL_MEAN)[:, None, None].repeat(1, side, side)
    pixels[:, :height, :width] = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    points = [(random_integer(width - 1, generator), random_integer(height - 1, generator)) for _ in range(count)]
    for number in range(1, count, 2):
        region = random_integer(int(labels[0].max()), generator)
        places = np.flatnonzero(labels[0] == region)
        row, column = divmod(int(places[random_integer(len(places) - 1, generator)]), width)
        points[number] = (column, row)
    masks = torch.zeros(count, len(labels), side, side)
    for number, (x, y) in enumerate(points):
        masks[number, :, :height, :width] = torch.from_numpy(labels == labels[:, y, x][:, None, None]).float()
    return pixels, torch.tensor(points, dtype=torch.float32) + 0.5, masks
