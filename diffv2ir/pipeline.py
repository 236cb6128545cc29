"""DiffV2IR: visible photo -> infrared picture (Sec. 3 of the paper).

`prepare` understands a photo once (caption, segmentation map, latents); `generate` denoises as often as wanted.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer

from diffv2ir import __version__, bundle, imaging, memory, samplers
from diffv2ir.edges import colours, follow_edges, generated_window
from diffv2ir.guidance import (
    Branch,
    BranchPlan,
    branch_weights,
    guided_prediction,
    make_branches,
    stack_pictures,
    synchronize,
)
from diffv2ir.imaging import ImageSource
from diffv2ir.metadata import Record, deep_gray, save_png
from diffv2ir.settings import BUNDLE_MAP, GENERAL_STYLE, STYLE_BAND, GenerationSettings
from diffv2ir.unet import load_lora, merge_lora_keeping_originals, restore_weights
from diffv2ir.vlum import SamSegmenter, build_prompt, caption_images
from diffv2ir.vlum.prompt import BANDS, HEAT_PHRASES
from diffv2ir.vlum.segment import draw_regions, number_regions

# A segmentation map is drawn at the photo's size, up to this many pixels on the longer side.
_LARGEST_MAP = 1024


@dataclass(frozen=True)
class Conditioning:
    """What the model knows about a photo: everything `generate` needs besides settings.

    Attributes:
        image: the photo, RGB, upright.
        caption: "" if the text condition is off.
        segmentation: the map, RGB, of the photo's aspect ratio; None if that condition is off.
        prompt: the text that asks for the picture, in `band`; "" if the text condition is off.
        prompt_embeds, null_embeds: [1, L, D] of the prompt and of the empty text.
        visible_latents, segmentation_latents: [1, 4, h, w], unscaled encoder modes; zeros if the map is off.
        size: (width, height) of the photo, and of every result.
        resolution, resolution_rule: the working size as asked for, see `imaging.working_size`.
        own_map: whether the map was given, not made by the bundle's model.
        regions: what the map of the bundle's model is drawn from, see `number_regions`; None without one.
        timings: seconds by stage.
    """

    image: Image.Image
    caption: str
    prompt: str
    segmentation: Image.Image | None
    prompt_embeds: Tensor
    null_embeds: Tensor
    visible_latents: Tensor
    segmentation_latents: Tensor
    size: tuple[int, int]
    resolution: int
    resolution_rule: str = "shorter"
    band: str = BANDS[0]
    own_map: bool = False
    regions: np.ndarray | None = field(default=None, repr=False, compare=False)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """The denoised estimate x0 during generation: `latents` ([1, 4, h, w], scaled); call it for their gray picture."""

    latents: Tensor
    decode: Callable[[Tensor], Image.Image]

    def __call__(self) -> Image.Image:
        return self.decode(self.latents)


@dataclass(frozen=True)
class Output:
    """One infrared picture and how it came about.

    Attributes:
        image: 8-bit gray, at the size of the photo.
        settings: those used, with the seed that was drawn.
        evaluations: branches of Eq. 2 evaluated by the UNet, over all steps.
        cancelled: a callback stopped it after `steps_done` steps; the picture is the estimate it had reached.
        timings: seconds by stage.
        record: what a saved file says about it.
        levels: gray levels before rounding, float32 (H, W) in [0, 1]: as decoded, at the working size, or with the
            photo's edges, at the photo's; in both cases with the settings' gain control.
        gain: what gain control measured, see `imaging.measure_gain`; None without it.
    """

    image: Image.Image
    caption: str
    segmentation: Image.Image | None
    settings: GenerationSettings
    seed: int
    evaluations: int
    steps_done: int
    cancelled: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    record: Record | None = None
    levels: np.ndarray | None = field(default=None, repr=False, compare=False)
    gain: tuple[float, float] | None = field(default=None, repr=False, compare=False)

    def save(self, path: str | os.PathLike, bits: int = 8) -> None:
        """Write a gray PNG with its `Record`, at the photo's size; with 16 bits from the levels before rounding to 8.

        Raises:
            ValueError: other bits than 8 and 16.
        """
        if bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, got {bits!r}")
        image = self.image if bits == 8 else deep_gray(self.levels, self.image.size)
        save_png(image, path, self.record)


Callback = Callable[[int, int, Estimate], Any]
BatchCallback = Callable[[int, int, list[Estimate]], Any]


class DiffV2IRPipeline(DiffusionPipeline):
    """Visible-to-infrared translation with vision-language understanding.

    Args:
        unet: 12 input channels: noisy target, visible and segmentation latents.
        vae: its encoder's mode is the condition; the target is its latent times `scaling_factor`.
        defaults: the bundle's `GenerationSettings`, as a dict.
        map_style: how segmentation maps are drawn, as in training ("union" or "regions").
        styles: "general" and the names of the adapters in `styles/`.
        bands: style -> the band of `BANDS` that its prompts ask for; LWIR where not named.
        name: of the bundle.
        phrases: what the page offers to add to a caption: words for hour and season that the text encoder has learnt.
    """

    model_cpu_offload_seq = "captioner->segmenter->text_encoder->unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        captioner: BlipForConditionalGeneration,
        captioner_processor: BlipProcessor,
        segmenter: SamSegmenter,
        defaults: dict | None = None,
        map_style: str = "union",
        styles: list | None = None,
        bands: dict | None = None,
        name: str = "",
        phrases: list | None = None,
    ):
        super().__init__()
        _check_channels(unet, vae, text_encoder)
        samplers.check_schedule(scheduler.config)
        self.register_modules(
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            captioner=captioner,
            captioner_processor=captioner_processor,
            segmenter=segmenter,
        )
        self.register_to_config(
            defaults=GenerationSettings.from_dict(defaults or {}).to_dict(),
            map_style=map_style,
            styles=list(dict.fromkeys([GENERAL_STYLE, *(styles or [])])),
            bands=dict(bands or {}),
            name=name,
            phrases=list(HEAT_PHRASES if phrases is None else phrases),
        )
        self.folder: Path | None = None
        self.memory_mode = "full"  # see `memory.place`, which sets both
        self.offload_device: torch.device | None = None
        self.branch_plan = BranchPlan()
        self._null_embeds: Tensor | None = None  # of the empty text: the same for every photo
        self._style = GENERAL_STYLE
        self._general_weights: dict[str, Tensor] = {}
        if unet.device.type == "cpu":
            unet.to(memory_format=torch.channels_last)
            vae.to(memory_format=torch.channels_last)

    # Loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike = bundle.TINY, **kwargs: Any):
        """Load a bundle, named as for `bundle.resolve`. Weights become float32 unless `dtype` says otherwise.

        SAM's are float32 in any case: segment-anything computes with points of that kind.

        Raises:
            BundleError: not found, or incomplete, or of another layout or shape.
        """
        folder = bundle.resolve(
            pretrained_model_name_or_path, kwargs.pop("revision", None), kwargs.pop("cache_dir", None)
        )
        bundle.check(folder)
        if not isinstance(kwargs.setdefault("dtype", torch.float32), dict):
            kwargs["dtype"] = {"default": kwargs["dtype"], "segmenter": torch.float32}
        try:
            pipe = super().from_pretrained(str(folder), **kwargs)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise bundle.BundleError(f"{folder} cannot be loaded: {error}") from error
        bundle.check_weights(folder, {name: part for name, part in pipe.components.items() if name not in kwargs})
        pipe.folder = folder
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the bundle with the general weights. Adapters are copied along."""
        self.set_style(GENERAL_STYLE)
        super().save_pretrained(save_directory, **kwargs)
        for style in self.styles[1:]:
            bundle.copy_style(self.folder, Path(save_directory), style)

    @property
    def default_settings(self) -> GenerationSettings:
        """The bundle's own defaults."""
        return GenerationSettings.from_dict(self.config.defaults)

    @property
    def styles(self) -> list[str]:
        """Names of the target styles; "general" comes first."""
        return list(self.config.styles)

    def band(self, settings: GenerationSettings) -> str:
        """The band that prompts ask for: the settings', or the style's."""
        return self.config.bands.get(settings.style, BANDS[0]) if settings.band == STYLE_BAND else settings.band

    @property
    def style(self) -> str:
        """The style whose weights are in place."""
        return self._style

    def set_style(self, style: str) -> None:
        """Put the weights of a style in place: the general ones, or those with the style's adapter merged in.

        Merging costs no time later, unlike an attached adapter; the general weights come back bit by bit.

        Raises:
            ValueError: the bundle has no such style, or its adapter does not fit.
        """
        if style not in self.styles:
            raise ValueError(f"style must be one of {', '.join(self.styles)}, got {style!r}")
        if style == self._style:
            return
        with memory.weights_at_hand(self):
            self._change_weights(style)

    def _change_weights(self, style: str) -> None:
        restore_weights(self.unet, self._general_weights)
        self._general_weights, self._style = {}, GENERAL_STYLE
        if style == GENERAL_STYLE:
            return
        if self.folder is None:
            raise ValueError(f"style {style!r} cannot be loaded: the pipeline was not loaded from a bundle")
        load_lora(self.unet, self.folder / bundle.STYLES / style, style)
        self._general_weights = merge_lora_keeping_originals(self.unet)
        self._style = style

    @property
    def compute_device(self) -> torch.device:
        """Where the models compute; between their turns they may lie elsewhere, see `memory.MODES`."""
        return self.offload_device or self.unet.device

    # Understanding a photo

    @memory.falling_back
    @torch.no_grad()
    def prepare(
        self,
        image: ImageSource,
        caption: str | None = None,
        segmentation: ImageSource | None | bool = None,
        resolution: int | None = None,
        resolution_rule: str | None = None,
        captioning: str | None = None,
        caption_seed: int = 0,
        map_style: str | None = None,
        regions: np.ndarray | None = None,
    ) -> Conditioning:
        """Everything that is done once per photo: caption, segmentation map, text embeddings, latents.

        Args:
            image: the photo: path, PIL image or array, of any size.
            caption: None asks BLIP; "" switches the text condition off.
            segmentation: None asks SAM; a map of the photo's aspect ratio is used as it is; False switches it off.
            resolution, resolution_rule: the size while denoising, see `imaging.working_size`; None = the bundle's.
            captioning: "greedy", or "sampled" by `caption_seed`; None = the bundle's. `GenerationSettings.preparation`
                has all of these.
            map_style: how SAM's map is drawn: "union", "regions", or "auto" as in training; None = the bundle's.
            regions: those of another `Conditioning` of this photo, which SAM is then not asked for again.

        Raises:
            ImageError: the photo or the map cannot be used.
            ValueError: caption, resolution, rule, captioning or style of a wrong kind or range.
            OutOfDeviceMemory: the device has too little memory.
        """
        timings: dict[str, float] = {}
        asked = {
            "resolution": resolution,
            "resolution_rule": resolution_rule,
            "captioning": captioning,
            "map_style": map_style,
        }
        settings = self.default_settings.replace(**{name: value for name, value in asked.items() if value is not None})
        photo = imaging.open_image(image)
        with _timed(timings, "caption"):
            caption = self._caption(photo, caption, settings.captioning == "sampled", caption_seed)
        with _timed(timings, "segmentation"):
            drawn, regions = self._segmentation(photo, segmentation, regions, settings.map_style)
        band = self.band(settings)
        prompt = build_prompt(caption, band)
        with _timed(timings, "text"):
            if self._null_embeds is None:
                self._null_embeds = self.encode_text("")
            null_embeds = self._null_embeds.to(self.compute_device)
            prompt_embeds = self.encode_text(prompt) if prompt else null_embeds
        with _timed(timings, "encode"):
            visible_latents, segmentation_latents = self._encode_both(photo, drawn, settings)
            synchronize(visible_latents.device)
        return Conditioning(
            image=photo,
            caption=caption,
            prompt=prompt,
            segmentation=drawn,
            prompt_embeds=prompt_embeds,
            null_embeds=null_embeds,
            visible_latents=visible_latents,
            segmentation_latents=segmentation_latents,
            size=photo.size,
            resolution=settings.resolution,
            resolution_rule=settings.resolution_rule,
            band=band,
            own_map=segmentation is not None and segmentation is not False,
            regions=regions,
            timings=timings,
        )

    @torch.no_grad()
    def encode_text(self, text: str) -> Tensor:
        """CLIP's last hidden states of a text, padded or cut to the model's length: [1, L, D]."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.compute_device))[0]

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> Tensor:
        """The mode of the encoder for an RGB image whose sides the VAE can halve: unscaled latents [1, 4, h, w]."""
        pixels = imaging.to_tensor(image)[None].to(self.compute_device, self.vae.dtype)  # [1, 3, H, W]
        encoded = self.vae.encode(pixels)
        return encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()

    def decode(self, latents: Tensor) -> Image.Image:
        """Target latents [1, 4, h, w], scaled -> 8-bit gray picture at the working size.

        Raises:
            FloatingPointError: the latents are not finite.
        """
        return imaging.to_gray(self._decode_pixels(latents))[0]

    @torch.no_grad()
    def _decode_pixels(self, latents: Tensor) -> Tensor:
        """Target latents [1, 4, h, w], scaled -> pixels [1, 3, H, W] in about [-1, 1].

        Raises:
            FloatingPointError: the latents are not finite.
        """
        latents = (latents / self.vae.config.scaling_factor).to(self.compute_device, self.vae.dtype)
        pixels = self.vae.decode(latents).sample  # [1, 3, H, W]
        if not torch.isfinite(pixels).all():
            raise FloatingPointError(f"the picture is not finite; load the bundle in float32 (it is {self.vae.dtype})")
        return pixels

    @property
    def size_multiple(self) -> int:
        """Pixels by which VAE and UNet need the sides of an image to be divisible."""
        return latent_stride(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _caption(self, photo: Image.Image, caption: str | None, sample: bool, seed: int) -> str:
        if caption is None:
            with memory.at_work(self, "captioner") as captioner:
                return caption_images(captioner, self.captioner_processor, [photo], sample=sample, seed=seed)[0]
        if not isinstance(caption, str):
            raise ValueError(f"caption must be a text or None, got {type(caption).__name__}")
        return " ".join(caption.split())

    def _segmentation(
        self, photo: Image.Image, given: ImageSource | None | bool, regions: np.ndarray | None, style: str
    ) -> tuple[Image.Image | None, np.ndarray | None]:
        """The map, and the regions that it is drawn from."""
        if given is False:
            return None, None
        if given is True:
            raise ValueError("segmentation must be a map, None (ask SAM) or False (off), got True")
        if given is None:
            if regions is None:
                with memory.at_work(self, "segmenter") as segmenter:
                    regions = number_regions(segmenter.masks(photo))
            size = imaging.limited_size(photo.size, _LARGEST_MAP)
            return draw_regions(regions, size, self.config.map_style if style == BUNDLE_MAP else style), regions
        drawn = imaging.open_image(given)
        imaging.check_same_section(drawn, "the segmentation map", photo)
        return drawn, None

    def _working_size(self, size: tuple[int, int], settings: GenerationSettings) -> tuple[int, int]:
        return imaging.working_size(size, settings.resolution, self.size_multiple, settings.resolution_rule)

    def _encode_both(
        self, photo: Image.Image, drawn: Image.Image | None, settings: GenerationSettings
    ) -> tuple[Tensor, Tensor]:
        """Latents of photo and map at the working size, each [1, 4, h, w]; zeros without a map."""
        size = self._working_size(photo.size, settings)
        visible = self.encode_image(photo.resize(size, Image.Resampling.BICUBIC))
        if drawn is None:
            return visible, torch.zeros_like(visible)
        return visible, self.encode_image(drawn.resize(size, Image.Resampling.NEAREST))

    # Generating

    def generate(
        self,
        conditioning: Conditioning,
        settings: GenerationSettings | None = None,
        callback: Callback | None = None,
        gain: tuple[float, float] | None = None,
    ) -> Output:
        """Denoise one infrared picture.

        Args:
            settings: None = the bundle's defaults. A resolution or rule other than the prepared one re-encodes photo
                and map, another band the prompt.
            callback: called after each step as callback(step, total, estimate), step from 1; returning False cancels.
            gain: another picture's, so that equal levels stay equal; None = of this one.
        """
        relay = None if callback is None else lambda step, total, estimates: callback(step, total, estimates[0])
        return self.generate_batch([conditioning], settings, callback=relay, gain=gain)[0]

    @memory.falling_back
    @torch.no_grad()
    def generate_batch(
        self,
        conditionings: Sequence[Conditioning],
        settings: GenerationSettings | None = None,
        seeds: Sequence[int] | None = None,
        callback: BatchCallback | None = None,
        gain: tuple[float, float] | None = None,
    ) -> list[Output]:
        """Denoise several pictures of the same working size together.

        Each gets the noise of its own seed. On a CPU the pictures are exactly those each would get alone; on other
        devices, where all share one evaluation of the UNet, up to rounding (a gray level here and there).

        Args:
            settings: None = the bundle's defaults.
            seeds: one per picture; None: all use the settings' seed, or, without one, each draws its own.
            callback: as in `generate`, with a list of estimates. It begins anew where memory ran out and the pictures
                are denoised once more in the next memory mode.
            gain: as in `generate`, for all of them.

        Raises:
            ValueError: no picture, pictures of several working sizes, or settings that do not fit the bundle.
            OutOfDeviceMemory: the device has too little memory.
        """
        conditionings = list(conditionings)
        settings = self._settings_for(conditionings, settings)
        seeds = _seeds(len(conditionings), settings, seeds)
        started = time.perf_counter()
        self.set_style(settings.style)
        conditionings = [self._in_band(self._at_resolution(c, settings), settings) for c in conditionings]
        branches = [self._branches(c, settings) for c in conditionings]
        latents, steps_done = self._denoise(branches, settings, seeds, callback)
        synchronize(latents.device)
        denoised = time.perf_counter()
        outputs = []
        for c, seed, own, latent in zip(conditionings, seeds, branches, latents.split(1), strict=True):
            start = time.perf_counter()
            pixels = self._decode_pixels(latent)
            image, levels, measured = _draw(pixels, c.image, settings, gain)
            timings = {**c.timings, "denoise": denoised - started, "decode": time.perf_counter() - start}
            outputs.append(
                Output(
                    image=image,
                    caption=c.caption,
                    segmentation=c.segmentation,
                    settings=settings.replace(seed=seed),
                    seed=seed,
                    evaluations=steps_done * len(own),
                    steps_done=steps_done,
                    cancelled=steps_done < settings.steps,
                    timings=timings,
                    record=self._record(c, settings.replace(seed=seed)),
                    levels=levels,
                    gain=measured,
                )
            )
        return outputs

    @memory.falling_back
    def repaint(
        self,
        phase: str,
        conditioning: Conditioning,
        settings: GenerationSettings,
        callback: Callable[[int, int], bool],
    ) -> Image.Image | None:
        """The photo, repainted by the text-to-image model of an early phase, see `phases.repaint`.

        A method like the others that compute, as a server may let another process compute in their place.
        """
        from diffv2ir import phases

        return phases.repaint(self, phase, conditioning, settings, callback)

    def __call__(
        self,
        image: ImageSource,
        settings: GenerationSettings | None = None,
        caption: str | None = None,
        segmentation: ImageSource | None | bool = None,
        callback: Callback | None = None,
    ) -> Output:
        """`prepare` and `generate` in one."""
        settings = (self.default_settings if settings is None else settings).with_seed()
        return self.generate(self.prepare(image, caption, segmentation, **settings.preparation), settings, callback)

    def _record(self, c: Conditioning, settings: GenerationSettings) -> Record:
        source = "none" if c.segmentation is None else "own" if c.own_map else "model"
        return Record(
            settings=settings,
            caption=c.caption,
            segmentation=source,
            photo_sha256=imaging.content_hash(c.image),
            bundle=self.config.name,
            bundle_sha256=self.bundle_sha256,
            version=__version__,
        )

    @cached_property
    def bundle_sha256(self) -> str:
        """SHA-256 of the weight files this pipeline was loaded from; "" if it was not."""
        return bundle.content_hash(self.folder) if self.folder else ""

    def _settings_for(
        self, conditionings: list[Conditioning], settings: GenerationSettings | None
    ) -> GenerationSettings:
        if not conditionings:
            raise ValueError("there is nothing to generate: no conditioning was given")
        if settings is None:
            first = conditionings[0]
            settings = self.default_settings.replace(resolution=first.resolution, resolution_rule=first.resolution_rule)
        if not isinstance(settings, GenerationSettings):
            raise ValueError(f"settings must be GenerationSettings, got {type(settings).__name__}")
        sizes = {self._working_size(c.size, settings) for c in conditionings}
        if len(sizes) > 1:
            raise ValueError(f"a batch needs one working size, got {sorted(sizes)}; generate them one by one")
        return settings

    def _at_resolution(self, c: Conditioning, settings: GenerationSettings) -> Conditioning:
        """The conditioning with latents of the settings' resolution; caption and map stay."""
        wanted = {"resolution": settings.resolution, "resolution_rule": settings.resolution_rule}
        if wanted == {name: getattr(c, name) for name in wanted}:
            return c
        visible, segmentation = self._encode_both(c.image, c.segmentation, settings)
        return dataclasses.replace(c, visible_latents=visible, segmentation_latents=segmentation, **wanted)

    def _in_band(self, c: Conditioning, settings: GenerationSettings) -> Conditioning:
        """The conditioning with a prompt that asks for the settings' band."""
        band = self.band(settings)
        if not c.prompt or band == c.band:
            return c
        prompt = build_prompt(c.caption, band)
        return dataclasses.replace(c, prompt=prompt, prompt_embeds=self.encode_text(prompt), band=band)

    def _branches(self, c: Conditioning, settings: GenerationSettings) -> list[Branch]:
        device, dtype, order = self.compute_device, self.unet.dtype, settings.branch_order
        weights = branch_weights(settings.visible_scale, settings.segmentation_scale, settings.text_scale, order)
        return make_branches(
            weights,
            c.visible_latents.to(device, dtype),
            None if c.segmentation is None else c.segmentation_latents.to(device, dtype),
            c.prompt_embeds.to(device, dtype) if c.prompt else None,
            c.null_embeds.to(device, dtype),
            order,
        )

    def _denoise(
        self,
        branches: list[list[Branch]],
        settings: GenerationSettings,
        seeds: Sequence[int],
        callback: BatchCallback | None,
    ) -> tuple[Tensor, int]:
        """The sampling loop: denoised latents [B, 4, h, w] (the last estimate, if cancelled) and the steps done."""
        device = self.compute_device
        scheduler = samplers.build_scheduler(settings.sampler, self.scheduler.config, settings.steps, device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shared = self._share_evaluations(branches)
        channels = self.unet.config.out_channels
        shape = (len(seeds), channels, *branches[0][0].image_latents.shape[2:])
        latents = randn_tensor(shape, generator=generators, device=device) * scheduler.init_noise_sigma  # [B, 4, h, w]
        estimate = latents
        for number, timestep in enumerate(scheduler.timesteps, start=1):
            prediction = self._predict(scheduler.scale_model_input(latents, timestep), timestep, shared)
            latents, estimate = samplers.step(scheduler, prediction, timestep, latents, generators)
            if callback is not None:
                estimates = [Estimate(part, self.decode) for part in estimate.split(1)]
                if callback(number, settings.steps, estimates) is False:
                    return estimate, number
        return latents, settings.steps

    def _share_evaluations(self, branches: list[list[Branch]]) -> list[list[Branch]]:
        """Branches by evaluation of the UNet: one list per picture on a CPU, where a batch gains nothing and the last
        bits of a result depend on it; else one list for all, if all need the same branches."""
        same = len({tuple(branch.weight for branch in own) for own in branches}) == 1
        if self.compute_device.type == "cpu" or not same:
            return branches
        return [stack_pictures(branches)]

    def _predict(self, latents: Tensor, timestep: Tensor, shared: list[list[Branch]]) -> Tensor:
        """Guided prediction for every picture: [B, 4, h, w]."""
        predictions = []
        for part, own in zip(latents.chunk(len(shared)), shared, strict=True):
            # Asked for each: the ways differ in the last bits, and a picture must not depend on its neighbours.
            # Layers that come and go with each evaluation cost more than anything that a plan could gain.
            together = self.memory_mode == "sequential" or self.branch_plan.together(self.unet, part, timestep, own)
            predictions.append(guided_prediction(self.unet, part, timestep, own, together))
        return torch.cat(predictions)


def latent_stride(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Pixels per latent along one side."""
    tiny = isinstance(vae, AutoencoderTiny)
    return 2 ** (len(vae.config.encoder_block_out_channels if tiny else vae.config.block_out_channels) - 1)


def _draw(
    pixels: Tensor, photo: Image.Image, settings: GenerationSettings, gain: tuple[float, float] | None
) -> tuple[Image.Image, np.ndarray, tuple[float, float] | None]:
    """Decoded pixels [1, 3, h, w] as an 8-bit gray picture at the photo's size; its `levels` and `gain`."""
    levels = ((pixels[0].float().mean(dim=0) + 1) / 2).clamp(0, 1).cpu().numpy()
    if settings.edge_radius:
        levels = follow_edges(levels, colours(photo), *generated_window(settings.edge_radius, levels.shape))
    if settings.gain_control:
        gain = gain or imaging.measure_gain(levels)
        levels = imaging.control_gain(levels, settings.gain_control, gain)
    else:
        gain = None
    return imaging.from_levels(levels).resize(photo.size, Image.Resampling.BICUBIC), levels, gain


def _check_channels(unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny, text: CLIPTextModel) -> None:
    channels = vae.config.latent_channels
    if (unet.config.in_channels, unet.config.out_channels) != (3 * channels, channels):
        raise ValueError(
            f"the UNet needs {3 * channels} input and {channels} output channels (noisy target, visible and "
            f"segmentation latents of {channels} channels), got {unet.config.in_channels} and "
            f"{unet.config.out_channels}"
        )
    if unet.config.cross_attention_dim != text.config.hidden_size:
        raise ValueError(
            f"the UNet attends to texts of width {unet.config.cross_attention_dim}, the text encoder gives "
            f"{text.config.hidden_size}"
        )


def _seeds(count: int, settings: GenerationSettings, seeds: Sequence[int] | None) -> list[int]:
    if seeds is None:
        return [settings.with_seed().seed for _ in range(count)]
    if len(seeds) != count:
        raise ValueError(f"expected {count} seeds, got {len(seeds)}")
    return [settings.replace(seed=seed).seed for seed in seeds]


@contextmanager
def _timed(timings: dict[str, float], stage: str):
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
