"""The tiny autoencoder: a small `AutoencoderTiny` for infrared, visible and segmentation-map images alike.

Its latents are held near a simple description of the image (`structure_latents`), so that a small UNet finds its way
from photo to infrared; the decoder makes up for what they leave out, and learns from latents with a little noise on
them, so that it forgives what the UNet leaves inexact.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from PIL import Image, ImageEnhance
from torch import Tensor, nn

from diffv2ir.data import Example
from diffv2ir.files import write_atomically
from diffv2ir.imaging import open_image, to_tensor
from diffv2ir.training.images import random_integer
from diffv2ir.training.loop import Draw, Loop, LoopConfig

logger = logging.getLogger(__name__)

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture (diffusers' `AutoencoderTiny`, one width for the encoder and one for the decoder), mix of images.

    Attributes:
        crop: side in pixels of the training crops.
        latent_noise: standard deviation of the noise on the latents; the decoder limits them to [-3, 3].
        map_share: of the images; visible_share: of the others. The rest is infrared.
        saturation: the colours of half of the visible crops are stretched by up to this factor.
        structure_weight: of how far the latents are from `structure_latents`, beside the loss of the images.
        statistics_images: how many infrared images the scaling factor is measured on.
    """

    loop: LoopConfig
    encoder_width: int = 24
    width: int = 32
    encoder_blocks: tuple[int, ...] = (0, 1, 1)
    decoder_blocks: tuple[int, ...] = (3, 2, 1)
    crop: int = 80
    latent_noise: float = 0.05
    visible_share: float = 0.4
    map_share: float = 0.3
    saturation: float = 2.0
    structure_weight: float = 2.0
    statistics_images: int = 128


class AutoencoderObjective(nn.Module):
    """Images (N, 3, H, W) and latent noise (N, 4, h, w) -> reconstructions (N, 3, H, W) and latents (N, 4, h, w)."""

    def __init__(self, vae: AutoencoderTiny):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(images).latents
        return self.vae.decode(latents + noise).sample, latents


def train_autoencoder(examples: Sequence[Example], output: Path, config: AutoencoderConfig) -> Path:
    """Train on every image of `examples`; returns the folder with the finished component. Resumable, idempotent."""
    done = output / "vae"
    if (done / "config.json").is_file():
        return done
    torch.manual_seed(config.loop.seed)
    vae = AutoencoderTiny(
        encoder_block_out_channels=[config.encoder_width] * len(config.encoder_blocks),
        decoder_block_out_channels=[config.width] * len(config.decoder_blocks),
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
        latent_channels=LATENT_CHANNELS,
        act_fn="silu",  # with "relu" a quarter of the units die early, and brightness or colour is never learnt
    )
    keep_signal(vae)
    objective = AutoencoderObjective(vae).to(memory_format=torch.channels_last)
    visible = _small_arrays([e.visible for e in examples if e.visible])
    infrared = _small_arrays([e.infrared for e in examples if e.infrared])
    side = config.crop // 2 ** (len(config.encoder_blocks) - 1)

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        images, noise = [], []
        for draw in draws:
            generator = draw.generator()
            images.append(_draw_image(visible, infrared, config, generator))
            noise.append(torch.randn(LATENT_CHANNELS, side, side, generator=generator))
        device = next(model.parameters()).device
        target = torch.stack(images).to(device, memory_format=torch.channels_last)
        reconstruction, latents = model(target, config.latent_noise * torch.stack(noise).to(device))
        structure = F.mse_loss(latents.float(), structure_latents(target, config.crop // side))
        loss = reconstruction_loss(reconstruction, target) + config.structure_weight * structure
        return {"loss": loss, "structure": structure.detach()}

    loop = Loop(
        config.loop, output, objective, loss, len(visible) + len(infrared), name="autoencoder",
        save=lambda folder, model: model.vae.save_pretrained(folder / "vae"),
    )  # fmt: skip
    vae = loop.run().vae.eval()
    vae.register_to_config(scaling_factor=round(1 / latent_std(vae, examples, config.statistics_images), 4))
    write_atomically(done, vae.save_pretrained)
    (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": loop.history}))
    logger.info("autoencoder: scaling factor %.4f", vae.config.scaling_factor)
    return done


@torch.no_grad()
def keep_signal(vae: AutoencoderTiny) -> None:
    """Initialise so that latents and pictures start with a spread of about one.

    With PyTorch's default the signal fades to a hundredth on its way to the latents; what is learnt first through that
    is brightness, and colour never (He et al. 2015 is the initialisation; residual branches start at a quarter).
    """
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            block.conv[-1].weight.mul_(0.25)
    colours = 2 * torch.rand(16, 3, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3) - 1
    vae.encoder.layers[-1].weight.div_(vae.encode(colours).latents.std())
    vae.decoder.layers[-1].weight.div_(2 * vae.decode(vae.encode(colours).latents).sample.std())
    vae.decoder.layers[-1].bias.fill_(0.5)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error, that of differences between neighbours, which keeps edges, and that of colour, squared.

    Most pixels are nearly gray, so the best guess by the absolute error is gray as long as the colour is uncertain, and
    colour would never be learnt; by the squared error it is the mean.
    """
    error = prediction - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    colour = F.avg_pool2d(from_gray(error), 4).square().mean()
    return error.abs().mean() + 0.5 * edges + 6 * colour


def structure_latents(images: Tensor, stride: int = 4) -> Tensor:
    """What the latents should be: brightness, its spread and two colours of each square of `stride`.

    A UNet that is small and sees little data must find the infrared picture in the photo. Between such latents the way
    is short, and they tell apart what is warm and what is cold: leaves from a wall by their green and their texture, a
    map's regions by their colours. Those of an autoencoder that is free to choose are better at rebuilding and far
    harder to predict from another camera's.

    Args:
        images: (N, 3, H, W) in [-1, 1], sides divisible by `stride`.

    Returns: (N, 4, H / stride, W / stride): brightness, its standard deviation within the square, red less blue, green
        less both; scaled to spread alike, colours so that those of maps, which are ten times as strong, fit as well.
    """
    red, green, blue = images.unbind(dim=1)
    brightness = images.mean(dim=1)
    mean, squares, red_less_blue, green_less_both = F.avg_pool2d(
        torch.stack([brightness, brightness.square(), red - blue, green - (red + blue) / 2], dim=1), stride
    ).unbind(dim=1)
    spread = (squares - mean.square()).clamp(min=0).sqrt()
    return torch.stack([2 * mean, 4 * spread, (4 * red_less_blue).asinh(), (8 * green_less_both).asinh()], dim=1)


def from_gray(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) less their brightness."""
    return images - images.mean(dim=1, keepdim=True)


@torch.no_grad()
def latent_std(vae: AutoencoderTiny, examples: Sequence[Example], count: int) -> float:
    """Standard deviation of infrared latents over `count` images: its inverse is the scaling factor."""
    paths = [e.infrared for e in examples if e.infrared]
    values = [
        vae.encode(to_tensor(open_image(path).resize((256, 256)))[None]).latents.flatten()
        for path in paths[:: max(1, len(paths) // count)]
    ]
    return float(torch.cat(values).std())


def _small_arrays(paths: Sequence[Path]) -> list[np.ndarray]:
    """All images as uint8 RGB arrays in memory: some 300 KB each."""
    return [np.asarray(open_image(path)) for path in paths]


def _draw_image(visible: list, infrared: list, config: AutoencoderConfig, generator: torch.Generator) -> Tensor:
    """A random crop at a random scale of a random visible, infrared or map image: (3, crop, crop) in [-1, 1]."""
    kind = float(torch.rand((), generator=generator))
    of_visible = config.map_share + config.visible_share * (1 - config.map_share)
    pool = visible if kind < of_visible and visible else infrared
    array = pool[random_integer(len(pool) - 1, generator)]
    largest = min(array.shape[:2])
    side = min(largest, config.crop + random_integer(max(0, largest - config.crop), generator))
    if torch.rand((), generator=generator) < 0.5:
        side = min(largest, config.crop)
    top = random_integer(array.shape[0] - side, generator)
    left = random_integer(array.shape[1] - side, generator)
    image = Image.fromarray(array[top : top + side, left : left + side])
    image = image.resize((config.crop, config.crop), Image.Resampling.BICUBIC)
    if kind < config.map_share:
        image = _flat_regions(image, generator)
    elif pool is visible and torch.rand((), generator=generator) < 0.5:
        factor = 1 + (config.saturation - 1) * float(torch.rand((), generator=generator))
        image = ImageEnhance.Color(image).enhance(factor)
    tensor = to_tensor(image)
    return tensor.flip(-1) if torch.rand((), generator=generator) < 0.5 else tensor


def _flat_regions(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A stand-in for a segmentation map: gray levels of a coarse version of the photo, each in a map colour."""
    coarse = image.convert("L").resize((12, 12), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    levels = np.asarray(coarse).astype(int) * (2 + random_integer(4, generator)) // 256
    colours = torch.randint(256, (8, 3), generator=generator).numpy().astype(np.uint8)
    if torch.rand((), generator=generator) < 0.2:
        colours = np.asarray([[0, 0, 0], [255, 255, 255]] * 4, dtype=np.uint8)
    return Image.fromarray(colours[levels])
