"""SAM masks and the segmentation map made of them (paper Sec. 3.2)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.amg import remove_small_regions

from diffv2ir.edges import follow_colours
from diffv2ir.imaging import fitted_size
from diffv2ir.settings import MAP_STYLES

PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

# Encoder widths of the published SAM checkpoints.
OFFICIAL_SIZES = {
    "vit_b": dict(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": dict(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": dict(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
}


class SamSegmenter(ModelMixin, ConfigMixin):
    """segment-anything's `Sam` in the diffusers layout, with the parameters of its automatic mask generator.

    The defaults are SAM ViT-B. `image_size`, `patch_size` and `window_size` are in pixels and patches of the square
    the image is padded to; `points_per_side` to `min_mask_region_area` are those of `SamAutomaticMaskGenerator`.
    `edge_radius` > 0 is for a small model with coarse masks: their outlines are moved to the edges of the photo, by a
    guided filter with windows of this many pixels of the padded square around each pixel. `region_scale` > 0 then makes
    each mask one of whole regions of the photo, those it covers by half: regions of graph segmentation (Felzenszwalb &
    Huttenlocher 2004) at this scale. It needs `edge_radius`. With either, `min_mask_region_area` is also the least area
    of these regions, and `box_nms_thresh` also the overlap (IoU) from which on two masks count as one.

    Raises:
        ValueError: a negative `edge_radius`, or a `region_scale` without one.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11),
        window_size: int = 14,
        prompt_dim: int = 256,
        mask_in_chans: int = 16,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        min_mask_region_area: int = 0,
        edge_radius: int = 0,
        region_scale: float = 0.0,
    ):
        super().__init__()
        if edge_radius < 0:
            raise ValueError(f"edge_radius must be at least 0, got {edge_radius}")
        if region_scale and not edge_radius:
            raise ValueError(f"region_scale {region_scale} needs an edge_radius above 0")
        side = image_size // patch_size
        self.sam = Sam(
            image_encoder=ImageEncoderViT(
                img_size=image_size,
                patch_size=patch_size,
                embed_dim=embed_dim,
                depth=depth,
                num_heads=num_heads,
                mlp_ratio=4,
                out_chans=prompt_dim,
                qkv_bias=True,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=window_size,
                global_attn_indexes=tuple(global_attn_indexes),
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=prompt_dim,
                image_embedding_size=(side, side),
                input_image_size=(image_size, image_size),
                mask_in_chans=mask_in_chans,
            ),
            mask_decoder=MaskDecoder(
                transformer_dim=prompt_dim,
                transformer=TwoWayTransformer(
                    depth=decoder_depth, embedding_dim=prompt_dim, num_heads=decoder_heads, mlp_dim=decoder_mlp_dim
                ),
                num_multimask_outputs=3,
                iou_head_depth=3,
                iou_head_hidden_dim=prompt_dim,
            ),
            pixel_mean=PIXEL_MEAN,
            pixel_std=PIXEL_STD,
        )
        # `Sam` keeps these out of its state; they are constants, but must be there after loading on the meta device.
        self.sam.register_buffer("pixel_mean", self.sam.pixel_mean, persistent=True)
        self.sam.register_buffer("pixel_std", self.sam.pixel_std, persistent=True)

    @classmethod
    def from_checkpoint(cls, path: str | Path, size: str = "vit_b", **options) -> SamSegmenter:
        """Load an official `sam_vit_*.pth`; `options` override mask-generator parameters.

        Raises:
            ValueError: unknown size, or a checkpoint whose keys or shapes are not those of that size.
        """
        if size not in OFFICIAL_SIZES:
            raise ValueError(f"size must be one of {sorted(OFFICIAL_SIZES)}, got {size!r}")
        model = cls(**OFFICIAL_SIZES[size], **options)
        constants = {"pixel_mean": model.sam.pixel_mean, "pixel_std": model.sam.pixel_std}
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.sam.load_state_dict({**constants, **state})
        except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is not an official SAM {size} checkpoint: {error}") from error
        return model.eval()

    @torch.inference_mode()
    def masks(self, image: Image.Image) -> list[np.ndarray]:
        """All masks of an image, largest first.

        Args:
            image: RGB, any size; segmented at the model's own resolution.

        Returns:
            Boolean arrays (h, w) of the image's aspect ratio, the longer side `image_size`. May be empty.
        """
        size = fitted_size(image.size, self.config.image_size)
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))  # [h, w, 3] uint8
        generator = SamAutomaticMaskGenerator(
            self.sam,
            points_per_side=self.config.points_per_side,
            points_per_batch=self.config.points_per_batch,
            pred_iou_thresh=self.config.pred_iou_thresh,
            stability_score_thresh=self.config.stability_score_thresh,
            stability_score_offset=self.config.stability_score_offset,
            box_nms_thresh=self.config.box_nms_thresh,
            min_mask_region_area=self.config.min_mask_region_area,
        )
        if self.device.type == "mps":
            _in_single_precision(generator)
        found = generator.generate(pixels)
        if self.config.edge_radius:
            found.sort(key=lambda entry: -entry["predicted_iou"])
            masks = self._follow_edges([entry["segmentation"] for entry in found], pixels)
            return sorted(masks, key=lambda mask: -int(mask.sum()))
        return [entry["segmentation"] for entry in sorted(found, key=lambda entry: -entry["area"])]

    def _follow_edges(self, masks: list[np.ndarray], pixels: np.ndarray) -> list[np.ndarray]:
        """Masks, best first, with the outlines of the photo; without specks, and without those that become alike."""
        kept: list[np.ndarray] = []
        smallest = max(1, self.config.min_mask_region_area)
        followed = follow_colours(masks, pixels.astype(np.float32) / 255, self.config.edge_radius)
        if self.config.region_scale:
            from skimage.segmentation import felzenszwalb  # slow to import, and a full-size SAM never asks for it

            regions = felzenszwalb(pixels, scale=self.config.region_scale, sigma=0.8, min_size=smallest)
            followed = [_whole_regions(mask, regions) for mask in followed]
        for mask in followed:
            for mode in ("holes", "islands"):
                mask, _ = remove_small_regions(mask, smallest, mode)
            if mask.sum() >= smallest and all(_overlap(mask, one) < self.config.box_nms_thresh for one in kept):
                kept.append(mask)
        return kept


def _in_single_precision(generator: SamAutomaticMaskGenerator) -> None:
    """Let points be float32: segment-anything's are of a kind that Apple's GPUs do not have."""
    transform = generator.predictor.transform
    apply = transform.apply_coords
    transform.apply_coords = lambda points, size: apply(points, size).astype(np.float32)


def _whole_regions(mask: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The regions, numbered in an image (h, w), that a mask covers by half or more."""
    covered = np.bincount(regions.ravel(), mask.ravel())
    return (covered >= 0.5 * np.bincount(regions.ravel()))[regions]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def segmentation_colour(number: int) -> tuple[int, int, int]:
    """The flat colour of region `number`: hues by the golden ratio, so that neighbours in size differ."""
    hue = (number * 0.61803398875) % 1.0
    value = (0.95, 0.7, 0.5)[number % 3]
    saturation = (0.85, 0.6)[number // 3 % 2]
    channels = [value * (1 - saturation * min(max(2 - abs((hue * 6 + shift) % 6 - 2), 0), 1)) for shift in (5, 3, 1)]
    return tuple(round(255 * channel) for channel in channels)


def segmentation_map(masks: Sequence[np.ndarray], size: tuple[int, int], style: str) -> Image.Image:
    """Draw masks as an RGB image.

    Args:
        masks: boolean (h, w), largest first, as from `SamSegmenter.masks`. None at all gives black.
        size: (width, height) of the map.
        style: "union" = every mask white on black (what the released checkpoints were trained on);
            "regions" = each mask in its own flat colour, larger masks below.
    """
    return draw_regions(number_regions(masks), size, style)


def number_regions(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Which mask is seen where, larger masks below: uint16 (h, w), 0 = none, else its number from 1.

    Maps of every style are drawn from it (`draw_regions`), and it is far smaller than the masks.
    """
    numbers = np.zeros(masks[0].shape if len(masks) else (1, 1), dtype=np.uint16)
    for number, mask in enumerate(masks, start=1):
        numbers[mask] = number
    return numbers


def draw_regions(numbers: np.ndarray, size: tuple[int, int], style: str) -> Image.Image:
    """`number_regions` as an RGB image; `size` and `style` as of `segmentation_map`."""
    if style not in MAP_STYLES:
        raise ValueError(f"style must be one of {MAP_STYLES}, got {style!r}")
    count = int(numbers.max())
    colours = [(255, 255, 255)] * count if style == "union" else [segmentation_colour(n) for n in range(count)]
    canvas = np.array([(0, 0, 0), *colours], dtype=np.uint8)[numbers]  # [h, w, 3]
    return Image.fromarray(canvas).resize(size, Image.Resampling.NEAREST)
