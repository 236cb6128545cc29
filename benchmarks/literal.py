"""The sampling loop of the paper's released code, line by line: what `benchmarks.inference` compares ours with.

Euler ancestral as k-diffusion publishes it (`sample_euler_ancestral`, eta = 1), with the four branches as one batch in
every step, in the released code's order: the map first (`branch_order` "svt"). Nothing is left out and nothing is kept:
branches of weight zero are evaluated as well. Only the noise levels and the noise itself are taken from our side,
without which two pictures could not be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffv2ir import samplers
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings


@torch.no_grad()
def sample(pipe: DiffV2IRPipeline, conditioning: Conditioning, settings: GenerationSettings) -> Tensor:
    """Denoised latents [1, 4, h, w] of a conditioning whose latents have the settings' resolution."""
    device, dtype = pipe.compute_device, pipe.unet.dtype
    schedule = samplers.build_scheduler("euler_ancestral", pipe.scheduler.config, settings.steps)
    sigmas, timesteps = schedule.sigmas.to(device, torch.float32), schedule.timesteps.to(device)
    velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    visible = conditioning.visible_latents.to(device, dtype)
    segmentation = conditioning.segmentation_latents.to(device, dtype)
    text, null = conditioning.prompt_embeds.to(device, dtype), conditioning.null_embeds.to(device, dtype)
    nothing = torch.zeros_like(visible)
    images = torch.cat([visible, visible, nothing, nothing])  # [4, 4, h, w]
    maps = torch.cat([segmentation, segmentation, segmentation, nothing])
    texts = torch.cat([text, null, null, null])  # [4, L, D]

    def denoised(x: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        scaled = x.repeat(4, 1, 1, 1) / (sigma**2 + 1) ** 0.5  # c_in
        inputs = torch.cat([scaled.to(dtype), images, maps], dim=1)  # [4, 12, h, w]
        out = pipe.unet(inputs, timestep, encoder_hidden_states=texts).sample.float()
        with_text, with_photo, with_map, with_nothing = out.chunk(4)
        guided = (
            with_nothing
            + settings.segmentation_scale * (with_map - with_nothing)
            + settings.visible_scale * (with_photo - with_map)
            + settings.text_scale * (with_text - with_photo)
        )
        if velocity:  # c_skip and c_out of a v-prediction, then of an ε-prediction
            return x / (sigma**2 + 1) - guided * sigma / (sigma**2 + 1) ** 0.5
        return x - guided * sigma

    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(visible.shape, generator=generator).to(device) * schedule.init_noise_sigma
    for number, timestep in enumerate(timesteps):
        sigma, following = sigmas[number], sigmas[number + 1]
        estimate = denoised(x, sigma, timestep)
        up = torch.minimum(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = x + (x - estimate) / sigma * (down - sigma)
        if following > 0:
            x = x + torch.randn(x.shape, generator=generator).to(device) * up
    return x
