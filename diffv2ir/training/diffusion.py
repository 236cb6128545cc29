"""The diffusion objective shared by the text-to-image base and the three phases (paper Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffv2ir.training.loop import Draw
from diffv2ir.training.seeing import FeatureTarget

# The seven non-empty subsets of {V, S, T}, in the order of their 2 % bands.
DROPPED_SUBSETS = ("V", "S", "T", "VS", "VT", "ST", "VST")

# Of main memory that holds embeddings of prompts: some 9,000 of Stable Diffusion's in half precision.
EMBEDDINGS_BYTES = 2**30


@dataclass(frozen=True)
class NoiseConfig:
    """Which noise levels are trained, and how they weigh.

    Attributes:
        last_step_share: share of the samples at the last timestep, where sampling starts. With zero terminal SNR it
            holds pure noise, and the objective there is regression of the picture from its conditions.
        high_noise_share: share of the samples whose timestep is drawn from [high_noise_from, T) alone. The high-noise
            end decides the structure of the picture, and is where an image condition matters most.
        snr_gamma: min-SNR weighting (Hang et al. 2023); None = every timestep weighs the same.
    """

    last_step_share: float = 0.0
    high_noise_share: float = 0.0
    high_noise_from: int = 600
    snr_gamma: float | None = None

    def __post_init__(self) -> None:
        shares = (self.last_step_share, self.high_noise_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"last_step_share and high_noise_share must be shares of one whole, got {shares}")


def dropped_conditions(uniform: float, band: float = 0.02, extra: Mapping[str, float] | None = None) -> str:
    """The conditions to drop for one uniform draw in [0, 1): a band for each non-empty subset of {V, S, T}.

    Args:
        band: width of each band (paper: 2 %). extra: by how much the bands of some subsets are wider.
    """
    wider = 0.0
    for number, subset in enumerate(DROPPED_SUBSETS, start=1):
        wider += (extra or {}).get(subset, 0.0)
        if uniform < number * band + wider:  # not summed up: 0.12 is where the seventh band of 2 % begins
            return subset
    return ""


def draw_timestep(config: NoiseConfig, count: int, generator: torch.Generator) -> int:
    """One timestep in [0, count)."""
    uniform = float(torch.rand((), generator=generator))
    if uniform < config.last_step_share:
        return count - 1
    high = uniform < config.last_step_share + config.high_noise_share
    return int(torch.randint(config.high_noise_from if high else 0, count, (), generator=generator))


class PromptEncoder:
    """Prompts -> embeddings (N, L, D), float32, on the text encoder's device, with the frozen text encoder.

    What was encoded stays in main memory, the newest `limit` bytes of it. On an accelerator, the new prompts of a call
    are encoded together and kept in half precision; on a CPU one by one and as they are, so that what becomes of a
    prompt does not depend on the others.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, limit: int = EMBEDDINGS_BYTES):
        self.tokenizer, self.text_encoder, self.limit = tokenizer, text_encoder, limit
        self._known: dict[str, Tensor] = {}  # what was asked for last comes last
        self._size = 0

    def __call__(self, prompts: list[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        together = len(new) if self._on_accelerator else 1
        found = {prompt: self._known.pop(prompt) for prompt in dict.fromkeys(prompts) if prompt in self._known}
        for start in range(0, len(new), together or 1):
            part = new[start : start + together]
            found |= zip(part, self._encode(part), strict=True)
        self._known |= found
        self._size += sum(found[prompt].nbytes for prompt in new)
        while self._size > self.limit:
            self._size -= self._known.pop(next(iter(self._known))).nbytes
        device = self.text_encoder.device
        return torch.stack([found[prompt] for prompt in prompts]).to(device).float()  # [N, L, D]

    @property
    def _on_accelerator(self) -> bool:
        return self.text_encoder.device.type != "cpu"

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Embeddings as they are kept, each (L, D)."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        device = self.text_encoder.device
        with torch.autocast(device.type, enabled=False):  # it computes in the kind of its weights
            encoded = self.text_encoder(tokens.to(device)).last_hidden_state  # [N, L, D]
        encoded = encoded.half().cpu() if self._on_accelerator else encoded.float()
        return [one.clone() for one in encoded]


class SeeingOutput(NamedTuple):
    """What the UNet predicts, (N, C, h, w), and the standardised features that the head reads."""

    sample: Tensor
    seen: Tensor


class SeeingUNet(nn.Module):
    """A UNet, and a head that reads from its middle what an ImageNet network sees in the photo (Yu et al. 2025).

    Args:
        target: what the head predicts.
    """

    def __init__(self, unet: UNet2DConditionModel, target: FeatureTarget):
        super().__init__()
        self.unet, self.target = unet, target
        width = unet.config.block_out_channels[-1]
        self.head = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.SiLU(), nn.Conv2d(2 * width, target.channels, 1))
        self._middle: Tensor | None = None
        unet.mid_block.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: tuple, output: Tensor) -> None:
        self._middle = output

    def forward(self, sample: Tensor, timesteps: Tensor, texts: Tensor) -> SeeingOutput:
        output = self.unet(sample, timesteps, texts).sample
        middle, self._middle = self._middle, None
        return SeeingOutput(output, self.head(middle))


class DiffusionObjective:
    """Noise a target latent, let the UNet predict, compare.

    Args:
        scheduler: noise schedule and prediction type ("epsilon" or "v_prediction") of the model.
        scaling_factor: of the autoencoder; the target latent is multiplied by it, conditions are not.

    Raises:
        ValueError: `noise.snr_gamma` with a schedule that ends in pure noise: its last timestep would weigh nothing.
    """

    def __init__(self, scheduler: DDPMScheduler, prompts: PromptEncoder, scaling_factor: float, noise: NoiseConfig):
        if noise.snr_gamma is not None and scheduler.alphas_cumprod[-1] < 1e-6:
            raise ValueError("snr_gamma gives the last timestep no weight where the schedule ends in pure noise")
        self.scheduler, self.prompts, self.scaling_factor, self.noise = scheduler, prompts, scaling_factor, noise

    def __call__(
        self,
        unet: nn.Module,
        draws: list[Draw],
        targets: Tensor,
        prompts: list[str],
        conditions: Tensor | None,
        seeing: Callable[[Tensor], Tensor] | None = None,
        picture: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None,
        pictured: Sequence[bool] | None = None,
        picture_latents: float = 1.0,
    ) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            unet: the (possibly wrapped) UNet.
            draws: the N samples; noise and timestep come from their generators.
            targets: unscaled latents (N, C, h, w). prompts: N strings.
            conditions: latents (N, 2C, h, w) of visible image and map, or None for a text-to-image model.
            seeing: for a `SeeingUNet`: what its head read -> a further loss.
            picture: estimates of the target, (M, C, h, w), and the places in the batch of their M samples -> losses of
                which "picture" is a further one. Asked for the samples at the last timestep, where sampling starts;
                there the loss of the latents weighs `picture_latents`. For velocity prediction.
            pictured: which of the N samples have a picture to be compared with; None = all.
        """
        device = next(unet.parameters()).device
        total = self.scheduler.config.num_train_timesteps
        generators = [draw.generator() for draw in draws]
        timesteps = torch.tensor([draw_timestep(self.noise, total, g) for g in generators], device=device)
        noise = torch.stack([torch.randn(targets.shape[1:], generator=g) for g in generators]).to(device)
        latents = targets.to(device) * self.scaling_factor  # [N, C, h, w]
        sample = self.scheduler.add_noise(latents, noise, timesteps)
        if conditions is not None:
            sample = torch.cat([sample, conditions.to(device)], dim=1)  # [N, 3C, h, w]
        output = unet(sample, timesteps, self.prompts(prompts).to(device))
        predicted = output.sample.float()
        errors = F.mse_loss(predicted, self._wanted(latents, noise, timesteps), reduction="none").mean(dim=(1, 2, 3))
        weights = self._weights(timesteps)
        last = timesteps == total - 1
        if pictured is not None:
            last &= torch.tensor(pictured, device=device)
        last = last.nonzero()[:, 0]
        if picture is not None:
            weights[last] *= picture_latents
        losses = {"loss": (errors * weights).mean()}
        if picture is not None and len(last):
            estimates = self._estimate(sample[last, : targets.shape[1]], predicted[last], timesteps[last])
            losses |= picture(estimates, last)
            losses["loss"] = losses["loss"] + losses["picture"] * len(last) / len(draws)
        if seeing is not None:
            losses["seeing"] = seeing(output.seen)
            losses["loss"] = losses["loss"] + losses["seeing"]
        high = timesteps >= self.noise.high_noise_from
        if high.any():
            losses["high_noise"] = errors[high].mean().detach()
        return losses

    def _wanted(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.scheduler.config.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise

    def _estimate(self, noised: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
        """The latents that a prediction of velocities stands for."""
        alphas = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps][:, None, None, None]
        return alphas.sqrt() * noised - (1 - alphas).sqrt() * predicted

    def _weights(self, timesteps: Tensor) -> Tensor:
        if self.noise.snr_gamma is None:
            return torch.ones(len(timesteps), device=timesteps.device)
        alphas = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alphas / (1 - alphas).clamp(min=1e-8)
        clipped = snr.clamp(max=self.noise.snr_gamma)
        offset = 1 if self.scheduler.config.prediction_type == "v_prediction" else 0
        return clipped / (snr + offset).clamp(min=1e-8)


def build_unet(
    block_out_channels: tuple[int, ...],
    layers_per_block: int,
    cross_attention_dim: int,
    heads: int,
    attention_levels: int | None = None,
    **config,
) -> UNet2DConditionModel:
    """A Stable-Diffusion UNet of other widths.

    Args:
        attention_levels: how many of the lowest resolutions have cross-attention; None = all but the highest.
    """
    levels = len(block_out_channels)
    attending = levels - 1 if attention_levels is None else attention_levels
    if not 0 <= attending <= levels:
        raise ValueError(f"attention_levels must be from 0 to {levels}, got {attending}")
    plain = levels - attending
    return UNet2DConditionModel(
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=heads,
        down_block_types=["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * attending,
        up_block_types=["CrossAttnUpBlock2D"] * attending + ["UpBlock2D"] * plain,
        **config,
    )
