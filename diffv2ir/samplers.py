"""The four samplers, each a diffusers scheduler built from the bundle's own noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffv2ir.schedule import check_schedule
from diffv2ir.settings import SAMPLERS

# DDIM is first-order DPM-Solver++ (Lu et al. 2022, section 4). diffusers' DDIMScheduler would assume that timesteps lie
# a whole number apart, and drifts where the number of steps does not divide the training timesteps.
_CLASSES = {
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
}
_COMMON = {"thresholding": False, "use_karras_sigmas": False, "final_sigmas_type": "zero", "lower_order_final": True}


def build_scheduler(sampler: str, config: Mapping[str, Any], steps: int, device: Any = None) -> SchedulerMixin:
    """The scheduler of `sampler`, ready to walk `steps` timesteps of the noise schedule in `config`.

    Every sampler starts at the last training timestep and ends without noise. `timestep_spacing` of the bundle is kept
    if it is "trailing" or "linspace" (k-diffusion's, which the paper samples with); "leading" never reaches pure noise
    (Lin et al. 2023) and is replaced by "trailing".
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    check_schedule(config)
    total = config.get("num_train_timesteps", 1000)
    if not 1 <= steps <= total // 2:
        raise ValueError(f"steps must be from 1 to {total // 2} for a schedule of {total} timesteps, got {steps}")
    scheduler_class, options = _CLASSES[sampler]
    linspace = config.get("timestep_spacing") == "linspace" and steps > 1  # one linspace step would start at t = 0
    scheduler = scheduler_class.from_config(
        dict(config), timestep_spacing="linspace" if linspace else "trailing", **(_COMMON | options)
    )
    scheduler.set_timesteps(steps, device=device)
    if len(scheduler.timesteps) == steps + 1:
        # A rounding error in "trailing" (61 steps, 103, 121, ...) appends a timestep of -1: leave it out.
        scheduler.timesteps = scheduler.timesteps[:-1]
        scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
        scheduler.num_inference_steps = steps
    return scheduler


def step(
    scheduler: SchedulerMixin,
    prediction: Tensor,
    timestep: Tensor,
    latents: Tensor,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """One step of any of the samplers.

    Args:
        prediction: what the UNet predicts (ε or v), [B, 4, h, w], float32.
        generators: one CPU generator per sample, so that a sample's noise does not depend on its batch.

    Returns: the latents of the next timestep, and the denoised estimate x0; both [B, 4, h, w].
    """
    if isinstance(scheduler, EulerAncestralDiscreteScheduler):
        result = scheduler.step(prediction, timestep, latents, generator=list(generators))
        return result.prev_sample, result.pred_original_sample
    # The others add no noise.
    return scheduler.step(prediction, timestep, latents).prev_sample, scheduler.model_outputs[-1]
