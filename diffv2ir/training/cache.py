"""Captions, segmentation maps and latents, made once per image and kept on disk, keyed by content.

A latent key holds the hashes of the images, of the autoencoder's weights and of the crop: changing any of them makes a
new entry, and nothing stale is ever read. Each example has `variants` different views (resize to
286, flip; the same for visible, infrared and map, as in the paper); epoch e of a training uses a random 256 crop, cut
from the latents, of view e mod `variants`. Few pairs are stretched further by zooming in, and by other exposures of
the visible photo.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import BlipForConditionalGeneration, BlipProcessor

from diffv2ir.data import Example
from diffv2ir.data.examples import ROLES
from diffv2ir.edges import brightness, follow_edges
from diffv2ir.files import write_file_atomically
from diffv2ir.imaging import from_levels, open_image, to_tensor
from diffv2ir.lines import append_pairs, read_pairs
from diffv2ir.members import ImageFile
from diffv2ir.pipeline import latent_stride
from diffv2ir.training.hashes import ALONE, Share, entry_key, file_hash, weights_hash
from diffv2ir.training.images import expose_differently, random_integer, resize_shorter
from diffv2ir.training.loop import Draw, mix_seed
from diffv2ir.vlum import SamSegmenter, caption_images, segmentation_map
from diffv2ir.vlum.prompt import known_band

logger = logging.getLogger(__name__)

# Real infrared pictures are sharp: a photo counts as flat below this variance (`follow_edges`).
FLAT_INFRARED = 2.5e-4

IN_TURN = "in_turn"

# What random numbers are drawn for.
_VIEW, _CROP, _TURN = range(3)


@dataclass(frozen=True)
class ViewConfig:
    """Training views (paper Sec. 5.1): shorter side to `resize`, random `crop`, horizontal flip.

    Attributes:
        flip: whether half of the views are mirror images: True = by chance; "in_turn" = every second one of an example,
            so that with two variants each example is seen both ways.
        variants: views that are encoded; the place of the crop is drawn anew every epoch.
        zoom: a view is enlarged by up to this factor, so that a crop shows less of the scene; 1 = as in the paper.
        jitter: how far gamma, contrast and colour of the visible photo vary, as the logarithm of the largest factor.
            The infrared picture stays: another exposure of a scene does not change its heat.
        edge_radius: the infrared picture gets the photo's edges within so many pixels (`follow_edges`): what parallax
            moved is put back, and what no photo shows, which a model could only guess, is gone. 0 = it stays as it is.
    """

    resize: int = 286
    crop: int = 256
    flip: bool | str = True
    variants: int = 4
    zoom: float = 1.0
    jitter: float = 0.0
    edge_radius: int = 0

    def __post_init__(self) -> None:
        if self.flip not in (True, False, IN_TURN):
            raise ValueError(f"flip must be true, false or {IN_TURN!r}, got {self.flip!r}")
        if self.zoom < 1:
            raise ValueError(f"zoom must be at least 1, got {self.zoom}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must lie in [0, 1], got {self.jitter}")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be at least 1 and at most resize ({self.resize}), got {self.crop}")
        if self.edge_radius < 0:
            raise ValueError(f"edge_radius must be at least 0, got {self.edge_radius}")
        if self.variants < 1:
            raise ValueError(f"variants must be at least 1, got {self.variants}")


class CaptionCache:
    """Captions by BLIP, for examples whose dataset has none or, with `always`, for all.

    Each process has a file of its own for those that it makes; all files are read.
    `unseen`: SHA-256 of photos -> captions, by models that have not seen them; preferred to BLIP's.
    """

    def __init__(
        self,
        folder: Path,
        model: BlipForConditionalGeneration | None,
        processor: BlipProcessor | None,
        always: bool = False,
        unseen: Mapping[str, str] | None = None,
    ):
        self.folder, self.model, self.processor, self.always = folder, model, processor, always
        self._unseen = unseen or {}
        self._model_hash = weights_hash(model) if model is not None else ""
        self.known: dict[str, str] = {}
        self.read()

    def read(self) -> None:
        """Take over what the files hold, those of other processes too."""
        for path in sorted(self.folder.glob("captions*.json")):  # as earlier versions wrote them
            self.known.update(json.loads(path.read_text()))
        for path in sorted(self.folder.glob("captions*.jsonl")):
            self.known.update(read_pairs(path))

    def fill(self, examples: Sequence[Example], batch_size: int = 8, share: Share = ALONE) -> None:
        """Caption what has no caption yet; saved after every batch."""
        wanted = [e for e in examples if e.visible and not self._given(e) and self._lacks(self._key(e), share)]
        for start in tqdm(range(0, len(wanted), batch_size), desc="captions", disable=not wanted):
            batch = wanted[start : start + batch_size]
            captions = caption_images(self.model, self.processor, [open_image(e.visible) for e in batch])
            made = dict(zip(map(self._key, batch), captions, strict=True))
            append_pairs(self.folder / f"captions{share.suffix}.jsonl", made)
            self.known.update(made)

    def caption(self, example: Example) -> str:
        """The dataset's caption, else that of `unseen`, else BLIP's."""
        return self._given(example) or self.known[self._key(example)]

    def _given(self, example: Example) -> str | None:
        own = None if self.always else example.caption
        return own or self._unseen.get(file_hash(example.visible))

    def _lacks(self, key: str, share: Share) -> bool:
        return key not in self.known and share.has(key)

    def _key(self, example: Example) -> str:
        return entry_key(file_hash(example.visible), self._model_hash)


class MapCache:
    """Segmentation maps as PNG files; a map that comes with the dataset is used as it is.

    One that was made for the dataset is used if it is of the same style: in another one it would teach what the model's
    own maps do not show.
    """

    def __init__(self, folder: Path, segmenter: SamSegmenter, style: str):
        self.folder, self.segmenter, self.style = folder / "maps", segmenter, style
        # Without "_name_or_path": the same model in another folder draws the same maps.
        # Without what is off: settings that came later change no map of a model that does not use them.
        settings = {
            key: value
            for key, value in segmenter.config.items()
            if not key.startswith("_") and (key not in ("edge_radius", "region_scale") or value)
        }
        self._model_hash = weights_hash(segmenter) + json.dumps(settings, sort_keys=True, default=str)

    def path(self, example: Example) -> Path:
        """Where the map of an example lies, or will lie."""
        if given := self.given(example):
            return given
        key = entry_key(file_hash(example.visible), self._model_hash, self.style)
        return self.folder / key[:2] / f"{key}.png"

    def given(self, example: Example) -> ImageFile | None:
        """The map of the dataset, if it is used."""
        return example.segmentation if example.map_style in ("", self.style) else None

    def fill(self, examples: Sequence[Example], share: Share = ALONE) -> None:
        """Segment what has no map yet."""
        if others := sum(example.segmentation is not None and self.given(example) is None for example in examples):
            logger.info("%d maps of the data are of another style than %r: they are drawn anew", others, self.style)
        wanted = [e for e in examples if e.visible and _lacks(self.path(e), share)]
        for example in tqdm(wanted, desc="segmentation maps", disable=not wanted, mininterval=5):
            image = open_image(example.visible)
            drawn = segmentation_map(self.segmenter.masks(image), image.size, self.style)
            write_file_atomically(self.path(example), drawn.save, shared=True)


class Views:
    """The views of examples: a function of seed, an example's pictures and the number of the view."""

    def __init__(self, config: ViewConfig, seed: int, multiple: int = 1):
        self.config, self.seed, self.multiple = config, seed, multiple

    def cut(self, pictures: Mapping[str, Path], example: Example, variant: int) -> dict[str, Image.Image]:
        """View number `variant` of the pictures of an example by their roles: the same part of all, RGB.

        "visible" gets another exposure, "infrared" the edges of "visible", as the configuration says. Sides are
        multiples of `multiple` and at most twice the crop.
        """
        views = {role: self._cut(open_image(path), example, variant, role) for role, path in pictures.items()}
        if self.config.edge_radius and {"visible", "infrared"} <= views.keys():
            infrared, visible = brightness(views["infrared"]), brightness(views["visible"])
            followed = follow_edges(infrared, visible, self.config.edge_radius, flat=FLAT_INFRARED)
            views["infrared"] = from_levels(followed).convert("RGB")
        return views

    def place(self, example: Example, epoch: int, rooms: tuple[int, int]) -> tuple[int, int]:
        """Where the crop of `epoch` begins, (top, left), in a view with so much room below and to the right of it."""
        generator = self.generator(example, epoch, _CROP)
        return random_integer(rooms[0], generator), random_integer(rooms[1], generator)

    def generator(self, example: Example, number: int, purpose: int) -> torch.Generator:
        """Random numbers for view or epoch `number` of an example, for one purpose."""
        content = int(entry_key(sorted(file_hash(p) for p in (example.visible, example.infrared) if p))[:15], 16)
        return torch.Generator().manual_seed(mix_seed(self.seed, content, number, purpose))

    def _cut(self, image: Image.Image, example: Example, variant: int, role: str) -> Image.Image:
        generator, view = self.generator(example, variant, _VIEW), self.config
        if view.flip == IN_TURN:
            flip = variant % 2 == 1
        else:
            flip = view.flip and bool(torch.rand((), generator=generator) < 0.5)
        zoom = 1 + (view.zoom - 1) * float(torch.rand((), generator=generator))
        image = resize_shorter(image, round(view.resize * zoom), _resampling(role))
        # Whole latents, and of a panorama a part: the crop is cut from the latents.
        width, height = (min(side, 2 * view.crop) // self.multiple * self.multiple for side in image.size)
        left = random_integer(image.width - width, generator)
        top = random_integer(image.height - height, generator)
        image = image.crop((left, top, left + width, top + height))
        if role == "visible" and view.jitter:
            image = expose_differently(image, view.jitter, generator)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def _resampling(role: str) -> Image.Resampling:
    # As the pipeline does it: no colour between those of two regions.
    return Image.Resampling.NEAREST if role == "segmentation" else Image.Resampling.BICUBIC


class LatentCache:
    """Encoder modes of views: a dict of "visible", "segmentation", "infrared", each (C, h, w) float16, unscaled.

    Args:
        wanted: which of the three.

    Raises:
        ValueError: the crop is not a whole number of latents.
    """

    def __init__(
        self,
        folder: Path,
        vae: torch.nn.Module,
        view: ViewConfig,
        maps: MapCache | None,
        seed: int = 0,
        wanted: Collection[str] = ROLES,
    ):
        self.folder, self.vae, self.view, self.maps, self.seed = folder / "latents", vae, view, maps, seed
        self._wanted = wanted
        self._vae_hash = weights_hash(vae)
        self._stride = latent_stride(vae)
        if view.crop % self._stride:
            raise ValueError(f"crop must be a multiple of the autoencoder's {self._stride} pixels, got {view.crop}")
        self._cutter = Views(view, seed, self._stride)

    def roles(self, example: Example) -> dict[str, Path]:
        """The images of an example that the views are cut from."""
        paths = {"visible": example.visible, "infrared": example.infrared}
        if self.maps is not None and example.visible:
            paths["segmentation"] = self.maps.path(example)
        needed = {*self._wanted, "visible"} if self.view.edge_radius else self._wanted
        return {role: path for role, path in paths.items() if path and role in needed}

    def batch(self, examples: Sequence[Example], draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        """The crops that belong to the draws of a training, see `load`."""
        with ThreadPoolExecutor() as pool:  # on a disk of a network each waits
            return list(pool.map(self.load, examples, [draw.epoch for draw in draws]))

    def band(self, example: Example, draw: Draw) -> str:
        """The band of the infrared picture in the view that belongs to a draw: the camera's."""
        return known_band(example.band)

    def fill(self, examples: Sequence[Example], batch_size: int = 8, share: Share = ALONE) -> None:
        """Encode every view that is not there yet; the maps have to be."""
        wanted = [
            (example, variant)
            for variant in range(self.view.variants)
            for example in examples
            if _lacks(self._path(example, variant), share)
        ]
        for start in tqdm(range(0, len(wanted), batch_size), desc="latents", disable=not wanted, mininterval=5):
            self._encode(wanted[start : start + batch_size])

    def load(self, example: Example, epoch: int) -> dict[str, Tensor]:
        """The crop of an example that belongs to `epoch`: float32 (C, crop / stride, crop / stride)."""
        # Mirror images in turn, but not those of all examples in the same epoch.
        turn = random_integer(1, self._cutter.generator(example, 0, _TURN)) if self.view.flip == IN_TURN else 0
        stored = load_file(self._path(example, (epoch + turn) % self.view.variants))
        side = self.view.crop // self._stride
        height, width = next(iter(stored.values())).shape[1:]
        top, left = self._cutter.place(example, epoch, (height - side, width - side))
        return {role: value[:, top : top + side, left : left + side].float() for role, value in stored.items()}

    @torch.no_grad()
    def _encode(self, batch: list[tuple[Example, int]]) -> None:
        parameter = next(self.vae.parameters())
        views: dict[tuple[int, int], list] = {}  # by size: images of one size are encoded together
        entries: list[dict[str, Tensor]] = [{} for _ in batch]
        with ThreadPoolExecutor() as pool:
            cut = list(pool.map(lambda entry: self._cutter.cut(self.roles(entry[0]), *entry), batch))
        for number, own in enumerate(cut):
            for role, view in own.items():
                if role in self._wanted:
                    views.setdefault(view.size, []).append((number, role, to_tensor(view)))
        for same in views.values():
            images = torch.stack([view for _, _, view in same])
            images = images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
            latents = encode_mode(self.vae, images).half().cpu()  # [N, C, h, w]
            for (number, role, _), latent in zip(same, latents, strict=True):
                entries[number][role] = latent.contiguous()
        for (example, variant), entry in zip(batch, entries, strict=True):
            path = self._path(example, variant)
            write_file_atomically(path, lambda partial, entry=entry: save_file(entry, partial), shared=True)

    def _path(self, example: Example, variant: int) -> Path:
        hashes = {role: file_hash(path) for role, path in self.roles(example).items() if role != "segmentation"}
        if "segmentation" in (roles := self.roles(example)):  # the name of a map of ours is its content's key
            given = self.maps.given(example)
            hashes["segmentation"] = file_hash(given) if given else roles["segmentation"].stem
        view = asdict(self.view) | {"variants": None}
        key = entry_key(hashes, self._vae_hash, view, variant, self.seed, *sorted(roles.keys() - set(self._wanted)))
        return self.folder / key[:2] / f"{key}.safetensors"


def _lacks(path: Path, share: Share) -> bool:
    return share.has(path.name) and not path.is_file()


def encode_mode(vae: torch.nn.Module, images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] -> the encoder's mode (N, C, h, w), not scaled."""
    encoded = vae.encode(images)
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
