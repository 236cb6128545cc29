"""The tiny autoencoder: a small `AutoencoderKL` for infrared, visible and segmentation-map images alike.

Two terms keep its latents easy to predict: a KL weight far above Stable Diffusion's, and, every fourth step, an
equivariance term (the decoding of a down-scaled latent must be the down-scaled image).
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
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from diffv2ir.data import Example
from diffv2ir.training.images import load_rgb, random_integer, to_tensor
from diffv2ir.training.loop import Draw, Loop, LoopConfig, write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture (diffusers' `AutoencoderKL`), loss weights and the mix of images."""

    loop: LoopConfig
    block_out_channels: tuple[int, ...] = (24, 48, 64, 96)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 8
    crop: int = 64
    visible_share: float = 0.4
    map_share: float = 0.15
    kl_weight: float = 5e-4
    equivariance_every: int = 4
    statistics_images: int = 128


class AutoencoderObjective(nn.Module):
    """One forward pass with everything the loss needs, so that it works under any parallel wrapper."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor, downscale: bool) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) and posterior noise (N, C, h, w) -> reconstruction (half size if `downscale`), KL."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise  # [N, C, h, w]
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        if downscale:
            latents = F.avg_pool2d(latents, 2)
        return self.vae.decode(latents).sample, kl


def train_autoencoder(examples: Sequence[Example], output: Path, config: AutoencoderConfig) -> Path:
    """Train on every image of `examples`; returns the folder with the finished component. Resumable, idempotent."""
    done = output / "vae"
    if (done / "config.json").is_file():
        return done
    torch.manual_seed(config.loop.seed)
    levels = len(config.block_out_channels)
    vae = AutoencoderKL(
        block_out_channels=config.block_out_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=256,
    )
    objective = AutoencoderObjective(vae).to(memory_format=torch.channels_last)
    visible = _small_arrays([e.visible for e in examples if e.visible])
    infrared = _small_arrays([e.infrared for e in examples if e.infrared])
    factor = 2 ** (levels - 1)

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        images, noise = [], []
        for draw in draws:
            generator = draw.generator()
            images.append(_draw_image(visible, infrared, config, generator))
            noise.append(torch.randn(config.latent_channels, *[config.crop // factor] * 2, generator=generator))
        device = next(model.parameters()).device
        target = torch.stack(images).to(device, memory_format=torch.channels_last)
        step = draws[0].position // config.loop.batch_size
        downscale = step % config.equivariance_every == config.equivariance_every - 1
        reconstruction, kl = model(target, torch.stack(noise).to(device), downscale)
        if downscale:
            target = F.avg_pool2d(target, 2)
        pixel = reconstruction_loss(reconstruction, target)
        key = "equivariance" if downscale else "reconstruction"
        return {"loss": pixel + config.kl_weight * kl, key: pixel.detach(), "kl": kl.detach()}

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


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error plus that of the horizontal and vertical differences, which keeps edges from blurring."""
    horizontal = (prediction.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    vertical = (prediction.diff(dim=-2) - target.diff(dim=-2)).abs().mean()
    return (prediction - target).abs().mean() + 0.5 * (horizontal + vertical)


@torch.no_grad()
def latent_std(vae: AutoencoderKL, examples: Sequence[Example], count: int) -> float:
    """Standard deviation of infrared latents over `count` images: its inverse is the scaling factor."""
    paths = [e.infrared for e in examples if e.infrared]
    values = [
        vae.encode(to_tensor(load_rgb(path).resize((256, 256)))[None]).latent_dist.mode().flatten()
        for path in paths[:: max(1, len(paths) // count)]
    ]
    return float(torch.cat(values).std())


def _small_arrays(paths: Sequence[Path]) -> list[np.ndarray]:
    """All images as uint8 RGB arrays in memory: some 300 KB each."""
    return [np.asarray(load_rgb(path)) for path in paths]


def _draw_image(visible: list, infrared: list, config: AutoencoderConfig, generator: torch.Generator) -> Tensor:
    """A random crop at a random scale of a random visible, infrared or map image: (3, crop, crop) in [-1, 1]."""
    kind = float(torch.rand((), generator=generator))
    pool = visible if kind < config.visible_share + config.map_share and visible else infrared
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
