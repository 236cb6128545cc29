"""Progressive learning (paper Sec. 3.3): the text-to-image base, and phases 1, 2 and 3, each one call of `train_phase`.

| phase | starts from | learns from | trains | ends as |
| base | random weights | visible photos and captions | all | text-to-image folder |
| 1 | text-to-image folder | infrared images, "an infrared image" | LoRA | the same, LoRA merged, adapter kept |
| 2 | text-to-image folder | pairs of all cameras | all, conv_in widened to 12 channels | bundle |
| 3 | bundle | pairs of the target style | LoRA or all | bundle with a style, or of the style |
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer

from diffv2ir import bundle
from diffv2ir.data import DataError, Example
from diffv2ir.data.examples import ROLES
from diffv2ir.efficientnet import loss_network
from diffv2ir.files import write_atomically
from diffv2ir.memory import DTYPES
from diffv2ir.settings import GENERAL_STYLE, GenerationSettings
from diffv2ir.training.cache import CaptionCache, LatentCache, MapCache, ViewConfig
from diffv2ir.training.config import example_weights
from diffv2ir.training.diffusion import (
    DROPPED_SUBSETS,
    DiffusionObjective,
    NoiseConfig,
    PromptEncoder,
    SeeingUNet,
    build_unet,
    dropped_conditions,
)
from diffv2ir.training.fresh import FreshConfig, FreshViews
from diffv2ir.training.hashes import HashIndex, Share
from diffv2ir.training.learnt import examples_hash, record_examples, recorded_examples
from diffv2ir.training.loop import (
    Draw,
    Loop,
    LoopConfig,
    TrainingError,
    half_on_cpu,
    latest_checkpoint,
    optimizer_class,
    process_state,
)
from diffv2ir.training.pictures import PictureConfig, PictureLoss
from diffv2ir.training.seeing import FeatureTarget
from diffv2ir.training.teacher import Teacher, load_network, teacher_bands
from diffv2ir.unet import merge_lora, widen_conv_in
from diffv2ir.vlum import INFRARED_PROMPT, MAP_STYLES, SamSegmenter, build_prompt
from diffv2ir.vlum.prompt import known_band

logger = logging.getLogger(__name__)

PHASES = ("base", "1", "2", "3")
# Views that are made at a time where a training does not say how many.
_TOGETHER = 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapter: `rank`, `alpha` (scale alpha / rank) and the names of the layers it is attached to."""

    rank: int = 16
    alpha: int = 16
    targets: tuple[str, ...] = ATTENTION


@dataclass(frozen=True)
class UNetSettings:
    """Architecture of a base trained from scratch; see `build_unet` and diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[int, ...] = (64, 128, 192)
    layers_per_block: int = 1
    attention_levels: int | None = None
    heads: int = 4
    norm_num_groups: int = 16
    sample_size: int = 32


@dataclass(frozen=True)
class PhaseConfig:
    """One phase.

    Attributes:
        phase: "base", "1", "2" or "3".
        kinds, sources: which examples; None = all that fit the phase.
        source_weights: relative frequency of a source's (or "source/kind"'s) examples; 1 where not named.
        style: name of the target style (phase 3 only).
        lora: adapter settings; None trains all weights.
        gradient_checkpointing: keep few activations and compute the others again on the way back: the same gradients
            with a fraction of the memory, at the price of about a second forward pass.
        frozen_dtype: "fp32", "fp16" or "bf16": in what autoencoder, text encoder and captioner compute, which are not
            trained. The trained weights are float32 in any case; in what they compute is `loop.mixed_precision`.
        dropout: width of each of the seven condition-dropout bands; in base, the chance of an empty prompt.
        extra_dropout: phases 2 and 3: by how much the bands of some subsets of {V, S, T} are wider, e.g. {ST: 0.1}. Who
            rarely does without a condition trusts it where it misleads.
        validation_fraction: part of the scenes that is held out.
        map_style: style of the segmentation maps; travels with the bundle.
        own_captions: caption every photo with the bundle's BLIP, as the pipeline will, also where the dataset has one.
        fixed_prompt: phases 2 and 3: one prompt for every photo, in place of the one that is built from its caption.
        without_map: phases 2 and 3: the map is null for every photo, as if it was always dropped.
        fresh: phases 2 and 3: learn from views that are always new, with what a teacher or the cameras saw as the
            target (`FreshViews`), in place of `view.variants` views that are made before. All photos stay in memory.
        picture: phases 2 and 3: what is learnt at the last timestep of the picture itself, of those views of `fresh`
            whose target is the camera's, see `PictureConfig`. None = latents alone.
        start_share: phases 2 and 3: share of the weights that it starts with in those that it ends with (Wortsman et
            al. 2022): what few photos taught is added, and what was known of others stays. Of an adapter it is the
            share that is taken from its effect.
    """

    phase: str
    loop: LoopConfig
    noise: NoiseConfig = NoiseConfig()
    view: ViewConfig = ViewConfig()
    kinds: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    source_weights: dict[str, float] = field(default_factory=dict)
    style: str | None = None
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = False
    frozen_dtype: str = "fp32"
    unet: UNetSettings = UNetSettings()
    dropout: float = 0.02
    extra_dropout: dict[str, float] = field(default_factory=dict)
    validation_fraction: float = 0.1
    map_style: str = "regions"
    own_captions: bool = False
    fixed_prompt: str | None = None
    without_map: bool = False
    fresh: FreshConfig | None = None
    picture: PictureConfig | None = None
    start_share: float = 0.0
    defaults: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase must be one of {PHASES}, got {self.phase!r}")
        if (self.phase == "3") != (self.style is not None):
            raise ValueError("phase 3, and only phase 3, needs a style name")
        if self.phase == "1" and self.lora is None:
            raise ValueError("phase 1 trains a LoRA: set lora")
        if self.phase in ("base", "2") and self.lora is not None:
            raise ValueError(f"phase {self.phase} trains all weights: remove lora")
        if self.phase not in ("2", "3") and (self.without_map or self.fixed_prompt is not None):
            raise ValueError("fixed_prompt and without_map are for phases 2 and 3: the others have no such conditions")
        for name in ("fresh", "picture"):
            if getattr(self, name) and self.phase not in ("2", "3"):
                raise ValueError(f"{name} is for phases 2 and 3: the others have no pairs of photo and infrared")
        if self.picture and not (self.fresh and self.fresh.real):
            raise ValueError("picture needs views with what a camera saw: set fresh, with real above 0")
        if self.start_share and self.phase not in ("2", "3"):
            raise ValueError("start_share is for phases 2 and 3: the others start with what knows no pairs")
        if not 0 <= self.start_share < 1:
            raise ValueError(f"start_share must lie in [0, 1), got {self.start_share}")
        if self.fresh and self.fresh.other_band and self.fixed_prompt is not None:
            raise ValueError("other_band needs prompts that say the band: remove fixed_prompt")
        if self.extra_dropout and self.phase not in ("2", "3"):
            raise ValueError("extra_dropout is for phases 2 and 3: the others have no such conditions")
        if unknown := sorted(set(self.extra_dropout) - set(DROPPED_SUBSETS)):
            raise ValueError(f"extra_dropout is for the subsets {', '.join(DROPPED_SUBSETS)}, got {', '.join(unknown)}")
        bands = len(DROPPED_SUBSETS) if self.phase in ("2", "3") else 1
        shares = [self.dropout, *self.extra_dropout.values()]
        if min(shares) < 0 or bands * self.dropout + sum(self.extra_dropout.values()) > 1:
            raise ValueError(f"dropout and extra_dropout must be shares of one whole, got {shares}")
        if self.map_style not in MAP_STYLES:
            raise ValueError(f"map_style must be one of {MAP_STYLES}, got {self.map_style!r}")
        if self.frozen_dtype not in DTYPES:
            raise ValueError(f"frozen_dtype must be one of {', '.join(DTYPES)}, got {self.frozen_dtype!r}")
        # Raises now, not after the training, by the name of the field.
        GenerationSettings.from_dict({**self.defaults, "style": self.style or GENERAL_STYLE})
        if self.style == GENERAL_STYLE:
            raise ValueError(f"style {GENERAL_STYLE!r} is the name of the weights without a style; choose another")

    @property
    def taught(self) -> bool:
        """Whether there has to be a teacher."""
        return self.fresh is not None and self.fresh.real < 1

    @property
    def frozen(self) -> torch.dtype:
        """`frozen_dtype` as torch knows it."""
        return getattr(torch, DTYPES[self.frozen_dtype])

    def fits(self, example: Example) -> bool:
        """Whether an example is used by this phase."""
        if self.kinds is not None and example.kind not in self.kinds:
            return False
        if self.sources is not None and example.source not in self.sources:
            return False
        if self.phase == "1":
            return example.infrared is not None
        if self.phase == "base":
            return example.visible is not None
        return example.visible is not None and example.infrared is not None

    def with_fixed_prompt(self, prompt: str) -> PhaseConfig:
        """The phase with one prompt for every photo, which no more says the band."""
        fresh = self.fresh and replace(self.fresh, other_band=0.0)
        return replace(self, fixed_prompt=prompt, fresh=fresh)

    def weights(self, examples: Sequence[Example]) -> list[float] | None:
        """Relative frequencies of examples, see `example_weights`."""
        return example_weights(self.source_weights, examples)


@dataclass
class Parts:
    """Frozen components that every phase needs, from the folder it starts from."""

    folder: Path
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Parts:
        """Load from a folder in the diffusers layout; all weights are frozen, and on this process's device."""
        device = process_state().device
        index = json.loads((folder / "model_index.json").read_text())
        vae_class = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[index["vae"][1]]
        parts = cls(
            folder,
            vae_class.from_pretrained(folder / "vae").eval().requires_grad_(False).to(device, dtype),
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype).eval().requires_grad_(False).to(device),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            DDPMScheduler.from_pretrained(folder / "scheduler"),
        )
        parts.vae.to(memory_format=torch.channels_last)
        return parts


def train_phase(
    config: PhaseConfig,
    examples: Sequence[Example],
    start: Path,
    output: Path,
    *,
    cache: Path,
    validation: Sequence[Example] = (),
    vlum: Path | None = None,
    teacher: Path | None = None,
    unseen_captions: Path | None = None,
    validate=None,
) -> Path:
    """Run one phase; returns the folder of its result, `output/result`. Resumable; a finished phase returns at once.

    Args:
        examples: what to train on (filtered by `config.fits`); validation: held-out examples, for figures and sheets.
        start: folder to start from (diffusers layout; base needs all but the unet).
        cache: folder of captions, maps and latents, shared by all phases.
        vlum: folder with captioner, captioner_processor and segmenter; None = `start` has them.
        teacher: output folder of `train_teacher`; needed if `config.taught`.
        unseen_captions: file of `train_captioner`: `config.own_captions` prefers its captions to those of the bundle's
            BLIP.
        validate: `validate(bundle, examples, step, output)` -> figures, called every `loop.validate_every`
            steps of phases 2 and 3 with the bundle reached so far.

    Raises:
        DataError: nothing to train on, or the teacher has not seen the band of an example. TrainingError: see `Loop`.
        ValueError: `start` does not fit the phase, the optimizer's package is not installed, or there is no teacher.
    """
    result = output / "result"
    if finished_result(config, output):
        return result
    chosen = [example for example in examples if config.fits(example)]
    if not chosen:
        raise DataError(f"phase {config.phase}: no example of kinds {config.kinds} and sources {config.sources}")
    held_out = [example for example in validation if config.fits(example)]
    optimizer_class(config.loop.optimizer)  # raises now, not after the caches are filled
    check_teacher(config, teacher, chosen)
    bands = {known_band(example.band) for example in chosen}
    unseen = json.loads(unseen_captions.read_text()) if unseen_captions and config.own_captions else {}
    parts, vlum = Parts.load(start, config.frozen), vlum or start
    check_start(config, start)
    unet = _initial_unet(config, parts)
    before = _weights_before(unet) if config.start_share else {}
    # These raise now, not after the caches are filled.
    prompts = PromptEncoder(parts.tokenizer, parts.text_encoder)
    objective = DiffusionObjective(parts.scheduler, prompts, parts.vae.config.scaling_factor, config.noise)
    pictures = _picture_loss(config, parts) if config.picture else None
    processes = process_state()
    _hash_files(chosen, cache)
    if latest_checkpoint(output) and recorded_examples(output) not in (None, examples_hash(chosen)):
        raise TrainingError(f"{output} was begun with other examples: bring them back, or choose another output folder")
    if processes.is_main_process:
        record_examples(output, chosen)
    latents, captions = _fill_caches(config, parts, chosen, cache, vlum, teacher, unseen)
    seeing = config.fresh.seeing if config.fresh else 0.0
    trained = _with_head(unet, latents, chosen, config.loop.seed) if seeing else unet

    def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
        drawn = [chosen[draw.index] for draw in draws]
        batch, shown = [], []
        for views, example, draw in zip(latents.batch(drawn, draws), drawn, draws, strict=True):
            band = latents.band(example, draw)
            batch.append(_sample(config, views, band, captions, example, draw))
            shown.append(views)
        targets, texts, conditions, features, sighted = zip(*batch, strict=True)
        joined = None if conditions[0] is None else torch.stack(conditions)
        head = partial(_seeing_loss, trained, seeing, features) if seeing else None
        picture = partial(_shown_loss, pictures, shown) if pictures else None
        # Who sees no photo cannot make its picture, but the mean of all, by the latents.
        pictured = [sees and "picture" in views for sees, views in zip(sighted, shown, strict=True)]
        weight = config.picture.latents if pictures else 1.0
        return objective(
            model, draws, torch.stack(targets), list(texts), joined,
            seeing=head, picture=picture, pictured=pictured, picture_latents=weight,
        )  # fmt: skip

    def save(folder: Path, model: nn.Module) -> None:
        ended = model.unet if seeing else model
        if before:
            ended = _between(before, ended, config.start_share)
        write_result(config, ended, start, vlum, folder, bands)

    def validation_figures(model: nn.Module, step: int) -> dict[str, float]:
        candidate = output / "candidate"
        write_atomically(candidate, lambda folder: save(folder, model))
        figures = validate(candidate, held_out, step, output)
        shutil.rmtree(candidate)
        return figures

    name = f"phase {config.phase}" + (f" ({config.style})" if config.style else "")
    loop = Loop(
        config.loop,
        output,
        trained,
        loss,
        len(chosen),
        weights=config.weights(chosen),
        save=save,
        validate=validation_figures if validate and held_out and config.phase in ("2", "3") else None,
        name=name if config.phase != "base" else "text-to-image base",
    )
    model = loop.run()
    if processes.is_main_process:
        (output / "history.json").write_text(json.dumps({"config": asdict(config), "history": loop.history}))
        write_atomically(result, lambda folder: save(folder, model))
    processes.wait_for_everyone()
    return result


def finished_result(config: PhaseConfig, output: Path) -> Path | None:
    """The result in the folder of a phase that was trained to its end, None of another one.

    Where the configuration now asks for another number of steps, a warning says so: the result stays as it is.
    """
    result, history = output / "result", output / "history.json"
    if not (result / bundle.INDEX).is_file():
        return None
    asked = config.loop.steps
    done = json.loads(history.read_text())["config"]["loop"]["steps"] if history.is_file() else asked
    if done == asked:
        logger.info("phase %s: already finished in %s", config.phase, result)
    else:
        logger.warning(
            "phase %s: finished at %d steps; the configuration asks for %d: start in a new folder, or delete %s to "
            "go on",
            config.phase, done, asked, result,
        )  # fmt: skip
    return result


def _weights_before(unet: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained weights whose line from before to after is that of what the UNet computes with.

    Of an adapter, B @ A, that is B alone, which is zero at first: A would bend the line.
    """
    trained = ((name, weight) for name, weight in unet.named_parameters() if weight.requires_grad)
    return {name: weight.detach().clone() for name, weight in trained if "lora_A" not in name}


def _between(before: Mapping[str, Tensor], model: nn.Module, share: float) -> nn.Module:
    """A copy of the model, `share` of whose weights are those before, as far as these are given."""
    model = copy.deepcopy(model)  # the training goes on with its own
    weights = model.state_dict()
    model.load_state_dict(
        weights | {name: weights[name].lerp(was.to(weights[name]), share) for name, was in before.items()}
    )
    return model


def check_start(config: PhaseConfig, start: Path) -> None:
    """An adapter shares the maps of the bundle it belongs to."""
    if config.phase == "3" and config.lora:
        style = json.loads((start / bundle.INDEX).read_text()).get("map_style", config.map_style)
        if style != config.map_style:
            raise ValueError(f"map_style must be that of {start}, {style!r}, got {config.map_style!r}")


def check_teacher(config: PhaseConfig, teacher: Path | None, examples: Sequence[Example]) -> None:
    """`config.taught` needs a finished teacher that knows the bands of the examples.

    Raises:
        ValueError: none was given. TrainingError: it is not finished. DataError: it does not know a band.
    """
    if not config.taught:
        return
    if teacher is None:
        raise ValueError("fresh needs the output of python -m train.teacher, unless real is 1: none was given")
    if foreign := sorted({known_band(example.band) for example in examples} - set(teacher_bands(teacher))):
        raise DataError(f"the teacher in {teacher} has seen no pairs of {', '.join(foreign)}: train it on the phase's")


def _initial_unet(config: PhaseConfig, parts: Parts) -> UNet2DConditionModel:
    """The UNet a phase starts with, with exactly its trainable parameters requiring gradients."""
    torch.manual_seed(config.loop.seed)
    channels = parts.vae.config.latent_channels
    if config.phase == "base":
        settings = asdict(config.unet)
        unet = build_unet(
            in_channels=channels,
            out_channels=channels,
            cross_attention_dim=parts.text_encoder.config.hidden_size,
            **settings,
        )
    else:
        unet = UNet2DConditionModel.from_pretrained(parts.folder / "unet", dtype=torch.float32)
    return prepare_unet(config, unet, channels, parts.folder)


def prepare_unet(
    config: PhaseConfig, unet: UNet2DConditionModel, latent_channels: int, source: Path
) -> UNet2DConditionModel:
    """Widen, freeze and adapt the UNet of folder `source` for a phase. Changes `unet` and returns it.

    Raises:
        ValueError: it has not the input channels that the phase needs.
    """
    channels = latent_channels * (1 if config.phase in ("base", "1") else 3)
    if config.phase == "2":
        unet = widen_conv_in(unet, channels)
    if unet.config.in_channels != channels:
        raise ValueError(
            f"phase {config.phase} needs a UNet of {channels} input channels, {source} has one of "
            f"{unet.config.in_channels}: start from the result of the phase before"
        )
    layout = torch.contiguous_format if half_on_cpu(config.loop) else torch.channels_last
    unet.train().requires_grad_(config.lora is None).to(memory_format=layout)
    if config.lora:  # after the change of layout: safetensors refuses adapters that are not contiguous
        adapter = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=list(config.lora.targets),
            init_lora_weights="gaussian",
        )
        unet.add_adapter(adapter, adapter_name=config.style or "infrared")
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _hash_files(examples: Sequence[Example], cache: Path) -> None:
    """Hash the images of examples, by which the entries of the caches are named. Each process makes its share."""
    processes, index = process_state(), HashIndex(cache)
    files = (getattr(example, role) for example in examples for role in ROLES)
    index.fill(filter(None, files), Share(processes.process_index, processes.num_processes))
    processes.wait_for_everyone()
    index.read()


def _fill_caches(
    config: PhaseConfig,
    parts: Parts,
    examples: list[Example],
    cache: Path,
    vlum: Path,
    teacher: Path | None = None,
    unseen: Mapping[str, str] | None = None,
) -> tuple[LatentCache | FreshViews, CaptionCache]:
    """Make what is missing of captions, maps and latents; only what this phase reads. Each process makes its share.

    The models that make it then leave the device: the training itself only needs the text encoder.
    """
    processes = process_state()
    share, maps = Share(processes.process_index, processes.num_processes), None
    if config.phase in ("2", "3") and not config.without_map:
        segmenter = SamSegmenter.from_pretrained(vlum / "segmenter").eval()
        maps = MapCache(cache, segmenter.to(parts.vae.device), config.map_style)
        maps.fill(examples, share=share)
        segmenter.to("cpu")
    captions = CaptionCache(cache, None, None)
    reads_captions = config.phase != "1" and config.fixed_prompt is None
    if reads_captions and (config.own_captions or any(not example.caption for example in examples)):
        captioner = (
            BlipForConditionalGeneration.from_pretrained(vlum / "captioner", dtype=config.frozen)
            .eval()
            .to(parts.vae.device)
        )
        processor = BlipProcessor.from_pretrained(vlum / "captioner_processor")
        captions = CaptionCache(cache, captioner, processor, always=config.own_captions, unseen=unseen)
        captions.fill(examples, share=share)
        captioner.to("cpu")
    processes.wait_for_everyone()
    captions.read()
    if config.fresh:
        device = parts.vae.device
        asked = Teacher(teacher).to(device) if config.taught else None
        network = copy.deepcopy(load_network()).to(device) if config.fresh.seeing else None
        return FreshViews(
            examples, parts.vae, config.view, maps and maps.path, asked, config.fresh, config.weights(examples),
            network, config.picture is not None,
        ), captions  # fmt: skip
    wanted = {"base": ("visible",), "1": ("infrared",)}.get(config.phase, ROLES)
    latents = LatentCache(cache, parts.vae, config.view, maps, config.loop.seed, wanted)
    latents.fill(examples, share=share)
    parts.vae.to("cpu")
    processes.wait_for_everyone()
    return latents, captions


def _picture_loss(config: PhaseConfig, parts: Parts) -> PictureLoss:
    """The loss of `config.picture`.

    Raises:
        ValueError: the model predicts noise. TrainingError: the network's weights are not installed.
    """
    if parts.scheduler.config.prediction_type != "v_prediction":
        raise ValueError(
            f"picture needs a model that predicts velocities, {parts.folder} has one that predicts "
            f"{parts.scheduler.config.prediction_type}: one step from noise is no picture there"
        )
    network = None
    if config.picture.perceptual:
        network = copy.deepcopy(load_network(loss_network)).to(process_state().device)
    return PictureLoss(config.picture, parts.vae, network, config.loop.half or torch.float32)


def _shown_loss(
    loss: PictureLoss, views: Sequence[Mapping[str, Tensor]], estimates: Tensor, places: Tensor
) -> dict[str, Tensor]:
    """The losses of the pictures of some samples, the views of all being given."""
    chosen = [views[place] for place in places.tolist()]
    photos, real = (torch.stack([view[role] for view in chosen]).to(estimates.device) for role in ("photo", "picture"))
    return loss(estimates, photos, real)


def _with_head(unet: UNet2DConditionModel, latents: FreshViews, examples: list[Example], seed: int) -> SeeingUNet:
    """The UNet with a head for what the network sees, standardised over a view of each example."""
    draws = [Draw(position=number, epoch=0, index=number, seed=seed) for number in range(len(examples))]
    views = [
        view
        for start in range(0, len(draws), _TOGETHER)
        for view in latents.batch(examples[start : start + _TOGETHER], draws[start : start + _TOGETHER])
    ]
    seen = torch.cat([view["seen"].flatten(1).cpu() for view in views], dim=1)  # [C, places]
    torch.manual_seed(seed)
    return SeeingUNet(unet, FeatureTarget(seen))


def _seeing_loss(model: SeeingUNet, weight: float, features: Sequence[Tensor | None], seen: Tensor) -> Tensor:
    """The weighted distance to `features`, each of one sample, or None where the UNet sees no photo."""
    known = [number for number, feature in enumerate(features) if feature is not None]
    if not known:
        return 0.0 * seen.mean()  # every process has a gradient for the head
    distances = model.target.distance(seen[known], torch.stack([features[number] for number in known]))
    return weight * distances.sum() / len(features)


def _sample(
    config: PhaseConfig, views: dict[str, Tensor], band: str, captions: CaptionCache, example: Example, draw: Draw
) -> tuple[Tensor, str, Tensor | None, Tensor | None, bool]:
    """Target latent, prompt, condition latents, features of the photo, and whether it is seen: with condition dropout.

    Args:
        views: the draw's, of `LatentCache` or `FreshViews`. band: of the target.
    """
    # A stream of its own: the objective draws timestep and noise from `draw.generator()` itself.
    uniform = float(torch.rand((), generator=torch.Generator().manual_seed(draw.generator().initial_seed() ^ 0x5EED)))
    if config.phase == "1":
        return views["infrared"], INFRARED_PROMPT, None, None, False
    if config.phase == "base":
        return views["visible"], "" if uniform < config.dropout else captions.caption(example), None, None, False
    dropped = dropped_conditions(uniform, config.dropout, config.extra_dropout)
    if band != known_band(example.band):  # which nothing but the prompt says
        dropped = dropped.replace("T", "")
    visible = torch.zeros_like(views["visible"]) if "V" in dropped else views["visible"]
    null_map = config.without_map or "S" in dropped
    segmentation = torch.zeros_like(views["visible"]) if null_map else views["segmentation"]
    prompt = config.fixed_prompt
    if prompt is None:
        prompt = build_prompt(captions.caption(example), band)
    prompt = "" if "T" in dropped else prompt
    sees = "V" not in dropped
    features = views.get("seen") if sees else None
    return views["infrared"], prompt, torch.cat([visible, segmentation]), features, sees


def write_result(config: PhaseConfig, unet: nn.Module, start: Path, vlum: Path, folder: Path, bands: Set[str]) -> None:
    """Write what a phase makes into `folder`: unchanged components are hard-linked from `start` and `vlum`.

    `bands`: those of the examples it was trained on.
    """
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        link_tree(start / name, folder / name)
    if config.phase in ("base", "1"):
        link_tree(start / "styles", folder / "styles")
        if config.phase == "1":
            _save_adapter(unet, folder, "infrared")
            unet = merge_lora(copy.deepcopy(unet))  # the training goes on with the adapter apart
        unet.save_pretrained(folder / "unet")
        _write_text_to_image_index(start, folder)
        return
    for name in ("captioner", "captioner_processor", "segmenter"):
        link_tree(vlum / name, folder / name)
    if config.lora:
        for name in ("unet", "styles"):
            link_tree(start / name, folder / name)
        _save_adapter(unet, folder, config.style)
    else:
        unet.save_pretrained(folder / "unet")
    _write_bundle_index(config, start, folder, bands)


def _save_adapter(unet: nn.Module, folder: Path, style: str) -> None:
    """In place of the one of that name that `start` had."""
    shutil.rmtree(folder / "styles" / style, ignore_errors=True)
    unet.save_lora_adapter(folder / "styles" / style, adapter_name=style)


def _write_text_to_image_index(start: Path, folder: Path) -> None:
    index = json.loads((start / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _write_bundle_index(config: PhaseConfig, start: Path, folder: Path, bands: Set[str]) -> None:
    """model_index.json of a bundle: that of the starting bundle with the new style, or a new one."""
    before = json.loads((start / bundle.INDEX).read_text())
    if before["_class_name"] != "DiffV2IRPipeline":
        before = {
            "_class_name": "DiffV2IRPipeline",
            **{name: before[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
            "unet": ["diffusers", "UNet2DConditionModel"],
            "captioner": ["transformers", "BlipForConditionalGeneration"],
            "captioner_processor": ["transformers", "BlipProcessor"],
            "segmenter": [SamSegmenter.__module__, "SamSegmenter"],
            "styles": [GENERAL_STYLE],
        }
    # Adapters of other weights do not fit: they stay behind when all weights were trained.
    others = [style for style in before["styles"] if style != config.style]
    styles = [*others, config.style] if config.lora else [GENERAL_STYLE]
    known = dict(before.get("bands", {})) if config.lora else {}
    known.pop(styles[-1], None)
    if len(bands) == 1:
        known[styles[-1]] = next(iter(bands))
    index = {
        **before,
        "_diffusers_version": diffusers.__version__,
        "styles": styles,
        "bands": known,
        "map_style": config.map_style,
        "defaults": GenerationSettings.from_dict(config.defaults or before.get("defaults") or {}).to_dict(),
        "name": config.style or "general",
    }
    (folder / bundle.INDEX).write_text(json.dumps(index, indent=2))


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder as hard links (as copies where the file system has none)."""
    if not source.is_dir():
        return
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            try:
                os.link(path.resolve(), copy)
            except OSError:
                shutil.copy2(path, copy)
