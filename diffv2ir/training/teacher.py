"""A teacher for phase 2 of a small UNet: what a network that knows things can tell of infrared from a photo.

A UNet from scratch does not learn from a few hundred pairs what people, leaves and walls are. EfficientNet-Lite0 learnt
it from ImageNet; with a small decoder on its features it learns from the pairs where a scene is warm. What it predicts
for views of the photos is phase 2's target (`PhaseConfig.taught`; Hinton et al. 2015). It is not needed to use the
bundle, and not in it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffv2ir.data import DataError, Example
from diffv2ir.edges import follow_edges_of_batch, gray_levels
from diffv2ir.efficientnet import EfficientNetLite0, imagenet_network, network_levels
from diffv2ir.files import write_file_atomically
from diffv2ir.training.cache import ViewConfig, Views, file_hash
from diffv2ir.training.config import example_weights
from diffv2ir.training.images import to_bytes
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
_WEIGHTS = "teacher.safetensors"
# In its header: what it can be asked for, and the shorter side of the photos that it was trained on.
_BANDS, _SIDE = "bands", "side"


@dataclass(frozen=True)
class Member:
    """One network of a teacher.

    Attributes:
        finetune: EfficientNet's weights are trained as well, all but the statistics of its normalisations.
        width: channels of the decoder, a multiple of 8.
        dropout: share of the feature channels that a sample goes without.
        steps, learning_rate: in place of those of the teacher's loop.
    """

    finetune: bool = False
    width: int = 48
    dropout: float = 0.2
    steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.width % _GROUPS or self.width < 1:
            raise ValueError(f"width must be a multiple of {_GROUPS}, got {self.width}")

    def loop(self, common: LoopConfig, number: int) -> LoopConfig:
        """How member `number` of a teacher is trained."""
        own = {name: value for name in ("steps", "learning_rate") if (value := getattr(self, name)) is not None}
        return replace(common, seed=common.seed + number, **own)


@dataclass(frozen=True)
class TeacherConfig:
    """Networks whose mean is the teacher: the more they differ, the more of their errors it evens out.

    Attributes:
        view: each view has one crop, which stays in memory: about 0.2 MB.
        members: the networks; each has its own random numbers.
        kinds, source_weights, validation_fraction: as in `PhaseConfig`, and those of the phases that learn from it.
    """

    loop: LoopConfig
    view: ViewConfig = ViewConfig()
    members: tuple[Member, ...] = (Member(),)
    kinds: tuple[str, ...] = ("pairs",)
    source_weights: dict[str, float] = field(default_factory=dict)
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("a teacher has at least one of members")


class PictureDecoder(nn.Module):
    """Feature maps, pooled features and the photo itself -> gray levels, one for every `STRIDE` pixels a side, by band.

    The bands share all but the last layer: what things there are is the same in each.
    """

    def __init__(self, width: int, dropout: float, bands: Sequence[str] = BANDS[:1]):
        super().__init__()
        self.dropout = dropout
        self.features = nn.ModuleList(
            [nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, width, 1)) for channels in _CHANNELS]
        )
        self.whole = nn.Linear(_POOLED, width)
        self.pixels = nn.ModuleList([_block(3 if level == 0 else width, width) for level in range(len(_CHANNELS))])
        self.lowest = _block(width, width)
        self.up = nn.ModuleList([_block(2 * width, width) for _ in _CHANNELS[1:]])
        self.out = nn.Conv2d(width, len(bands), 3, padding=1)

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


class PictureNetwork(nn.Module):
    """A photo -> gray levels by band, one for every `STRIDE` pixels a side: a decoder on a copy of `network`."""

    def __init__(self, network: EfficientNetLite0, decoder: PictureDecoder):
        super().__init__()
        self.network, self.decoder = copy.deepcopy(network), decoder
        self.network._fc = nn.Identity()  # ImageNet's classes are not asked for

    def train(self, mode: bool = True) -> PictureNetwork:
        """As in torch, but EfficientNet keeps normalising by ImageNet's statistics: batches here are small."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, photos: Tensor) -> Tensor:
        """(N, 3, H, W) as `network_pixels` gives them -> (N, B, H/4, W/4), of which -0.5 is black and 0.5 white."""
        maps = self.network.maps(photos)
        pooled = self.network.pooled(maps[-1])
        coarse = F.avg_pool2d((photos * 128 + 127) / 255 - 0.5, STRIDE, ceil_mode=True)
        return self.decoder(coarse, maps[1:], pooled)


def train_teacher(examples: Sequence[Example], output: Path, config: TeacherConfig) -> Path:
    """Train on the pairs of `examples`; returns `output`, from which `Teacher` loads it. Resumable, idempotent.

    Raises:
        DataError: there is nothing to learn from.
        TrainingError: the package with the ImageNet weights is not installed, or `output` holds a network of another
            width, or more networks. See also `Loop`.
    """
    chosen = [e for e in examples if e.kind in config.kinds and e.visible and e.infrared]
    if not chosen:
        raise DataError(f"the teacher has no example of kinds {config.kinds} with both images")
    folders = [output / f"member{number}" for number in range(len(config.members))]
    if surplus := sorted(set(output.glob("member*")) - set(folders)):
        raise TrainingError(f"the configuration has no {surplus[0].name}, {output} has: choose another output folder")
    if not all((folder / _WEIGHTS).is_file() for folder in folders):
        crops = cut_crops(chosen, config)  # those of all views stay in memory meanwhile
        weights = example_weights(config.source_weights, chosen)
        bands = [known_band(example.band) for example in chosen]
        for number, (member, folder) in enumerate(zip(config.members, folders, strict=True)):
            if not (folder / _WEIGHTS).is_file():
                train_member(crops, bands, weights, folder, member, member.loop(config.loop, number))
    for member, folder in zip(config.members, folders, strict=True):
        if _width_of(folder / _WEIGHTS) != member.width:
            raise TrainingError(f"{folder} was trained with another width: choose another output folder")
    return output


def load_network(load: Callable[[], EfficientNetLite0] | None = None) -> EfficientNetLite0:
    """`imagenet_network`, or what another function of `diffv2ir.efficientnet` loads, for trainings.

    Raises:
        TrainingError: the weights are not installed; the message says how to install them.
    """
    try:
        return (load or imagenet_network)()
    except ModuleNotFoundError as error:
        raise TrainingError(str(error)) from error


def _width_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return file.get_slice("decoder.out.weight").get_shape()[1]


def _load_member(path: Path) -> PictureNetwork:
    decoder = PictureDecoder(_width_of(path), dropout=0.0, bands=_bands_of(path))
    member = PictureNetwork(EfficientNetLite0(), decoder).eval().requires_grad_(False)
    member.load_state_dict(load_file(path))
    return member


def cut_crops(examples: Sequence[Example], config: TeacherConfig) -> list[list[tuple[Tensor, Tensor]]]:
    """The crops of all views of all examples: photo (3, H, W) uint8, infrared picture (1, H/4, W/4) float16."""
    views, variants = Views(config.view, config.loop.seed), range(config.view.variants)

    def crops(example: Example) -> list[tuple[Tensor, Tensor]]:
        return [_crop(views, example, variant, config.view.crop) for variant in variants]

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(crops, examples), desc="views", total=len(examples), mininterval=5))


def train_member(
    crops: Sequence[Sequence[tuple[Tensor, Tensor]]],
    bands: Sequence[str],
    weights: list[float] | None,
    output: Path,
    config: Member,
    loop: LoopConfig,
) -> PictureNetwork:
    """Train one member on the crops of all examples, each in its band, and write its weights into `output`."""
    known = [band for band in BANDS if band in bands]

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        drawn = [crops[draw.index][draw.epoch % len(crops[draw.index])] for draw in draws]
        device = next(model.parameters()).device
        # float32 first: autocast to bfloat16 refuses to stack float16.
        photos, infrared = (torch.stack([p.float() for p in parts]).to(device) for parts in zip(*drawn, strict=True))
        channels = [known.index(bands[draw.index]) for draw in draws]
        photos = photos.sub(127).div(128).contiguous(memory_format=torch.channels_last)
        predicted = model(photos)[torch.arange(len(draws)), channels]
        return {"loss": F.mse_loss(predicted[:, None], infrared)}

    torch.manual_seed(loop.seed)
    member = PictureNetwork(load_network(), PictureDecoder(config.width, config.dropout, known))
    member.network.requires_grad_(config.finetune)
    side = crops[0][0][0].shape[-1]

    def write(path: Path, model: nn.Module) -> None:
        save_file(model.state_dict(), path, {_BANDS: json.dumps(known), _SIDE: str(side)})

    def save(folder: Path, model: nn.Module) -> None:
        write(folder / _WEIGHTS, model)

    training = Loop(loop, output, member, loss, len(crops), weights=weights, name="teacher", save=save)
    trained = training.run()
    (output / "history.json").write_text(json.dumps({"config": asdict(loop), "history": training.history}))
    write_file_atomically(output / _WEIGHTS, lambda path: write(path, trained))
    return trained


def _crop(views: Views, example: Example, variant: int, crop: int) -> tuple[Tensor, Tensor]:
    cut = views.cut({"visible": example.visible, "infrared": example.infrared}, example, variant)
    width, height = cut["visible"].size
    top, left = views.place(example, variant, (height - crop, width - crop))
    photo, infrared = (
        to_bytes(cut[role].crop((left, top, left + crop, top + crop))) for role in ("visible", "infrared")
    )
    return photo, F.avg_pool2d(infrared[None, :1].float() / 255 - 0.5, STRIDE, ceil_mode=True)[0].half()


def teacher_hash(folder: Path) -> list[str]:
    """SHA-256 of each member of the finished teacher in a folder.

    Raises:
        TrainingError: the folder holds no finished teacher.
    """
    return [file_hash(path) for path in _member_files(folder)]


def teacher_bands(folder: Path) -> tuple[str, ...]:
    """The bands that the finished teacher in a folder knows.

    Raises:
        TrainingError: the folder holds no finished teacher.
    """
    return _bands_of(_member_files(folder)[0])


def _bands_of(member: Path) -> tuple[str, ...]:
    return tuple(json.loads(_header(member)[_BANDS]))


def _header(member: Path) -> dict[str, str]:
    with safe_open(member, "pt") as file:
        return file.metadata()


def _member_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(f"member*/{_WEIGHTS}"))
    if not files:
        raise TrainingError(f"{folder} holds no finished teacher: python -m train.teacher --output {folder}")
    return files


class Teacher:
    """The finished teacher of a folder that `train_teacher` wrote: any number of photos, when they are needed.

    Attributes:
        side: the shorter side of the photos that it was trained on, to which it resizes every photo.

    Raises:
        TrainingError: the folder holds no finished teacher.
    """

    def __init__(self, folder: Path):
        files = _member_files(folder)
        self.bands = _bands_of(files[0])
        self._members = [_load_member(path) for path in files]
        self.side = int(_header(files[0])[_SIDE])

    def to(self, device: torch.device) -> Teacher:
        """Move the members; returns the teacher."""
        for member in self._members:
            member.to(device)
        return self

    @torch.no_grad()
    def pictures(self, photos: Tensor, bands: Sequence[str]) -> Tensor:
        """The infrared pictures of a batch on the device: photos (N, 3, H, W) in [0, 1], a band each -> (N, 1, H, W).

        They are in [0, 1], with the photos' edges. Sides are multiples of half of `STRIDE`.
        """
        scale = self.side / min(photos.shape[-2:])
        size = [round(scale * length) for length in photos.shape[-2:]]
        small = photos
        if list(photos.shape[-2:]) != size:
            small = F.interpolate(photos, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        pixels = network_levels(small).contiguous(memory_format=torch.channels_last)
        channels = torch.tensor([self.bands.index(band) for band in bands], device=photos.device)
        places = torch.arange(len(photos), device=photos.device)
        coarse = torch.stack([member(pixels)[places, channels] for member in self._members]).mean(0) + 0.5
        return follow_edges_of_batch(coarse[:, None].clamp(0, 1), gray_levels(photos), _EDGE_RADIUS, _EDGE_BLUR)
