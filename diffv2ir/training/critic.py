"""An adversary for the denoised estimate: a picture of few steps is sharp, not the mean of all that it could be.

Patches of estimates are told from patches of real infrared latents beside the same photo (PatchGAN, Isola et al. 2017;
on the estimate of a diffusion model: Sauer et al. 2023). Not in the paper, which samples 100 steps with a large model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CriticSettings:
    """How an adversary takes part in a phase.

    Attributes:
        weight: of the adversarial loss, in units of the objective's.
        features: of the distance between the critic's features of estimate and real latents (Wang et al. 2018).
        from_timestep: estimates of this noise level and above are judged.
        width: channels of the critic's first layer.
    """

    weight: float = 0.02
    features: float = 0.0
    from_timestep: int = 600
    width: int = 64


class PatchCritic(nn.Module):
    """Target and visible latents (N, C, h, w) -> scores (N, 1, h/4, w/4) of patches of 18 latents."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(2 * channels, width, 4, 2, 1), nn.LeakyReLU(0.2)),
                _stage(width, 2 * width, 4, 2),
                _stage(2 * width, 4 * width, 3, 1),
            ]
        )
        self.score = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, target: Tensor, visible: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores, and the features of each stage."""
        features = [torch.cat([target, visible], dim=1)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return self.score(features[-1]), features[1:]


def _stage(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, 1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2))


class UNetWithCritic(nn.Module):
    """The UNet and its adversary as one model with one loss, so that one optimizer and one checkpoint hold both."""

    def __init__(self, unet: nn.Module, settings: CriticSettings):
        super().__init__()
        self.unet, self.settings = unet, settings
        self.critic = PatchCritic(unet.config.out_channels, settings.width)

    def forward(
        self, sample: Tensor, timesteps: Tensor, text: Tensor, latents: Tensor, to_estimate: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict and judge.

        Args:
            sample, timesteps, text: of the UNet: (N, 3C, h, w), (N,), (N, L, D).
            latents: the real target, scaled (N, C, h, w).
            to_estimate: a, b (N, 1, 1, 1) with which the denoised estimate is a * noisy latents + b * prediction.

        Returns: the prediction (N, C, h, w), the loss of the UNet against the critic (N,), and that of the critic (N,).
        """
        prediction = self.unet(sample, timesteps, text).sample.float()
        noisy, visible = sample.split([latents.shape[1], sample.shape[1] - latents.shape[1]], dim=1)
        visible = visible[:, : latents.shape[1]]
        estimate = to_estimate[0] * noisy + to_estimate[1] * prediction
        # Weights held fixed: the UNet's loss moves the UNet alone.
        fixed = {name: value.detach() for name, value in self.critic.named_parameters()}
        score, features = torch.func.functional_call(self.critic, fixed, (estimate, visible))
        fooling = -score.mean(dim=(1, 2, 3))
        real_score, real_features = self.critic(latents, visible)
        fake_score, _ = self.critic(estimate.detach(), visible)
        judging = F.relu(1 - real_score).mean(dim=(1, 2, 3)) + F.relu(1 + fake_score).mean(dim=(1, 2, 3))
        adversarial = self.settings.weight * fooling
        if self.settings.features:
            distance = sum(
                (one - other.detach()).abs().mean(dim=(1, 2, 3))
                for one, other in zip(features, real_features, strict=True)
            )
            adversarial = adversarial + self.settings.features * distance
        judged = (timesteps >= self.settings.from_timestep).float()
        return prediction, adversarial * judged, judging * judged
