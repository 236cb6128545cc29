"""A teacher for phase 2 of a small UNet: what a network that knows things can tell of infrared from a photo.

A UNet from scratch does not learn from a few hundred pairs what people, leaves and walls are. EfficientNet-Lite0 learnt
it from ImageNet; a small decoder on its features learns in minutes where a scene is warm. The pictures that it predicts
for the photos of the training set are a part of phase 2's target (`PhaseConfig.teacher_share`; Hinton et al. 2015).
Neither network is needed to use the bundle, and neither is in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffv2ir.data import Example
from diffv2ir.edges import brightness, follow_edges
from diffv2ir.efficientnet import EfficientNetLite0, imagenet_network, network_pixels
from diffv2ir.files import write_file_atomically
from diffv2ir.imaging import from_levels
from diffv2ir.training.cache import PICTURES, PictureFolder, ViewConfig, Views, file_hash
from diffv2ir.training.config import example_weights
from diffv2ir.training.images import load_rgb, resize_shorter
from diffv2ir.training.loop import Draw, Loop, LoopConfig, TrainingError
from diffv2ir.vlum.prompt import BANDS, known_band

# The teacher's picture has one gray level for so many pixels a side.
STRIDE = 4
# Channels of `EfficientNetLite0.maps` at strides 4 to 32.
_CHANNELS = (24, 40, 112, 320)
_POOLED = 1280
_GROUPS = 8
# How its edges are those of the photo, in places of its coarse picture (`follow_edges`).
_EDGE_RADIUS, _EDGE_BLUR = 4, 0.5
_WEIGHTS = "decoder.safetensors"
# In its header.
_BANDS = "bands"


@dataclass(frozen=True)
class TeacherConfig:
    """A decoder on ImageNet features.

    Attributes:
        view: each view has one crop, whose features are made once.
        members: decoders that are trained, each from its own random numbers; the picture is the mean of theirs.
        width: channels of a decoder, a multiple of 8.
        dropout: share of the feature channels that a sample goes without.
        kinds, source_weights, validation_fraction: as in `PhaseConfig`, and those of the phases that learn from it.
    """

    loop: LoopConfig
    view: ViewConfig = ViewConfig()
    members: int = 1
    width: int = 48
    dropout: float = 0.2
    kinds: tuple[str, ...] = ("pairs",)
    source_weights: dict[str, float] = field(default_factory=dict)
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"members must be at least 1, got {self.members}")
        if self.width % _GROUPS or self.width < 1:
            raise ValueError(f"width must be a multiple of {_GROUPS}, got {self.width}")


class PictureDecoder(nn.Module):
    """Feature maps, pooled features and the photo itself -> gray levels, one for every `STRIDE` pixels a side, by band.

    The bands share all but the last layer: what things there are is the same in each.
    """

    def __init__(self, width: int, dropout: float, bands: Sequence[str] = BANDS[:1]):
        super().__init__()
        self.dropout, self.bands = dropout, tuple(bands)
        self.features = nn.ModuleList(
            [nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, width, 1)) for channels in _CHANNELS]
        )
        self.whole = nn.Linear(_POOLED, width)
        self.pixels = nn.ModuleList([_block(3 if level == 0 else width, width) for level in range(len(_CHANNELS))])
        self.lowest = _block(width, width)
        self.up = nn.ModuleList([_block(2 * width, width) for _ in _CHANNELS[1:]])
        self.out = nn.Conv2d(width, len(self.bands), 3, padding=1)

    def forward(self, photos: Tensor, maps: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Photos (N, 3, H/4, W/4) in [-0.5, 0.5], maps at strides 4 to 32, pooled (N, 1280) -> (N, B, H/4, W/4)."""
        seen, hidden = [], photos
        for level, (feature, pixel) in enumerate(zip(self.features, self.pixels, strict=True)):
            hidden = pixel(hidden if level == 0 else _resize(hidden, maps[level]))
            seen.append(feature(maps[level]) + hidden)
        hidden = seen.pop() + self.whole(F.dropout(pooled, self.dropout, self.training))[:, :, None, None]
        hidden = self.lowest(hidden)
        for up in self.up:
            finer = seen.pop()
            hidden = up(torch.cat([_resize(hidden, finer), finer], dim=1))
        return self.out(hidden)


def _block(channels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.SiLU())


def _resize(values: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    if values.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(values, size)
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def train_teacher(examples: Sequence[Example], output: Path, config: TeacherConfig) -> Path:
    """Train on the pairs of `examples`; returns `output/pictures`, one gray PNG an example and band of theirs.

    Resumable, idempotent.

    Raises:
        TrainingError: the package with the ImageNet weights is not installed, or `output` holds a decoder of another
            width. See also `Loop`.
    """
    network = load_network()
    chosen = [e for e in examples if e.kind in config.kinds and e.visible and e.infrared]
    pictures = PictureFolder(output / PICTURES)
    decoders = _trained_decoders(network, chosen, output, config)
    bands = decoders[0].bands
    missing = [e for e in chosen if not all(pictures.path(e, band).is_file() for band in bands)]
    for example in tqdm(missing, desc="teacher's pictures", disable=not missing, mininterval=5):
        drawn = predict(decoders, network, load_rgb(example.visible), config.view.crop, bands)
        for band, picture in zip(bands, drawn, strict=True):
            write_file_atomically(pictures.path(example, band), picture.save)
    return pictures.folder


def load_network() -> EfficientNetLite0:
    """`imagenet_network`, for trainings.

    Raises:
        TrainingError: the weights are not installed; the message says how to install them.
    """
    try:
        return imagenet_network()
    except ModuleNotFoundError as error:
        raise TrainingError(str(error)) from error


def _trained_decoders(
    network: EfficientNetLite0, examples: list[Example], output: Path, config: TeacherConfig
) -> list[PictureDecoder]:
    """The members, after training. The features of all views stay in memory meanwhile: about 0.5 MB a view."""
    folders = [output / f"member{number}" for number in range(config.members)]
    if not all((folder / _WEIGHTS).is_file() for folder in folders):
        shutil.rmtree(output / PICTURES, ignore_errors=True)  # those of fewer decoders, or of others
        views, variants = Views(config.view, config.loop.seed), range(config.view.variants)
        seen = [
            [_look(views, example, variant, network, config.view.crop) for variant in variants]
            for example in tqdm(examples, desc="ImageNet features", mininterval=5)
        ]
        weights = example_weights(config.source_weights, examples)
        bands = [known_band(example.band) for example in examples]
        for number, folder in enumerate(folders):
            if not (folder / _WEIGHTS).is_file():
                loop = replace(config.loop, seed=config.loop.seed + number)
                _train_decoder(seen, bands, weights, folder, loop, config)
    decoders = [_load_decoder(folder / _WEIGHTS) for folder in folders]
    for decoder, folder in zip(decoders, folders, strict=True):
        if decoder.out.in_channels != config.width:
            raise TrainingError(f"{folder} was trained with another width: choose another output folder")
    return decoders


def _load_decoder(path: Path) -> PictureDecoder:
    weights = load_file(path)
    decoder = PictureDecoder(weights["out.weight"].shape[1], dropout=0.0, bands=_bands_of(path)).eval()
    decoder.load_state_dict(weights)
    return decoder


def _train_decoder(
    seen: list[list[tuple[Tensor, ...]]],
    bands: list[str],
    weights: list[float] | None,
    output: Path,
    loop: LoopConfig,
    config: TeacherConfig,
) -> None:
    """Train one member on the crops of all examples, each in its band, and write its weights into `output`."""
    known = [band for band in BANDS if band in bands]

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        drawn = [seen[draw.index][draw.epoch % config.view.variants] for draw in draws]
        device = next(model.parameters()).device
        photos, infrared, pooled, *maps = (torch.stack(parts).to(device).float() for parts in zip(*drawn, strict=True))
        channels = [known.index(bands[draw.index]) for draw in draws]
        predicted = model(photos, maps, pooled)[torch.arange(len(draws)), channels]
        return {"loss": F.mse_loss(predicted[:, None], infrared)}

    torch.manual_seed(loop.seed)
    decoder = PictureDecoder(config.width, config.dropout, known)

    def write(path: Path, model: nn.Module) -> None:
        save_file(model.state_dict(), path, {_BANDS: json.dumps(known)})

    def save(folder: Path, model: nn.Module) -> None:
        write(folder / _WEIGHTS, model)

    training = Loop(loop, output, decoder, loss, len(seen), weights=weights, name="teacher", save=save)
    trained = training.run()
    (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": training.history}))
    write_file_atomically(output / _WEIGHTS, lambda path: write(path, trained))


def _look(views: Views, example: Example, variant: int, network: EfficientNetLite0, crop: int) -> tuple[Tensor, ...]:
    """One crop as float16: photo and infrared picture at 1 / `STRIDE`, pooled features, feature maps."""
    cut = views.cut({"visible": example.visible, "infrared": example.infrared}, example, variant)
    width, height = cut["visible"].size
    top, left = views.place(example, variant, (height - crop, width - crop))
    photo, infrared = (cut[role].crop((left, top, left + crop, top + crop)) for role in ("visible", "infrared"))
    maps, pooled = _features(network, photo)
    return tuple(part[0].half() for part in (_coarse(photo), _coarse(infrared)[:, :1], pooled, *maps))


@torch.inference_mode()
def _features(network: EfficientNetLite0, photo: Image.Image) -> tuple[list[Tensor], Tensor]:
    """Maps at strides 4 to 32 and pooled features of one photo."""
    maps = network.maps(network_pixels(photo)[None].contiguous(memory_format=torch.channels_last))
    return maps[1:], network.pooled(maps[-1])


def _coarse(image: Image.Image) -> Tensor:
    """A picture (1, 3, H / `STRIDE`, W / `STRIDE`) in [-0.5, 0.5]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255 - 0.5
    return F.avg_pool2d(pixels, STRIDE, ceil_mode=True)


def teacher_hash(folder: Path) -> list[str]:
    """What the answers of the finished teacher in a folder depend on: SHA-256 of each decoder.

    Raises:
        TrainingError: the folder holds no finished teacher.
    """
    return [file_hash(path) for path in _decoder_files(folder)]


def teacher_bands(folder: Path) -> tuple[str, ...]:
    """The bands that the finished teacher in a folder knows.

    Raises:
        TrainingError: the folder holds no finished teacher.
    """
    return _bands_of(_decoder_files(folder)[0])


def _bands_of(decoder: Path) -> tuple[str, ...]:
    with safe_open(decoder, "pt") as file:
        return tuple(json.loads(file.metadata()[_BANDS]))


def _decoder_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(f"member*/{_WEIGHTS}"))
    if not files:
        raise TrainingError(f"{folder} holds no finished teacher: python -m train.teacher --output {folder}")
    return files


class Teacher:
    """The finished teacher of a folder that `train_teacher` wrote: any number of photos, when they are needed.

    Raises:
        TrainingError: the folder holds no finished teacher, or the ImageNet weights are not installed.
    """

    def __init__(self, folder: Path):
        files = _decoder_files(folder)
        self.hash = teacher_hash(folder)
        self._network, self._decoders = load_network(), [_load_decoder(path) for path in files]
        stored = json.loads((files[0].parent / "history.json").read_text(encoding="utf-8"))
        self._side = stored["config"]["view"]["crop"]

    def picture(self, photo: Image.Image, band: str) -> Image.Image:
        """What `predict` gives for an RGB photo in one band, without its mirror image."""
        return predict(self._decoders, self._network, photo, self._side, [band], mirror=False)[0]


@torch.inference_mode()
def predict(
    decoders: Sequence[PictureDecoder],
    network: EfficientNetLite0,
    photo: Image.Image,
    side: int,
    bands: Sequence[str] = BANDS[:1],
    mirror: bool = True,
) -> list[Image.Image]:
    """The teacher's infrared pictures of a photo, one a band: gray, of the photo's size, with its edges.

    The mean of what the decoders predict for the photo and, with `mirror`, for its mirror image, each with the shorter
    side `side`.
    """
    channels = [decoders[0].bands.index(band) for band in bands]
    small = resize_shorter(photo, side)
    levels = []
    for mirrored in (False, True) if mirror else (False,):
        view = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else small
        maps, pooled = _features(network, view)
        for decoder in decoders:
            predicted = decoder(_coarse(view), maps, pooled)[0, channels] + 0.5
            levels.append(predicted.flip(-1) if mirrored else predicted)
    coarse, seen = torch.stack(levels).mean(0).clamp(0, 1).numpy(), brightness(photo)
    return [from_levels(follow_edges(picture, seen, _EDGE_RADIUS, _EDGE_BLUR)) for picture in coarse]
