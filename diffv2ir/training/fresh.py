"""Views that are made when they are asked for, a batch at a time and on the device, so that hardly two are the same.

What a teacher sees is learnt as a function, and not photo by photo, where it is asked about ever other pictures (Beyer
et al. 2022). Views that are kept on disk (`LatentCache`) are a few thousand, and a small UNet learns them by heart.
These are cut, exposed and encoded as those are, in torch instead of Pillow; some are made of two photos. The teacher
sees each at the size that it was trained at, which tells it more than the crop that the UNet is shown. Of a share of
the views the target is what the camera saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diffv2ir.data import Example
from diffv2ir.edges import follow_edges_of_batch, gray_levels
from diffv2ir.efficientnet import EfficientNetLite0, network_levels
from diffv2ir.imaging import open_image
from diffv2ir.pipeline import latent_stride
from diffv2ir.training.cache import FLAT_INFRARED, ViewConfig, encode_mode
from diffv2ir.training.images import resize_shorter
from diffv2ir.training.loop import Draw, mix_seed
from diffv2ir.training.teacher import Teacher
from diffv2ir.vlum.prompt import known_band

# For how many pixels a side the network's last map has one place.
_MAP_STRIDE = 32

# What random numbers are drawn for.
_VIEW, _BAND, _CHANGE, _REAL = 11, 12, 13, 14
# The least that `follow_edges_of_batch` takes, a window of one pixel.
_NO_BLUR = 0.1
# How many numbers a view of one photo needs, and mixing two.
_OF_PHOTO, _OF_MIX = 7, 8


@dataclass(frozen=True)
class _Canvases:
    """Pictures of all examples, each in the upper left corner of a square, which its last pixels fill up.

    Attributes:
        pictures: uint8 [N, 3, side, side], of what cameras saw [N, 1, side, side].
        sizes: height and width of each, float32 [N, 2].
    """

    pictures: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class FreshConfig:
    """What the views of a phase are, and whose infrared is their target.

    Attributes:
        real: share of the views whose target is what the camera saw; of the others it is what a teacher sees,
            with the photo's edges whatever `view.edge_radius` is.
        mix: share of the views that are made of two photos, with a rectangle of the other or as a mean of both, half
            each (Yun et al. 2019, Zhang et al. 2018): what a place looks like in infrared then depends on what is
            near, and not on which of few photos it is. Where the target is the camera's, always a rectangle, of a pair
            of the same band, which brings its own target along.
        other_band: share of the teacher's views that ask for another band than the camera's: that a photo is of some
            data set does not say which band is wanted.
        uses: in how many draws of its example a view is used, on average. To make one takes as long as several steps
            of a small UNet on it. 1 = each draw has its own.
        seeing: weight of a second loss, how far the middle of the UNet is from what EfficientNet-Lite0 sees in the
            view (`SeeingUNet`); 0 = none. The head that is compared stays behind.
    """

    real: float = 0.0
    mix: float = 0.0
    other_band: float = 0.0
    uses: int = 1
    seeing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("real", "mix", "other_band"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.uses < 1:
            raise ValueError(f"uses must be at least 1, got {self.uses}")
        if self.seeing < 0:
            raise ValueError(f"seeing must be at least 0, got {self.seeing}")


class FreshViews:
    """What `LatentCache` has of the draws of a training, always new; the target is the teacher's or the camera's.

    All photos and maps stay in memory, at about the size of the views, each as a square: 0.9 MB an example of 4 : 3
    with views of 256 to 320 pixels, and 1.1 MB where there are targets of cameras.

    Args:
        examples: those of the training, by the draws' index. weights: how often each is drawn, and mixed into others.
        view: `crop` is what the UNet is shown. Teacher and network see the same window at the teacher's own size, if
            that is larger.
        map_path: the segmentation map of an example; None = latents without "segmentation".
        teacher, network, vae: on the device. teacher: None where all targets are cameras'.
        network: None = latents without "seen".
        pixels: views whose target is the camera's have "photo" and "picture" as well: the view of the photo and of what
            its camera saw, float32 (3 and 1, crop, crop) in [0, 1].

    Raises:
        ValueError: the crop is not a whole number of latents.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vae: nn.Module,
        view: ViewConfig,
        map_path: Callable[[Example], Path] | None,
        teacher: Teacher | None,
        config: FreshConfig = FreshConfig(),
        weights: Sequence[float] | None = None,
        network: EfficientNetLite0 | None = None,
        pixels: bool = False,
    ):
        stride = latent_stride(vae)
        if view.crop % stride:
            raise ValueError(f"crop must be a multiple of the autoencoder's {stride} pixels, got {view.crop}")
        self.vae, self.view, self.teacher, self.network, self.config = vae, view, teacher, network, config
        self.device, self.pixels = next(vae.parameters()).device, pixels
        weights = torch.tensor(weights or [1.0] * len(examples), dtype=torch.float64)
        self._cumulative = weights.cumsum(0).numpy()
        self._bands = np.array([known_band(example.band) for example in examples])
        self._cumulative_of = {band: (weights.numpy() * (self._bands == band)).cumsum() for band in set(self._bands)}
        # For how many epochs a view of each example is used, and the one that each has now, by its number.
        self._epochs = None if config.uses == 1 else (config.uses * weights.mean() / weights).tolist()
        self._kept: dict[int, tuple[int, dict[str, Tensor]]] = {}
        self._seen = max(view.crop, teacher.side if teacher else 0)
        # Halfway between the smallest and the largest view.
        side = round(view.resize * view.zoom**0.5 * self._seen / view.crop)
        self._photos = self._load([example.visible for example in examples], side, Image.Resampling.BICUBIC)
        self._maps = None
        if map_path is not None:
            self._maps = self._load([map_path(example) for example in examples], side, Image.Resampling.NEAREST)
        self._infrared = None
        if config.real:
            self._infrared = self._load([e.infrared for e in examples], side, Image.Resampling.BICUBIC, channels=1)

    def band(self, example: Example, draw: Draw) -> str:
        """The band that the view of a draw is asked for in: the camera's, or another."""
        own = known_band(example.band)
        if self._is_real(draw):
            return own
        others = [band for band in self.teacher.bands if band != own]
        chance, which = self._random(draw, _BAND, 2)
        if not others or chance >= self.config.other_band:
            return own
        return others[int(which * len(others))]

    def batch(self, examples: Sequence[Example], draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        """Latents of the draws' views, and "seen" where there is a network, as `LatentCache.batch`."""
        wanted = [(draw.index, self._number(draw)) for draw in draws]
        known = {(index, self._kept[index][0]): self._kept[index][1] for index, _ in wanted if index in self._kept}
        new = {key: place for place, key in enumerate(wanted) if key not in known}
        if new:
            places = list(new.values())
            known |= zip(new, self._made([examples[p] for p in places], [draws[p] for p in places]), strict=True)
        if self._epochs is not None:
            self._kept |= {index: (number, known[index, number]) for index, number in wanted}
        return [dict(known[key]) for key in wanted]

    @torch.no_grad()
    def _made(self, examples: Sequence[Example], draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        pictures = self.pictures(draws)
        # What a photo is of does not depend on its exposure: teacher and network are shown it as it was taken.
        plain = pictures.pop("plain", pictures["visible"]).contiguous(memory_format=torch.channels_last)
        pictures["visible"] = _shrunk(pictures["visible"], self.view.crop)
        real = np.array([self._is_real(draw) for draw in draws])
        taken = pictures.pop("picture", None)
        if taught := np.flatnonzero(~real).tolist():
            bands = [self.band(examples[place], draws[place]) for place in taught]
            answers = _shrunk(self.teacher.pictures(plain[taught], bands), self.view.crop)
            pictures.setdefault("infrared", answers.new_empty(len(draws), *answers.shape[1:]))[taught] = answers
        parameter = next(self.vae.parameters())
        encoded = {}
        for role, values in pictures.items():
            images = (2 * values.expand(-1, 3, -1, -1) - 1).to(parameter.dtype, memory_format=torch.channels_last)
            encoded[role] = encode_mode(self.vae, images).float()
        if self.network is not None:
            seen = self.network.maps(network_levels(plain))[-1].float()
            encoded["seen"] = F.adaptive_avg_pool2d(seen, max(1, self.view.crop // _MAP_STRIDE))
        views = [{role: values[place].clone() for role, values in encoded.items()} for place in range(len(draws))]
        if self.pixels:
            for place in np.flatnonzero(real):
                views[place] |= {"photo": pictures["visible"][place].clone(), "picture": taken[place].clone()}
        return views

    def pictures(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """The draws' views before they are encoded, in [0, 1].

        "visible" is (N, 3, side, side), of which `side` is the teacher's or, if that is larger, the crop's; "plain" is
        the same without another exposure, where views get one; "segmentation" is (N, 3, crop, crop). Where some targets
        are the cameras', "picture" is what they saw and "infrared" the same with the edges that `view.edge_radius` asks
        for, (N, 1, crop, crop).
        """
        numbers = np.array([self._random(draw, _VIEW, 2 * _OF_PHOTO + _OF_MIX) for draw in draws])
        own, other, mixing = np.split(numbers, [_OF_PHOTO, 2 * _OF_PHOTO], axis=1)
        places = np.array([draw.index for draw in draws])
        views = self._cut(places, own)
        if len(mixed := np.flatnonzero(mixing[:, 1] < self.config.mix)):
            real = np.array([self._is_real(draws[place]) for place in mixed])
            partners = np.array([self._partner(draws[place], mixing[place, 0]) for place in mixed])
            others = self._cut(partners, other[mixed])
            pasted = real | (mixing[mixed, 2] < 0.5)
            views = self._mixed(views, others, mixed, pasted, mixing[mixed, 3:])
        return views

    def _cut(self, places: np.ndarray, numbers: np.ndarray) -> dict[str, Tensor]:
        """A view of each photo by its random numbers: zoom, place, mirror image and exposure; the others likewise."""
        view = self.view
        zoom, top, left, flip, *exposure = torch.from_numpy(numbers).float().T
        sizes = self._photos.sizes[places]  # [N, 2]
        window = view.crop / (view.resize * (1 + (view.zoom - 1) * zoom)) * sizes.min(dim=1).values
        start = torch.stack([top, left], dim=1) * (sizes - window[:, None])  # [N, 2]

        def sample(canvases: _Canvases, size: int, mode: str) -> Tensor:
            steps = (torch.arange(size) + 0.5) / size  # [size]
            mirrored = torch.where((bool(view.flip) & (flip < 0.5))[:, None], 1 - steps, steps)  # [N, size]
            side = canvases.pictures.shape[-1]
            y = (start[:, :1] + window[:, None] * steps) / side * 2 - 1
            x = (start[:, 1:] + window[:, None] * mirrored) / side * 2 - 1
            grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
            whole = canvases.pictures[torch.from_numpy(places).to(self.device)].float() / 255
            return F.grid_sample(whole, grid.to(self.device), mode, "border", align_corners=False).clamp(0, 1)

        # As sharp as the pipeline makes photos, which a bilinear view is not.
        photos, views = sample(self._photos, self._seen, "bicubic"), {}
        if view.jitter:
            views["plain"] = photos
            factors = ((2 * torch.stack(exposure) - 1) * view.jitter).exp()
            photos = expose(photos, *factors.to(self.device)[:, :, None, None, None])
        views["visible"] = photos
        if self._maps is not None:
            views["segmentation"] = sample(self._maps, view.crop, "nearest")
        if self._infrared is not None:
            views["picture"] = views["infrared"] = _shrunk(sample(self._infrared, self._seen, "bicubic"), view.crop)
            if view.edge_radius:
                guides = gray_levels(_shrunk(photos, view.crop))
                views["infrared"] = follow_edges_of_batch(
                    views["picture"], guides, view.edge_radius, _NO_BLUR, FLAT_INFRARED
                ).clamp(0, 1)
        return views

    def _mixed(
        self,
        views: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        mixed: np.ndarray,
        pasted: np.ndarray,
        numbers: np.ndarray,
    ) -> dict[str, Tensor]:
        """The views, of which those at the places `mixed` have a part of another.

        Those that are `pasted` have a rectangle of the other, photo and map. The rest is a mean of both photos; more of
        the view's own shows, whose map and caption stay.
        """
        weight, *box = torch.from_numpy(numbers).float().to(self.device).T  # [M] each

        def rectangles(size: int) -> Tensor:
            steps = (torch.arange(size, device=self.device) + 0.5) / size

            def within(one: Tensor, other: Tensor) -> Tensor:
                low, high = torch.minimum(one, other)[:, None], torch.maximum(one, other)[:, None]
                return (steps >= low) & (steps < high)  # [M, size]

            return (within(box[2], box[3])[:, :, None] & within(box[0], box[1])[:, None, :])[:, None].float()

        paste = torch.from_numpy(pasted).to(self.device)[:, None, None, None]
        weight = weight[:, None, None, None] / 2
        result = dict(views)
        for role, values in views.items():
            # A map has the colours of its regions and none between them.
            share = torch.where(
                paste, rectangles(values.shape[-1]), torch.zeros_like(weight) if role == "segmentation" else weight
            )
            result[role] = values.clone()
            result[role][mixed] = values[mixed] + share * (others[role] - values[mixed])
        return result

    def _partner(self, draw: Draw, uniform: float) -> int:
        """The example that a number in [0, 1) draws by the weights, to be mixed into the view of a draw."""
        cumulative = self._cumulative_of[self._bands[draw.index]] if self._is_real(draw) else self._cumulative
        return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))

    def _is_real(self, draw: Draw) -> bool:
        """Whether the target of the view of a draw is what the camera saw."""
        return self.config.real > 0 and self._random(draw, _REAL, 1)[0] < self.config.real

    def _number(self, draw: Draw) -> int:
        """Which of its example's views the draw has. Not all change in the same epoch."""
        if self._epochs is None:
            return draw.position
        return int(draw.epoch / self._epochs[draw.index] + mix_seed(draw.seed, draw.index, _CHANGE) / 2**63)

    def _random(self, draw: Draw, purpose: int, count: int) -> list[float]:
        generator = torch.Generator().manual_seed(mix_seed(draw.seed, draw.index, self._number(draw), purpose))
        return torch.rand(count, generator=generator).tolist()

    def _load(self, paths: Sequence[Path], shorter: int, resampling: Image.Resampling, channels: int = 3) -> _Canvases:
        def read(path: Path) -> np.ndarray:
            image = resize_shorter(open_image(path), shorter, resampling)
            # Of a panorama the middle.
            width, height = (min(length, 2 * shorter) for length in image.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            return np.array(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)[:channels]

        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(read, paths))
        sizes = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.float32)
        side = int(sizes.max())
        squares = [
            np.pad(picture, [(0, 0), *((0, side - length) for length in picture.shape[1:])], mode="edge")
            for picture in pictures
        ]
        return _Canvases(torch.from_numpy(np.stack(squares)).to(self.device), sizes)


def _shrunk(values: Tensor, side: int) -> Tensor:
    if values.shape[-1] == side:
        return values
    return F.interpolate(values, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def expose(photos: Tensor, gamma: Tensor, contrast: Tensor, colour: Tensor) -> Tensor:
    """`expose_differently` of a batch: photos (N, 3, H, W) in [0, 1], a factor (N, 1, 1, 1) each."""
    photos = photos**gamma
    middle = gray_levels(photos).mean(dim=(2, 3), keepdim=True)
    photos = (middle + contrast * (photos - middle)).clamp(0, 1)
    gray = gray_levels(photos)
    return (gray + colour * (photos - gray)).clamp(0, 1)
