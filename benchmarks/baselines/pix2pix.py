"""Pix2Pix (Isola et al., CVPR 2017) as published: U-Net 256, 70 x 70 PatchGAN, L1 of weight 100, one image a step.

`python -m benchmarks.baselines.pix2pix --data DATASET --run RUN --minutes 30`

Adam, 2e-4, betas (0.5, 0.999), vanilla GAN loss, discriminator first; the learning rate is constant for the first half
of the budget and falls to zero on a line in the second, as in the published 100 + 100 epochs. Two things differ, so
that all methods see the same: the shorter side is 286 px, not both, and infrared has one channel.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.command import main
from benchmarks.baselines.networks import PatchDiscriminator, UnetGenerator
from benchmarks.baselines.training import Learner

LEARNING_RATE, BETAS, L1_WEIGHT = 2e-4, (0.5, 0.999), 100.0


class Pix2Pix(Learner):
    """Generator and discriminator with their optimizers. `width`: ngf and ndf, `blocks`: see `UnetGenerator`."""

    name = "pix2pix"
    batch_size = 1

    def __init__(self, device: torch.device | str = "cpu", seed: int = 0, width: int = 64, blocks: int = 8) -> None:
        torch.manual_seed(seed)
        self.options = {"width": width, "blocks": blocks}
        self.generator, self.discriminator = (
            network.to(device).train()
            for network in (UnetGenerator(3, 1, blocks, width), PatchDiscriminator(3 + 1, width))
        )
        self.optimizers = [
            torch.optim.Adam(network.parameters(), LEARNING_RATE, BETAS)
            for network in (self.discriminator, self.generator)
        ]
        self.trained = {
            "generator": self.generator, "discriminator": self.discriminator,
            "discriminator_optimizer": self.optimizers[0], "generator_optimizer": self.optimizers[1],
        }  # fmt: skip

    def step(self, visible: Tensor, infrared: Tensor, progress: float) -> dict[str, float]:
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(progress)
        made = self.generator(visible)  # [B, 1, H, W]
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(True)
        on_made = self._real_or_not(visible, made.detach(), False)
        on_real = self._real_or_not(visible, infrared, True)
        self._update(self.optimizers[0], (on_made + on_real) / 2)
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(False)
        fooling = self._real_or_not(visible, made, True)
        distance = F.l1_loss(made, infrared)
        loss = fooling + L1_WEIGHT * distance
        self._update(self.optimizers[1], loss)
        figures = {"loss": loss, "l1": distance, "fooling": fooling, "made": on_made, "real": on_real}
        return {name: value.item() for name, value in figures.items()}

    def _real_or_not(self, visible: Tensor, infrared: Tensor, wanted: bool) -> Tensor:
        """Cross entropy of the discriminator's patches with the answer that is wanted."""
        logits = self.discriminator(torch.cat([visible, infrared], dim=1))
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(wanted)))

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def weights(self) -> nn.Module:
        return self.generator


def learning_rate(progress: float) -> float:
    """Constant in the first half, then on a line to zero."""
    return LEARNING_RATE * min(1.0, 2 * (1 - progress))


if __name__ == "__main__":
    sys.exit(main(Pix2Pix, __doc__))
