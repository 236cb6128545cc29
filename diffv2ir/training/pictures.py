"""The loss of the picture that is shown, beside that of its latents, where one step makes the picture.

A mean squared error of latents has one answer to what a photo does not tell, the mean of what is possible: outlines
are lost, and who may be there is not drawn. Compared are therefore the decoded pictures, with the photo's edges as the
pipeline gives them, and by what a network sees in them as well (Johnson et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from diffv2ir.edges import follow_edges_of_batch, generated_window
from diffv2ir.efficientnet import EfficientNetLite0, map_distances, network_levels
from diffv2ir.metrics import ssim_of_batch
from diffv2ir.settings import GenerationSettings


@dataclass(frozen=True)
class PictureConfig:
    """What is compared, and how much it weighs.

    Attributes:
        latents: weight of the loss of latents for those samples that have a picture; 1 for the others.
        squared: of the mean squared error of gray levels, which span [0, 1].
        structure: of 1 - SSIM. perceptual: of the distance between features of EfficientNet-Lite1.
        edge_radius: the picture gets the photo's edges, as by the setting of that name; 0 = it stays as decoded.
    """

    latents: float = 0.2
    squared: float = 10.0
    structure: float = 0.3
    perceptual: float = 1.5
    edge_radius: float = 8.0

    def __post_init__(self) -> None:
        GenerationSettings(edge_radius=self.edge_radius)  # raises where the pipeline would
        for name in ("latents", "squared", "structure", "perceptual"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.squared + self.structure + self.perceptual:
            raise ValueError("one of squared, structure and perceptual must be above 0: else leave the picture out")


class PictureLoss:
    """Compares estimates of latents with the pictures that cameras took.

    Args:
        vae, network: frozen, on the device; without `network` no perceptual loss.
        dtype: in what decoder and network compute, as autocast does it.
    """

    def __init__(
        self,
        config: PictureConfig,
        vae: AutoencoderKL | AutoencoderTiny,
        network: EfficientNetLite0 | None,
        dtype: torch.dtype = torch.float32,
    ):
        self.config, self.vae, self.network, self.dtype = config, vae, network, dtype

    def __call__(self, estimates: Tensor, photos: Tensor, real: Tensor) -> dict[str, Tensor]:
        """The weighted "picture" loss, a mean over the samples, and its parts before they are weighted.

        Args:
            estimates: latents (N, C, h, w), scaled. photos: (N, 3, H, W) in [0, 1]. real: (N, 1, H, W) in [0, 1].
        """
        shown = self.shown(estimates, photos)
        parts = {"squared": F.mse_loss(shown, real), "structure": 1 - ssim_of_batch(shown, real).mean()}
        if self.config.perceptual and self.network is not None:
            parts["perceptual"] = map_distances(self._see(shown), self._see(real)).mean()
        return {"picture": sum(getattr(self.config, name) * value for name, value in parts.items()), **parts}

    def shown(self, estimates: Tensor, photos: Tensor) -> Tensor:
        """What the pipeline would show of the estimates, before gain control: (N, 1, H, W), in [0, 1] or nearly so."""
        with self._autocast(photos):
            latents = (estimates / self.vae.config.scaling_factor).to(next(self.vae.parameters()).dtype)
            pixels = self.vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
        levels = (pixels.float().mean(1, keepdim=True) + 1) / 2
        if not self.config.edge_radius:
            return levels
        return follow_edges_of_batch(levels, photos, *generated_window(self.config.edge_radius, levels.shape))

    def _see(self, pictures: Tensor) -> list[Tensor]:
        """Maps from a quarter of the size down, channels of each place scaled to unit length."""
        pixels = network_levels(pictures.expand(-1, 3, -1, -1))
        with self._autocast(pictures):
            maps = self.network.maps(pixels.contiguous(memory_format=torch.channels_last))
        return [F.normalize(values.float(), dim=1) for values in maps[1:]]

    def _autocast(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, self.dtype, enabled=self.dtype != torch.float32)
