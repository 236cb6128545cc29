"""One photo through the phases of the training, as the paper's Figure I shows it: base, after phase 1, 2 and 3.

A bundle always holds phase 2 (its general weights) and phase 3 (its styles). Where it also holds the text-to-image
model that they grew from, `phases/base` and the adapter `phases/infrared`, these come first. They know no photo as a
condition: they repaint it, starting from the photo under noise (SDEdit, Meng et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffv2ir import samplers
from diffv2ir.bundle import PHASES
from diffv2ir.settings import GENERAL_STYLE, GenerationSettings
from diffv2ir.vlum.prompt import INFRARED_PROMPT

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from PIL import Image
    from torch import Tensor

    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline

BASE, INFRARED = "base", "infrared"

STRENGTH = 0.7
"""How much of the sampling the text-to-image model repaints: 1 would keep nothing of the photo."""

_LEAST_STEPS = 20

Callback = Callable[[int, int, int], bool]


@dataclass(frozen=True)
class PhasePicture:
    """What the model made of the photo after one phase; `name` is "base", "phase 1", "phase 2" or "phase 3, STYLE"."""

    name: str
    image: Image.Image


def held_phases(pipe: DiffV2IRPipeline) -> list[str]:
    """The names of the phases that a pipeline's bundle holds, in the order of the training."""
    early = _early_folder(pipe)
    names = [] if early is None else ["base"]
    if early is not None and (early / INFRARED).is_dir():
        names.append("phase 1")
    return [*names, "phase 2", *(f"phase 3, {style}" for style in pipe.styles[1:])]


def draw_phases(
    pipe: DiffV2IRPipeline,
    conditioning: Conditioning,
    settings: GenerationSettings,
    callback: Callback | None = None,
    only: str | None = None,
) -> Iterator[PhasePicture]:
    """The photo after each phase, all from the same noise.

    Args:
        settings: the style is left aside, and a seed of None is 0. The text-to-image model takes at least 20 steps,
            with the text scale as its guidance scale.
        callback: called as callback(phases done, step, steps); returning False ends the work.
        only: the one phase to draw; None = all that the bundle holds.

    Raises:
        ValueError: the text-to-image weights do not fit this bundle, or it does not hold the phase.
    """
    size = {"resolution": conditioning.resolution, "resolution_rule": conditioning.resolution_rule}
    settings = settings.replace(seed=settings.seed or 0, **size)
    names = held_phases(pipe)
    if only is not None:
        if only not in names:
            raise ValueError(f"the phase must be one of {', '.join(names)}, got {only!r}")
        names = [only]
    for done, name in enumerate(names):

        def goes_on(step: int, steps: int, estimate=None, done: int = done) -> bool:
            return callback is None or callback(done, step, steps) is not False

        if name in ("base", "phase 1"):
            image = pipe.repaint(name, conditioning, settings, goes_on)
        else:
            style = name.partition(", ")[2] or GENERAL_STYLE
            output = pipe.generate(conditioning, settings.replace(style=style), goes_on)
            image = None if output.cancelled else output.image
        if image is None:
            return
        yield PhasePicture(name, image)


def repaint(
    pipe: DiffV2IRPipeline,
    phase: str,
    conditioning: Conditioning,
    settings: GenerationSettings,
    goes_on: Callable[[int, int], bool],
) -> Image.Image | None:
    """The photo, repainted by the text-to-image model of "base" or "phase 1", which is loaded for it.

    Args:
        goes_on: called as goes_on(step, steps); returning False ends the work, and the answer is then None.

    Raises:
        ValueError: the text-to-image weights do not fit this bundle.
    """
    folder = _early_folder(pipe)
    unet, prompt = _load_base(pipe, folder), conditioning.caption
    if phase == "phase 1":
        _add_infrared(unet, folder / INFRARED)
        prompt = INFRARED_PROMPT
    return _repaint(pipe, unet, conditioning, prompt, settings, goes_on)


def repaint_evaluations(settings: GenerationSettings) -> int:
    """How often `repaint` evaluates the UNet: twice a step, with the text and without."""
    _, repainted = _steps(settings)
    return 2 * repainted


def _steps(settings: GenerationSettings) -> tuple[int, int]:
    """Into how many steps the way from noise is cut, and how many of them, the last ones, are gone."""
    steps = max(_LEAST_STEPS, settings.steps)
    return steps, round(STRENGTH * steps)


def _early_folder(pipe: DiffV2IRPipeline) -> Path | None:
    folder = None if pipe.folder is None else pipe.folder / PHASES
    return folder if folder is not None and (folder / BASE / "config.json").is_file() else None


def _load_base(pipe: DiffV2IRPipeline, folder: Path) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    try:
        unet = UNet2DConditionModel.from_pretrained(folder / BASE, dtype=pipe.unet.dtype)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder / BASE} cannot be loaded: {error}") from error
    channels, width = pipe.vae.config.latent_channels, pipe.text_encoder.config.hidden_size
    if (unet.config.in_channels, unet.config.cross_attention_dim) != (channels, width):
        raise ValueError(
            f"{folder / BASE} needs {channels} input channels and texts of width {width}, "
            f"got {unet.config.in_channels} and {unet.config.cross_attention_dim}"
        )
    return unet.eval().to(pipe.compute_device)


def _add_infrared(unet: UNet2DConditionModel, folder: Path) -> None:
    from diffv2ir.unet import load_lora, merge_lora_keeping_originals

    load_lora(unet, folder, INFRARED)
    merge_lora_keeping_originals(unet)


@torch.no_grad()
def _repaint(
    pipe: DiffV2IRPipeline,
    unet: UNet2DConditionModel,
    conditioning: Conditioning,
    prompt: str,
    settings: GenerationSettings,
    goes_on: Callable[[int, int], bool],
) -> Image.Image | None:
    """The photo, repainted by a text-to-image UNet; None if it was ended."""
    steps, repainted = _steps(settings)
    scheduler = samplers.build_scheduler(settings.sampler, pipe.scheduler.config, steps, unet.device)
    timesteps = scheduler.timesteps[steps - repainted :]
    scheduler.set_begin_index(steps - len(timesteps))
    generators = [torch.Generator().manual_seed(settings.seed)]
    photo = conditioning.visible_latents.to(unet.device, torch.float32) * pipe.vae.config.scaling_factor
    noise = torch.randn(photo.shape, generator=generators[0]).to(photo)
    latents = scheduler.add_noise(photo, noise, timesteps[:1])  # [1, 4, h, w]
    texts = (pipe.encode_text(prompt), conditioning.null_embeds)
    for number, timestep in enumerate(timesteps, start=1):
        prediction = _guided(unet, scheduler.scale_model_input(latents, timestep), timestep, texts, settings.text_scale)
        latents, _ = samplers.step(scheduler, prediction, timestep, latents, generators)
        if not goes_on(number, len(timesteps)):
            return None
    return pipe.decode(latents).resize(conditioning.size)


def _guided(
    unet: UNet2DConditionModel, latents: Tensor, timestep: Tensor, texts: Sequence[Tensor], scale: float
) -> Tensor:
    """Classifier-free guidance by the text alone: null + scale · (text − null)."""
    with_text, null = (
        unet(latents.to(unet.dtype), timestep, text.to(unet.device, unet.dtype)).sample.float() for text in texts
    )
    return null + scale * (with_text - null)
