"""The training loop of diffusers' example script for InstructPix2Pix: what `benchmarks.training` compares ours with.

In every step it encodes the pictures with the autoencoder and the captions with the text encoder, as the script does.
Timesteps and noise are those of our draws, and targets the encoder's mode as ours are, without which the losses of the
two could not be compared; conditions are not dropped on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers import CLIPTextModel

from diffv2ir.training.diffusion import NoiseConfig, draw_timestep
from diffv2ir.training.loop import Draw, LoopConfig, optimizer_class


class PlainTraining:
    """The script's set-up; `step` is the body of its loop.

    Args:
        config: learning rate, weight decay, optimizer, precision, accumulation and the like of both sides.
    """

    def __init__(
        self,
        config: LoopConfig,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        scheduler: DDPMScheduler,
    ):
        self.config, self.vae, self.text_encoder, self.scheduler = config, vae, text_encoder, scheduler
        self.dtype = config.half or torch.float32
        share, micro = config.share(processes=1)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision, gradient_accumulation_steps=share // micro
        )
        optimizer = optimizer_class(config.optimizer)(
            unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        rates = get_scheduler("constant", optimizer)
        self.ema = EMAModel(unet.parameters(), decay=config.ema_decay)
        self.unet, self.optimizer, self.rates = self.accelerator.prepare(unet, optimizer, rates)

    def step(self, batch: dict[str, Any], draws: Sequence[Draw]) -> float:
        """One forward pass and, with the last of a batch, an optimizer step; returns the loss.

        Args:
            batch: "infrared", "visible", "segmentation" (N, 3, H, W) in [-1, 1] and "tokens" (N, L), on the CPU.
        """
        device = self.accelerator.device
        with self.accelerator.accumulate(self.unet):
            latents = self._encode(batch["infrared"]) * self.vae.config.scaling_factor  # [N, 4, h, w]
            generators = [draw.generator() for draw in draws]
            total = self.scheduler.config.num_train_timesteps
            timesteps = torch.tensor([draw_timestep(NoiseConfig(), total, g) for g in generators], device=device)
            noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators]).to(latents)
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            with torch.no_grad():
                text = self.text_encoder(batch["tokens"].to(device))[0].to(self.dtype)  # [N, L, D]
            visible, segmentation = (self._encode(batch[role]) for role in ("visible", "segmentation"))
            prediction = self.unet(torch.cat([noisy, visible, segmentation], dim=1), timesteps, text).sample
            wanted = noise
            if self.scheduler.config.prediction_type == "v_prediction":
                wanted = self.scheduler.get_velocity(latents, noise, timesteps)
            loss = F.mse_loss(prediction.float(), wanted.float(), reduction="mean")
            gathered = self.accelerator.gather(loss.repeat(len(draws))).mean().item()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.unet.parameters())
        return gathered

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        images = images.to(self.accelerator.device, self.vae.dtype)
        return self.vae.encode(images).latent_dist.mode().to(self.dtype)
