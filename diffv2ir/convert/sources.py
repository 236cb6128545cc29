"""Where UNet, VAE, text encoder and noise schedule come from: an official single file or a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffv2ir.bundle import INDEX
from diffv2ir.convert.checkpoint import ConvertError, open_checkpoint
from diffv2ir.convert.folder import open_component, read_folder, read_json
from diffv2ir.convert.official import has_average, read_components
from diffv2ir.convert.write import write_component
from diffv2ir.schedule import check_schedule

# What all models of Stable Diffusion 1.x were trained with; timesteps as k-diffusion spaces them.
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    timestep_spacing="linspace",
    clip_sample=False,
)
_SCHEDULE_KEY = "alphas_cumprod"

Progress = Callable[[str], None]


class OfficialFile:
    """A `.ckpt` or `.safetensors` in the layout of CompVis.

    Attributes:
        in_channels: of the UNet. vocabulary: tokens that the text encoder knows. tokenizer: None, it has none.
        unet_weights: which ones are taken, in words.

    Raises:
        ConvertError: see `open_checkpoint` and `read_components`; or it was trained with another noise schedule.
    """

    tokenizer = None

    def __init__(self, path: Path, ema: bool):
        self.path = path
        weights = open_checkpoint(path)
        if _SCHEDULE_KEY in weights:
            _check_same_schedule(weights[_SCHEDULE_KEY], path)
        shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
        self.components = read_components(shapes, str(path), ema)
        self.unet_weights = _taken(has_average(shapes), ema)
        unet, _, text = (component.model for component in self.components)
        self.in_channels, self.vocabulary = unet.config.in_channels, text.config.vocab_size

    def write(self, folder: Path, in_channels: int, progress: Progress) -> None:
        """Write the models into `folder`, the UNet with `in_channels`. Raises: ConvertError."""
        for component in self.components:
            progress(component.name)
            channels = in_channels if component.name == "unet" else None
            write_component(component, partial(open_checkpoint, self.path), folder / component.name, channels)
        DDPMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def _taken(has_average: bool, ema: bool) -> str:
    if not has_average:
        return "the raw ones: the checkpoint has no average of them (EMA, model_ema.*)"
    return "their average (EMA)" if ema else "the raw ones, not their average (EMA), which the checkpoint has too"


def _check_same_schedule(stored: Tensor, path: Path) -> None:
    own = DDPMScheduler(**SCHEDULER).alphas_cumprod
    if stored.shape != own.shape or not torch.allclose(stored.float(), own, rtol=1e-3, atol=1e-5):
        raise ConvertError(
            f"{path}: its noise schedule ({_SCHEDULE_KEY}) is not that of Stable Diffusion 1.x (1000 steps, betas from "
            f"{SCHEDULER['beta_start']} to {SCHEDULER['beta_end']}, linear in their roots)"
        )


class DiffusersFolder:
    """A folder in the layout of diffusers, as of a StableDiffusionPipeline. Attributes as of `OfficialFile`.

    Raises:
        ConvertError: it has no index, or is a bundle already; or see `read_folder`.
    """

    unet_weights = "those of the folder, which does not say whether they are an average (EMA)"

    def __init__(self, folder: Path):
        self.folder = folder
        if read_json(folder / INDEX).get("_class_name") == "DiffV2IRPipeline":
            raise ConvertError(f"{folder} is a bundle already")
        self.components = read_folder(folder)
        unet, _, text = (component.model for component in self.components)
        self.in_channels, self.vocabulary = unet.config.in_channels, text.config.vocab_size
        self.tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else None

    def write(self, folder: Path, in_channels: int, progress: Progress) -> None:
        """Write the models into `folder`, the UNet with `in_channels`. Raises: ConvertError."""
        try:
            scheduler = DDPMScheduler.from_pretrained(self.folder / "scheduler", local_files_only=True)
            check_schedule(scheduler.config)
        except (OSError, ValueError) as error:
            raise ConvertError(f"{self.folder / 'scheduler'}: {error}") from error
        for component in self.components:
            progress(component.name)
            channels = in_channels if component.name == "unet" else None
            load = partial(open_component, self.folder, component.name)
            write_component(component, load, folder / component.name, channels)
        scheduler.save_pretrained(folder / "scheduler")
