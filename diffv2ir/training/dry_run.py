"""What a phase would take, before anything is loaded: parameters, batch, steps, memory, disk, and what is missing.

Read are configurations, weight headers and the dataset's list of files; no image is opened. Models are built on the
meta device, which holds shapes and no numbers. Weights that are not here yet are missing, and counted all the same.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from diffv2ir import bundle, hub
from diffv2ir.data import DataError, Example, read_parts
from diffv2ir.memory import free_memory
from diffv2ir.pipeline import latent_stride
from diffv2ir.training.activations import activation_size
from diffv2ir.training.cache import ViewConfig
from diffv2ir.training.diffusion import EMBEDDINGS_BYTES
from diffv2ir.training.loop import TrainingError, optimizer_class, process_state
from diffv2ir.training.phases import PhaseConfig, check_start, check_teacher, prepare_unet
from diffv2ir.training.shapes import SHAPES
from diffv2ir.training.starts import (
    NOT_HERE,
    PUBLISHED_VLUM,
    START,
    VLUM,
    is_sd15,
    locate_start,
    part_problems,
    wants_published,
)

Models = tuple[UNet2DConditionModel, AutoencoderKL | AutoencoderTiny, CLIPTextModel]

_FLOAT32, _FLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Footprint:
    """What a run needs; all sizes in bytes.

    Attributes:
        trainable, total: parameters of the UNet, widened and with its adapter.
        memory: on each device, by purpose; see `device_memory`. activations: what comes on top in a forward pass, see
            `activation_size`; None where the batch does not fit.
        main_memory: of each process, at most, by purpose; see `main_memory`.
        checkpoint: one checkpoint on disk; see `checkpoint_size`.
        latent: one cached view of one image, at most; see `latent_size`.
    """

    trainable: int
    total: int
    memory: dict[str, int]
    activations: int | None
    main_memory: dict[str, int]
    checkpoint: int
    latent: int


@dataclass(frozen=True)
class DryRun:
    """The report of a dry run; `str()` of it is for people.

    Attributes:
        processes: how many share a batch. examples: how many there are to train on.
        batch: (samples of a forward pass, accumulated forward passes); None where `missing` says why.
        footprint: None where nothing is known of the models, or they do not fit.
        missing: what is not there or does not fit, one sentence each; empty = the training can start.
    """

    config: PhaseConfig
    processes: int
    examples: int
    batch: tuple[int, int] | None
    footprint: Footprint | None
    missing: tuple[str, ...]

    def __str__(self) -> str:
        rows = [("phase", self.config.phase)]
        if self.footprint:
            rows.append(("trainable", f"{self.footprint.trainable:,} of {self.footprint.total:,} parameters"))
        rows += [("batch", self._batch()), ("steps", self._steps())]
        if self.footprint:
            rows += [
                ("memory", self._memory(self.footprint)),
                ("activations", self._activations(self.footprint)),
                ("main memory", self._main_memory(self.footprint)),
                ("disk", self._disk(self.footprint)),
            ]
        lines = [f"{name:<13}{text}" for name, text in rows]
        lines += ["missing:", *(f"- {problem}" for problem in self.missing)] if self.missing else ["nothing is missing"]
        return "\n".join(lines)

    def _batch(self) -> str:
        if self.batch is None:
            return str(self.config.loop.batch_size)
        micro, accumulation = self.batch
        return (
            f"{self.config.loop.batch_size} = {self.processes} process(es) x {micro} in a forward pass "
            f"x {accumulation} accumulated"
        )

    def _steps(self) -> str:
        loop = self.config.loop
        if not self.examples:
            return f"{loop.steps:,}"
        epochs = loop.steps * loop.batch_size / self.examples
        return f"{loop.steps:,} = {epochs:,.1f} epochs of {self.examples:,} examples"

    def _memory(self, footprint: Footprint) -> str:
        sizes = footprint.memory | ({} if footprint.activations is None else {"activations": footprint.activations})
        parts = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())
        rest = "; activations come on top" if footprint.activations is None else ""
        return f"{_size(sum(sizes.values()))} per device: {parts}{rest}"

    def _activations(self, footprint: Footprint) -> str:
        if footprint.activations is None or self.batch is None:
            return "not counted, since the batch does not fit"
        checkpointing = "with" if self.config.gradient_checkpointing else "without"
        return (
            f"{_size(footprint.activations)} in a forward pass of {self.batch[0]} at {self.config.view.crop} pixels "
            f"(mixed precision: {self.config.loop.mixed_precision}; {checkpointing} gradient checkpointing)"
        )

    def _main_memory(self, footprint: Footprint) -> str:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in footprint.main_memory.items() if size)
        return f"at most {_size(sum(footprint.main_memory.values()))} per process, besides the program: {parts}"

    def _disk(self, footprint: Footprint) -> str:
        kept = self.config.loop.keep_checkpoints
        checkpoints, latents = disk_sizes(self.config, footprint, self.examples or 1000)
        of = "" if self.examples else " of 1,000 examples"
        return (
            f"{_size(checkpoints)} for {kept} checkpoints of {_size(footprint.checkpoint)} "
            f"and the one being written; latents{of} at most {_size(latents)}"
        )


def dry_run(
    config: PhaseConfig,
    data: Path | None,
    start: Path | str | None,
    vlum: Path | str | None = None,
    teacher: Path | None = None,
    output: Path | None = None,
    cache: Path | None = None,
) -> DryRun:
    """What `train_phase` would need for phase 1, 2 or 3, and what of it is missing. Nothing is fetched.

    Missing is also memory of this process's device, where it has its own, and room on the disks of output and cache.

    Args:
        data: dataset folder. start, vlum: names for `locate_start`; without a start, or where it is "sd15" and not here
            yet, the figures are those of Stable Diffusion 1.5. teacher, output, cache: as for `train_phase`.
    """
    processes, missing = process_state().num_processes, []
    examples = _examples(config, data, missing)
    try:
        share, micro = config.loop.share(processes)
        batch = (micro, share // micro)
    except ValueError as error:
        batch = None
        missing.append(str(error))
    for check in (lambda: optimizer_class(config.loop.optimizer), lambda: check_teacher(config, teacher, ())):
        try:
            check()
        except (ValueError, TrainingError) as error:
            missing.append(str(error))
    folder = _located("--start", start, missing)
    models = _known_models(config, start) if folder is None else _stored_models(config, folder, missing)
    footprint = models and _footprint(config, models, Path(start or "sd15"), batch, missing)
    if config.phase != "1":
        missing += _vlum_problems(folder, start, vlum)
    if footprint:
        missing += _memory_problems(footprint) + _disk_problems(config, footprint, len(examples), output, cache)
    # Without `vlum`, a `start` that is not there is found twice.
    return DryRun(config, processes, len(examples), batch, footprint, tuple(dict.fromkeys(missing)))


def _memory_problems(footprint: Footprint) -> list[str]:
    free = free_memory(process_state().device)
    needed = sum(footprint.memory.values()) + (footprint.activations or 0)
    if free is None or needed <= free:
        return []
    return [
        f"{process_state().device} has {_size(free)} free, about {_size(needed)} are needed: choose a smaller "
        "micro_batch_size, gradient_checkpointing, or a configuration that saves memory"
    ]


def _disk_problems(
    config: PhaseConfig, footprint: Footprint, examples: int, output: Path | None, cache: Path | None
) -> list[str]:
    """Disks with too little room for what is not there yet."""
    if output is None:
        return []
    cache = cache or output / "cache"
    needs: dict[int, tuple[Path, int]] = {}
    for folder, size in zip(
        (output / "checkpoints", cache / "latents"), disk_sizes(config, footprint, examples), strict=True
    ):
        there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        disk = next(parent for parent in folder.absolute().parents if parent.exists())
        known = needs.get(disk.stat().st_dev, (disk, 0))
        needs[disk.stat().st_dev] = (known[0], known[1] + max(0, size - there))
    return [
        f"the disk of {disk} has {_size(free)} free, up to {_size(needed)} are needed"
        for disk, needed in needs.values()
        if needed > (free := shutil.disk_usage(disk).free)
    ]


def _examples(config: PhaseConfig, data: Path | None, missing: list[str]) -> list[Example]:
    if data is None:
        missing.append("--data is not given")
        return []
    try:
        training, _ = read_parts(data, config.validation_fraction, config.fits)
    except DataError as error:
        missing.append(str(error))
        return []
    if not training:
        missing.append(f"{data}: no example of kinds {config.kinds} and sources {config.sources} to train on")
    return training


def _located(option: str, name: Path | str | None, missing: list[str]) -> Path | None:
    if name is None:
        missing.append(f"{option} is not given: counted as sd15")
        return None
    try:
        return locate_start(str(name), fetch=False)
    except hub.HubError as error:
        missing.append(str(error))
        return None


def _vlum_problems(folder: Path | None, start: Path | str | None, vlum: Path | str | None) -> list[str]:
    problems: list[str] = []
    sd15 = folder is None and start is not None and is_sd15(str(start))
    if vlum == PUBLISHED_VLUM or (vlum is None and (sd15 or (folder and wants_published(None, folder)))):
        absent = [name for name in PUBLISHED_VLUM.split("+") if not _is_here(name)]
        return [f"{name} (captioner and segmenter, without --vlum) {NOT_HERE}" for name in absent]
    if vlum is not None:
        folder = _located("--vlum", vlum, problems)
    return problems if folder is None else part_problems(folder, VLUM)


def _is_here(name: str) -> bool:
    try:
        return bool(hub.here(hub.SOURCES[name]))
    except hub.HubError:
        return False


def _known_models(config: PhaseConfig, start: Path | str | None) -> Models | None:
    """Models of a start that is not here: Stable Diffusion 1.5; without a name, for phase 3 as phase 2 leaves it."""
    if start is not None and not is_sd15(str(start)):
        return None
    shapes = SHAPES["sd15"]
    channels = shapes["vae"]["latent_channels"] * (3 if start is None and config.phase == "3" else 1)
    with torch.device("meta"):
        return (
            UNet2DConditionModel(**shapes["unet"] | {"in_channels": channels}),
            AutoencoderKL(**shapes["vae"]),
            CLIPTextModel(CLIPTextConfig(**shapes["text_encoder"])),
        )


def _stored_models(config: PhaseConfig, start: Path, missing: list[str]) -> Models | None:
    """Models by the configurations in a folder, whether their weights are there or not."""
    problems = part_problems(start, START)
    if not problems and not (start / bundle.INDEX).is_file():
        problems = [f"{start}: {bundle.INDEX} is missing"]
    missing += problems
    if not all((start / name / "config.json").is_file() for name in ("unet", "vae", "text_encoder")):
        return None
    vae_config = AutoencoderKL.load_config(start / "vae")
    vae_class = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[vae_config["_class_name"]]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(start / "unet"))
        vae = vae_class.from_config(vae_config)
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(start / "text_encoder"))
    if not problems:
        try:
            bundle.check_weights(start, {"unet": unet, "vae": vae, "text_encoder": text_encoder})
            check_start(config, start)
        except ValueError as error:
            missing.append(str(error))
    return unet, vae, text_encoder


def _footprint(
    config: PhaseConfig, models: Models, source: Path, batch: tuple[int, int] | None, missing: list[str]
) -> Footprint | None:
    unet, vae, text_encoder = models
    channels, stride = vae.config.latent_channels, latent_stride(vae)
    try:
        with torch.device("meta"):
            unet = prepare_unet(config, unet, channels, source)
    except ValueError as error:
        missing.append(str(error))
        return None
    activations = None
    if batch is not None:
        tokens = text_encoder.config.max_position_embeddings
        activations = activation_size(unet, batch[0], config.view.crop // stride, tokens, config.loop.half)
    return Footprint(
        count_trainable(unet),
        count_parameters(unet),
        device_memory(config, unet, text_encoder, process_state().num_processes),
        activations,
        main_memory(config, unet),
        checkpoint_size(config, unet),
        latent_size(config.view, channels, stride),
    )


def device_memory(config: PhaseConfig, unet: nn.Module, text_encoder: nn.Module, processes: int = 1) -> dict[str, int]:
    """Bytes that a training holds on each device from its first to its last step, by purpose.

    With N parameters of the UNet, n of them trainable, all float32, and M of the text encoder, of b bytes:

    - weights 4 N + b M
    - gradients 4 n
    - optimizer: see `optimizer_size`
    - average 4 n, unless there is none or it is kept on the CPU

    With `shard`, all but the text encoder is divided among the processes; the weights of the block that is computed
    come on top, and the half-precision copies below are not divided.

    Not counted: what comes and goes in a step, of which `activation_size` is the most, with the half-precision copies
    of the weights that mixed precision makes (2 N), and in the first two steps of several processes a second copy of
    the gradients (4 n), until they lie where they are exchanged; and the models that fill the caches, which have left
    the device by then.
    """
    trainable = count_trainable(unet)
    sharing = processes if config.loop.shard else 1
    shared = {
        "weights": _FLOAT32 * count_parameters(unet),
        "gradients": _FLOAT32 * trainable,
        "optimizer": optimizer_size(config, unet),
        "average": _FLOAT32 * trainable if config.loop.ema_decay and config.loop.ema_device == "model" else 0,
    }
    sizes = {name: -(-size // sharing) for name, size in shared.items()}
    sizes["weights"] += config.frozen.itemsize * count_parameters(text_encoder)
    return sizes


def main_memory(config: PhaseConfig, unet: nn.Module) -> dict[str, int]:
    """Bytes that each process keeps in main memory, at most: embeddings of prompts, and the average if it is there.

    Not counted: what comes and goes, as when a shared model is gathered, and the photos of `fresh`.
    """
    average = _FLOAT32 * count_trainable(unet) if config.loop.ema_decay and config.loop.ema_device == "cpu" else 0
    return {"text embeddings": EMBEDDINGS_BYTES, "average": average}


def optimizer_size(config: PhaseConfig, unet: nn.Module) -> int:
    """Bytes of the two moments of n trained parameters: 8 n, with 8-bit Adam 2 n.

    Left out of 8-bit Adam: the scale of each block, under 2 % more, and tensors of less than 4096 numbers, which it
    keeps in float32.
    """
    return 2 * (1 if config.loop.optimizer == "adamw8bit" else _FLOAT32) * count_trainable(unet)


def checkpoint_size(config: PhaseConfig, unet: nn.Module) -> int:
    """Bytes of a checkpoint: the trainer's state (weights, moments, average) and the model in loadable form.

    Components that stay as they were are hard links and take nothing.
    """
    trainable = count_trainable(unet)
    state = _FLOAT32 * trainable * (2 if config.loop.ema_decay else 1) + optimizer_size(config, unet)
    adapter = trainable if config.lora else 0
    whole = 0 if config.phase == "3" and config.lora else count_parameters(unet) - adapter
    return state + _FLOAT32 * (whole + adapter)


def disk_sizes(config: PhaseConfig, footprint: Footprint, examples: int) -> tuple[int, int]:
    """Bytes of all checkpoints, with the one that is being written, and at most those of the latents of examples."""
    roles = 1 if config.phase == "1" else 3
    views = 0 if config.fresh else examples * config.view.variants
    return (config.loop.keep_checkpoints + 1) * footprint.checkpoint, views * roles * footprint.latent


def latent_size(view: ViewConfig, channels: int, stride: int) -> int:
    """Bytes of the largest cached view of an image: C x h x w float16, of a panorama cut to twice the crop."""
    shorter, longer = (min(side, 2 * view.crop) // stride for side in (round(view.resize * view.zoom), 2 * view.crop))
    return _FLOAT16 * channels * shorter * longer


def count_parameters(model: nn.Module) -> int:
    """All parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_trainable(model: nn.Module) -> int:
    """The parameters that a training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
