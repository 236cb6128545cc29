"""One training loop for every model of the project.

All randomness is a function of (seed, position in the run), never of a generator's history: sample number n always sees
the same example, noise and augmentation. A run that is killed and resumed therefore ends with the same weights as one
that was never interrupted, and the same holds for any number of accumulation steps or processes up to rounding.
"""

from __future__ import annotations

import copy
import ctypes
import json
import logging
import math
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from diffv2ir.files import write_atomically
from diffv2ir.training.sharding import gathered, part_like, shard

logger = logging.getLogger(__name__)

# Options of glibc's `mallopt`: how many blocks may be mapped apart; how much free memory on end is given back.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1

OPTIMIZERS = ("adamw", "adamw8bit")
_STEP_DIGITS = 7

# How long a process waits for the others before it gives up: one may have more to put into the caches, and the main one
# validates and writes alone. Torch's own limits, with NCCL 10 minutes, would end a training of hundreds of thousands of
# photos before its first step. That a process died is not found by waiting: its launcher ends the others.
PATIENCE = timedelta(hours=24)


def process_state() -> PartialState:
    """This process among those of `accelerate launch`, set up as `Accelerator` does it, and patient."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def half_on_cpu(config: LoopConfig) -> bool:
    """Whether a training computes in bfloat16 on a CPU.

    There, plain attention and torch's own layout take half the time of fused attention and channels_last: the gradients
    of these two are slow in bfloat16, not those in float32, nor those on a GPU.
    """
    return config.half is torch.bfloat16 and process_state().device.type == "cpu"


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for those of the next step, not give it back and ask for it, zeroed, anew.

    A training on a CPU takes a fifth to a quarter less time. Other C libraries stay as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)


def _accelerator(mixed_precision: str) -> Accelerator:
    """An accelerator of this precision, also where another training of this process had another one."""
    if AcceleratorState._shared_state.get("_mixed_precision") not in (None, mixed_precision):
        AcceleratorState._reset_state()  # it has no other way; the processes stay connected
    # Gradients lie in the buckets in which processes exchange them: no second copy.
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[buckets])


class TrainingError(RuntimeError):
    """A training that cannot go on; the last good checkpoint stays in place."""


@dataclass(frozen=True)
class LoopConfig:
    """What every training has in common.

    Attributes:
        steps: optimizer steps.
        batch_size: samples per optimizer step, over all processes and accumulation steps.
        micro_batch_size: samples per forward pass of one process; None = as many as there are.
        schedule: "cosine" (to zero) or "constant", after a linear warm-up of `warmup_steps`.
        optimizer: "adamw", or "adamw8bit": moments in 8 bits, a quarter of their memory; needs bitsandbytes (0.50
            does without a GPU).
        ema_decay: decay of the weight average that is saved and validated; 0 = the weights themselves.
        ema_device: where that average is: "model" = beside the weights; "cpu" = in main memory, which frees 4 bytes of
            the device for each trained parameter, and costs a transfer of them in every optimizer step.
        shard: share weights, gradients, moments and average among the processes (FSDP2), for a model whose training is
            too large for one device; else each process holds all of them (DDP). Checkpoints are the same. The main
            process needs main memory for two copies of the model, its moments and its average: they are gathered there.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
    """

    steps: int
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    ema_decay: float = 0.999
    ema_device: str = "model"
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    validate_every: int = 0
    keep_checkpoints: int = 2
    mixed_precision: str = "no"
    shard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule must be 'cosine' or 'constant', got {self.schedule!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        if self.ema_device not in ("model", "cpu"):
            raise ValueError(f"ema_device must be 'model' or 'cpu', got {self.ema_device!r}")
        if self.shard and (self.ema_device != "model" or self.optimizer != "adamw"):
            raise ValueError(
                "shard needs ema_device 'model' and optimizer 'adamw': each process has a part of them only"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")

    @property
    def half(self) -> torch.dtype | None:
        """In what is computed with `mixed_precision`; None = in float32, as without it."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.mixed_precision)

    def share(self, processes: int) -> tuple[int, int]:
        """Samples of one process per optimizer step, and per forward pass.

        Raises:
            ValueError: `batch_size` cannot be shared, or `micro_batch_size` does not divide the share.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {processes} processes")
        micro = self.micro_batch_size or share
        if share % micro:
            raise ValueError(f"micro_batch_size {micro} does not divide the {share} samples of one process")
        return share, micro

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the optimizer step with index `step` (0-based)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of one of `OPTIMIZERS`.

    Raises:
        ValueError: the package that it comes from is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"optimizer {name!r} needs the package bitsandbytes ({error}): pip install bitsandbytes, or choose 'adamw'"
        ) from error
    return AdamW8bit


@dataclass(frozen=True)
class Draw:
    """Sample number `position` of a run: which example it is, and its own random numbers."""

    position: int
    epoch: int
    index: int
    seed: int

    def generator(self) -> torch.Generator:
        """A fresh CPU generator; the same numbers every time it is asked for."""
        return torch.Generator().manual_seed(mix_seed(self.seed, self.position))


def mix_seed(*parts: int) -> int:
    """A 63-bit seed from several integers; neighbouring inputs give unrelated seeds (splitmix64)."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Sampler:
    """The order of examples: a permutation per epoch, or draws by weight when `weights` is given."""

    def __init__(self, count: int, seed: int, weights: Sequence[float] | None = None):
        if count < 1:
            raise ValueError("there is no example to train on")
        if weights is not None and len(weights) != count:
            raise ValueError(f"expected {count} weights, got {len(weights)}")
        self.count, self.seed = count, seed
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, epoch))
        if self.weights is None:
            return torch.randperm(self.count, generator=generator).tolist()
        return torch.multinomial(self.weights, self.count, replacement=True, generator=generator).tolist()

    def draws(self, step: int, batch_size: int) -> list[Draw]:
        """The samples of optimizer step `step`."""
        result = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(position, self.count)
            result.append(Draw(position, epoch, self._order(epoch)[place], self.seed))
        return result


Loss = Callable[[nn.Module, list[Draw]], dict[str, Tensor]]


class Loop:
    """Train `model` so that `loss(model, draws)["loss"]` falls.

    Args:
        config: see `LoopConfig`.
        output: folder of the run: `checkpoints/step-*`, each with the `history.json` so far, and `tensorboard/`.
        model: only parameters with `requires_grad` are trained, averaged and kept in the trainer's state.
        loss: maps draws to scalar tensors that are means over the draws; "loss" is minimised, all are logged.
        count: number of examples; weights: their relative frequencies.
        save: `save(folder, model)` writes the model (with averaged weights) in loadable form into each checkpoint.
        validate: `validate(model, step)` returns figures and PIL images to log; runs with the averaged weights.
    """

    def __init__(
        self,
        config: LoopConfig,
        output: str | Path,
        model: nn.Module,
        loss: Loss,
        count: int,
        *,
        weights: Sequence[float] | None = None,
        save: Callable[[Path, nn.Module], None] | None = None,
        validate: Callable[[nn.Module, int], dict[str, float]] | None = None,
        name: str = "training",
    ):
        self.config, self.output, self.loss, self.save, self.validate, self.name = (
            config, Path(output), loss, save, validate, name,
        )  # fmt: skip
        process_state()  # before the accelerator, which would set it up with less patience
        self.accelerator = _accelerator(config.mixed_precision)
        _check_sharing(self.accelerator.distributed_type)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.sampler = Sampler(count, config.seed, weights)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("the model has no trainable parameter")
        self.plain_model = model
        self.shared = config.shard and self.accelerator.num_processes > 1
        self.whole_model = None  # what the main process gathers a shared model into, in main memory
        if self.shared:
            if self.accelerator.is_main_process:
                self.whole_model = copy.deepcopy(model).cpu()
            shard(model, self.accelerator.device, self.accelerator.num_processes)
        else:
            model.to(self.accelerator.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer_class(config.optimizer)(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        if self.shared:
            self.model, self.optimizer = self.plain_model, self.accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = self.accelerator.prepare(self.plain_model, optimizer)
        self.ema_device = torch.device("cpu") if config.ema_device == "cpu" else self.accelerator.device
        self.ema = None
        if config.ema_decay:
            # `foreach` would bring the whole average to the device at once.
            foreach = config.ema_device == "model"
            self.ema = EMAModel(self._parameters_for_average(), decay=config.ema_decay, foreach=foreach)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.share, self.micro = config.share(self.accelerator.num_processes)

    def run(self) -> nn.Module:
        """Resume from the newest checkpoint, train to the end, and return the model with its averaged weights.

        A shared model is returned as a whole, in main memory, to the main process; to the others as their part, not
        averaged.
        """
        self._resume()
        if self.step < self.config.steps:
            self._train()
        if self.shared:
            self._gather_average()
            return self.whole_model if self.accelerator.is_main_process else self.plain_model
        if self.ema:
            self.ema.copy_to(self.parameters)
        return self.plain_model

    def _train(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        main = self.accelerator.is_main_process
        writer = SummaryWriter(self.output / "tensorboard", purge_step=self.step) if main else None
        bar = tqdm(total=self.config.steps, initial=self.step, desc=self.name, disable=not main, mininterval=5)
        self.model.train()
        values: dict[str, list[float]] = defaultdict(list)
        started, seen = time.monotonic(), 0
        while self.step < self.config.steps:
            for key, value in self._optimizer_step().items():
                values[key].append(value)
            self.step += 1
            seen += 1
            bar.update()
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                means = {key: fmean(known) for key, known in values.items()}
                means["seconds_per_step"] = (time.monotonic() - started) / seen
                self._log(writer, means)
                bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
                values, seen, started = defaultdict(list), 0, time.monotonic()
            last = self.step == self.config.steps
            if self.validate and self.config.validate_every and (self.step % self.config.validate_every == 0 or last):
                paused = time.monotonic()
                self._gather_average()
                if main:
                    self._log(writer, self._with_average(lambda model: self.validate(model, self.step)))
                self.accelerator.wait_for_everyone()
                started += time.monotonic() - paused
            if self.step % self.config.checkpoint_every == 0 or last:
                self.checkpoint()
        bar.close()
        if writer:
            writer.close()

    def _optimizer_step(self) -> dict[str, float]:
        """The means of what the loss told; of what it told for some chunks, over these."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        draws = self.sampler.draws(self.step, config.batch_size)
        mine = draws[accelerator.process_index * self.share : (accelerator.process_index + 1) * self.share]
        chunks = [mine[i : i + self.micro] for i in range(0, self.share, self.micro)]
        values: dict[str, list[float]] = defaultdict(list)
        for number, chunk in enumerate(chunks):
            # Layers with dropout draw from the global generator: tie it to the step as well.
            torch.manual_seed(mix_seed(config.seed, 2, chunk[0].position))
            sync = number == len(chunks) - 1
            # A shared model adds up its parts after every chunk: until the last one, each process would hold the whole.
            waits = nullcontext() if sync or self.shared else accelerator.no_sync(self.model)
            attention = sdpa_kernel(SDPBackend.MATH) if half_on_cpu(config) else nullcontext()
            with attention, waits:
                with accelerator.autocast():
                    losses = self.loss(self.model, chunk)
                accelerator.backward(losses["loss"] / len(chunks))
            for key, value in losses.items():
                values[key].append(value.item())
        means = {key: fmean(told) for key, told in values.items()}
        means["loss"] = self._mean_of_processes(means["loss"])
        norm = gathered(accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm))
        # With fp16, gradients may overflow now and then: the scaler skips such a step and lowers its scale.
        scaled = accelerator.scaler is not None and accelerator.scaler.get_scale() > 1
        if not math.isfinite(means["loss"]) or not (scaled or torch.isfinite(norm)):
            last = latest_checkpoint(self.output)
            raise TrainingError(
                f"{self.name}: step {self.step + 1} gave loss {means['loss']} and gradient norm {float(norm)}. "
                f"Last good checkpoint: {last.name if last else 'none'}. Lower learning_rate "
                f"(now {config.learning_rate:g}) or turn mixed_precision off, then start again to resume."
            )
        self.optimizer.step()
        # Those of several processes stay where they are exchanged, see `_accelerator`.
        self.optimizer.zero_grad(set_to_none=self.accelerator.num_processes == 1 or self.shared)
        if self.ema and not self.optimizer.step_was_skipped:
            self.ema.step(self._parameters_for_average())
        return means

    def _mean_of_processes(self, value: float) -> float:
        """All processes log the same loss and, where it is not finite, all stop: none waits for another."""
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), "mean").item()

    def _parameters_for_average(self) -> list[nn.Parameter]:
        """The trained parameters where their average is: themselves, or copies."""
        if self.config.ema_device == "model":
            return self.parameters
        return [nn.Parameter(parameter.detach().to(self.ema_device)) for parameter in self.parameters]

    def _log(self, writer, values: dict[str, float | Image.Image]) -> None:
        figures = {key: value for key, value in values.items() if not isinstance(value, Image.Image)}
        self.history.append({"step": self.step, **figures})
        if writer:
            for key, value in values.items():
                if key in figures:
                    writer.add_scalar(key, value, self.step)
                else:
                    writer.add_image(key, np.asarray(value.convert("RGB")), self.step, dataformats="HWC")

    def _gather_average(self) -> None:
        """Bring the averaged weights of a shared model into `whole_model`; all processes have to take part."""
        if self.shared:
            parts = self.ema.shadow_params if self.ema else self.parameters
            self._fill_whole(gathered(part, keep=self.accelerator.is_main_process) for part in parts)

    @torch.no_grad()
    def _fill_whole(self, weights: Iterable[Tensor | None]) -> None:
        """Copy what was gathered of the trained weights, and the buffers, into the main process's `whole_model`."""
        if not self.accelerator.is_main_process:
            for _ in weights:  # takes part in gathering them
                pass
            return
        trained = [parameter for parameter in self.whole_model.parameters() if parameter.requires_grad]
        for parameter, weight in zip(trained, weights, strict=True):
            parameter.copy_(weight)
        for buffer, current in zip(self.whole_model.buffers(), self.plain_model.buffers(), strict=True):
            buffer.copy_(current)

    def _with_average(self, function):
        """Run `function(model)` with the averaged weights in evaluation mode, then put the weights back.

        A shared model has to be gathered before, by all processes.
        """
        if self.shared:
            with torch.no_grad():
                return function(self.whole_model.eval())
        if self.ema:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        self.plain_model.eval()
        try:
            with torch.no_grad():
                return function(self.plain_model)
        finally:
            self.plain_model.train()
            if self.ema:
                self.ema.restore(self.parameters)

    def checkpoint(self) -> Path:
        """Write a checkpoint: into a hidden folder, flushed to disk, then renamed. Older ones go only after that."""
        folder = self.output / "checkpoints" / f"step-{self.step:0{_STEP_DIGITS}d}"
        state = self._state()
        if self.shared:
            self._fill_whole(state["ema"]["shadow_params"] if self.ema else state["parameters"])
        if self.accelerator.is_main_process:
            write_atomically(folder, lambda unfinished: self._write_checkpoint(unfinished, state))
            for old in sorted(folder.parent.glob("step-*"))[: -self.config.keep_checkpoints]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return folder

    def _state(self) -> dict[str, Any]:
        """What a run needs to go on, the same however the model is shared.

        All processes have to ask for it; only the main one gets the tensors of a shared model.
        """
        whole = partial(gathered, keep=self.accelerator.is_main_process)
        state = {
            "step": self.step,
            "parameters": [whole(p) for p in self.parameters],
            "optimizer": _mapped(whole, self.optimizer.state_dict()),
            "ema": _mapped(whole, self.ema.state_dict()) if self.ema else None,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def _write_checkpoint(self, folder: Path, state: dict[str, Any]) -> None:
        torch.save(state, folder / "trainer.pt")
        (folder / "history.json").write_text(json.dumps({"config": asdict(self.config), "history": self.history}))
        if self.save:
            self._with_average(lambda model: self.save(folder, model))

    def _resume(self) -> None:
        folder = latest_checkpoint(self.output)
        if folder is None:
            return
        # Left in the file until each part is copied to where it belongs: neither the device nor main memory, of which
        # every process would take as much, has to have room for a second state.
        state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
        saved = json.loads((folder / "history.json").read_text())
        shapes = [tuple(p.shape) for p in self.parameters]
        if [tuple(p.shape) for p in state["parameters"]] != shapes:
            raise TrainingError(f"{folder} was written by a model of another shape; choose another output folder")
        before, now = saved["config"], asdict(self.config)
        for name in ("optimizer", "ema_decay") if self.ema and not state["ema"] else ("optimizer",):
            if before.get(name, now[name]) != now[name]:
                raise TrainingError(
                    f"{folder} has no state for {name} {now[name]}, it was trained with {before[name]}: "
                    "set it back, or choose another output folder"
                )
        # What an example's turn depends on: with another one, some would be left out and others seen twice.
        for name in ("seed", "batch_size"):
            if before.get(name, now[name]) != now[name]:
                raise TrainingError(
                    f"{folder} was trained with {name} {before[name]}, not {now[name]}: set it back, or choose another "
                    "output folder"
                )
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(part_like(value, parameter.data))
        for number, moments in state["optimizer"]["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor):
                    moments[name] = self._out_of_file(value, self.parameters[number].data)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema:
            # Not by `load_state_dict`, which makes two copies of it.
            for average, value in zip(self.ema.shadow_params, state["ema"].pop("shadow_params"), strict=True):
                average.copy_(part_like(value, average))
            self.ema.load_state_dict(state["ema"])
        self.step, self.history = state["step"], saved["history"]
        logger.info("%s: resumed at step %d of %d from %s", self.name, self.step, self.config.steps, folder)

    def _out_of_file(self, value: Tensor, parameter: Tensor) -> Tensor:
        """A tensor of a parameter's optimizer, which would stay in the checkpoint's file where nobody copies it."""
        if value.shape != parameter.shape:  # how many steps were done, for one: it stays in main memory
            return value.clone()
        part = part_like(value, parameter)
        return part.clone() if parameter.device.type == "cpu" else part  # the optimizer copies it to the device


def _check_sharing(kind: DistributedType) -> None:
    """Refuse ways of sharing a model that are not ours.

    Raises:
        ValueError: accelerate's FSDP, DeepSpeed or Megatron.
    """
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"how the processes share a model is said by `shard` of the training's configuration, that of accelerate "
            f"says {kind.value}; launch with `accelerate launch --multi_gpu`, without FSDP, DeepSpeed and Megatron"
        )


def latest_checkpoint(output: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = sorted((Path(output) / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A nested state with `function` of each of its tensors."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: _mapped(function, value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_mapped(function, value) for value in state)
    return state
