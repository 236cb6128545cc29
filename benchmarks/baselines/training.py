"""The training that all learnt baselines share: a budget of steps or of minutes, checkpoints, and an exact resume.

Sample number n of a run has the same example, crop, flip and dropout in every run of a seed, as in `diffv2ir.training`.
A run that was stopped goes on from its checkpoint with the same weights, optimizer state and position. With a budget of
steps it therefore ends with the same weights as one that was never stopped; with a budget of minutes, which count
training alone, the learning rate follows the clock.
"""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.baselines.pairs import TrainingView, load_view
from diffv2ir.data import Example
from diffv2ir.files import write_atomically
from diffv2ir.training.cache import file_hash
from diffv2ir.training.learnt import digest
from diffv2ir.training.loop import Sampler, TrainingError, mix_seed

logger = logging.getLogger(__name__)

_WEIGHTS, _RECORD = "weights.pt", "training.json"


@dataclass(frozen=True)
class Budget:
    """How long a training lasts: optimizer steps, or minutes of training time; exactly one of them."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"a budget is either steps or minutes, got steps={self.steps} and minutes={self.minutes}")
        name, value = ("steps", self.steps) if self.minutes is None else ("minutes", self.minutes)
        if value <= 0:
            raise ValueError(f"{name} must be more than 0, got {value}")

    def progress(self, step: int, seconds: float) -> float:
        """The part of the budget that is used up, 0..1."""
        used = step / self.steps if self.steps is not None else seconds / (60 * self.minutes)
        return min(1.0, used)


@dataclass(frozen=True)
class TrainingConfig:
    """`seed` of everything random; seconds of training between two checkpoints."""

    budget: Budget
    view: TrainingView = TrainingView()
    seed: int = 0
    checkpoint_seconds: float = 300
    log_every: int = 20


class Learner(ABC):
    """A method with networks that a batch improves.

    Attributes:
        name: of the method. options: what makes its networks, for JSON. batch_size: images of a step.
        trained: everything whose `state_dict` a resume needs, by name.
    """

    name: str
    options: dict[str, Any]
    batch_size: int
    trained: dict[str, Any]

    @abstractmethod
    def step(self, visible: Tensor, infrared: Tensor, progress: float) -> dict[str, float]:
        """One optimizer step on [B, 3, H, W] and [B, 1, H, W] in [-1, 1]; the losses, "loss" among them."""

    @abstractmethod
    def weights(self) -> nn.Module:
        """The network that translates, with the weights that are kept."""


def train(
    learner: Learner,
    examples: Sequence[Example],
    output: Path,
    config: TrainingConfig,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train until the budget is used up; returns `output/result`. Resumes; a finished training returns at once.

    Raises:
        TrainingError: a loss is not finite, or `output` holds a run of other settings or examples.
    """
    result, checkpoint = output / "result", output / "checkpoint"
    run = _Run(learner, examples, config, torch.device(device), clock)
    for folder in (result, checkpoint):
        run.check(folder)
    if result.is_dir():
        logger.info("%s: already finished in %s", learner.name, result)
        return result
    if checkpoint.is_dir():
        run.load(checkpoint)
    run.go(lambda: write_atomically(checkpoint, run.save))
    write_atomically(result, run.save_result)
    return result


def check_finished(folder: Path, examples: Sequence[Example], minutes: float | None = None) -> None:
    """Refuse a finished training on other pairs than `examples`, or with another budget than `minutes`; None = any.

    Raises:
        TrainingError: it is of other pairs or minutes, or nothing was finished there.
    """
    settings = finished(folder)["settings"]
    if not _same_examples(settings, _examples_settings(examples)):
        raise TrainingError(
            f"{folder} was trained on other pairs than those of the dataset; choose another folder, or the same dataset"
        )
    budget = settings["budget"]
    if minutes is not None and budget["minutes"] != minutes:
        trained = f"{budget['steps']} steps" if budget["minutes"] is None else f"{budget['minutes']:g} minutes"
        raise TrainingError(f"{folder} was trained for {trained}, not for {minutes:g} minutes; choose another folder")


def training_record(folder: Path) -> dict[str, float]:
    """What a finished training took: steps, images of a step, seconds, and how many pairs there were."""
    record = finished(folder)
    took = {"steps": record["step"], "batch_size": record["batch_size"], "seconds": record["seconds"]}
    return took | {"pairs": len(record["settings"]["examples"])}


def finished(folder: Path) -> dict[str, Any]:
    """The record of a finished training: `method`, `options`, `step`, `seconds`, `settings`, `history`.

    Raises:
        TrainingError: nothing was finished there.
    """
    path = folder / "result" / _RECORD
    if not path.is_file():
        raise TrainingError(f"{folder} holds no finished training: there is no {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def load_weights(folder: Path, network: nn.Module) -> nn.Module:
    """Put the weights of a finished training into `network`."""
    state = torch.load(folder / "result" / _WEIGHTS, map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network


class _Run:
    """A training under way: its position, and the time that it took so far."""

    def __init__(
        self,
        learner: Learner,
        examples: Sequence[Example],
        config: TrainingConfig,
        device: torch.device,
        clock: Callable[[], float],
    ) -> None:
        self.learner, self.examples, self.config = learner, examples, config
        self.device, self.clock = device, clock
        self.sampler = Sampler(len(examples), config.seed)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.settings = {"seed": config.seed, "budget": asdict(config.budget), "view": asdict(config.view)}
        self.settings |= _examples_settings(examples)

    def go(self, checkpoint: Callable[[], None]) -> None:
        budget, name = self.config.budget, self.learner.name
        bar = tqdm(total=100, desc=name, unit="%", mininterval=5, bar_format="{l_bar}{bar}| {postfix}")
        started, saved, sums, seen = self.clock(), self.seconds, {}, 0
        while (progress := budget.progress(self.step, self.seconds)) < 1:
            losses = self._one_step(progress)
            self.step += 1
            seen += 1
            sums = {key: sums.get(key, 0.0) + value for key, value in losses.items()}
            self.seconds, started = self.seconds + self.clock() - started, self.clock()
            if self.step % self.config.log_every == 0:
                means = {key: value / seen for key, value in sums.items()}
                self.history.append({"step": self.step, "seconds": round(self.seconds, 1), **means})
                bar.set_postfix_str(", ".join(f"{key} {value:.4g}" for key, value in self.history[-1].items()), False)
                sums, seen = {}, 0
            bar.update(100 * progress - bar.n)
            if self.seconds - saved >= self.config.checkpoint_seconds:
                checkpoint()
                saved, started = self.seconds, self.clock()  # writing is not training
        bar.close()

    def _one_step(self, progress: float) -> dict[str, float]:
        draws = self.sampler.draws(self.step, self.learner.batch_size)
        torch.manual_seed(mix_seed(self.config.seed, 2, draws[0].position))  # for dropout
        views = [load_view(self.examples[draw.index], self.config.view, draw.generator()) for draw in draws]
        visible, infrared = (torch.stack(images).to(self.device) for images in zip(*views, strict=True))
        losses = self.learner.step(visible, infrared, progress)
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingError(f"{self.learner.name}: step {self.step + 1} gave {losses}; start again to resume")
        return losses

    def _record(self) -> dict[str, Any]:
        learner = self.learner
        return {
            "method": learner.name, "options": learner.options, "step": self.step, "batch_size": learner.batch_size,
            "seconds": self.seconds, "settings": self.settings, "history": self.history,
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self.learner.trained.items()}, folder / _WEIGHTS)
        (folder / _RECORD).write_text(json.dumps(self._record()), encoding="utf-8")

    def save_result(self, folder: Path) -> None:
        torch.save(self.learner.weights().state_dict(), folder / _WEIGHTS)
        (folder / _RECORD).write_text(json.dumps(self._record()), encoding="utf-8")

    def check(self, folder: Path) -> None:
        """Refuse to go on with a run of something else."""
        if not folder.is_dir():
            return
        found, mine = (json.loads(text) for text in ((folder / _RECORD).read_text(), json.dumps(self._record())))
        if _same_examples(found["settings"], mine["settings"]):  # what an older record does not say is no difference
            found["settings"] |= {name: mine["settings"][name] for name in ("examples", "pictures")}
        for key in ("method", "options", "batch_size", "settings"):
            if found[key] != mine[key]:
                raise TrainingError(
                    f"{folder} was trained with other {key} ({_difference(found[key], mine[key])}); "
                    "choose another folder, or the same settings"
                )

    def load(self, folder: Path) -> None:
        state = torch.load(folder / _WEIGHTS, map_location=self.device, weights_only=True)
        for name, part in self.learner.trained.items():
            part.load_state_dict(state[name])
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        self.step, self.seconds, self.history = record["step"], record["seconds"], record["history"]
        logger.info("%s: resumed at step %d after %.0f s of training", self.learner.name, self.step, self.seconds)


def _examples_settings(examples: Sequence[Example]) -> dict[str, Any]:
    """What is learnt from: names, and a hash of the pictures in their order."""
    hashes = [file_hash(file) for example in examples for file in (example.visible, example.infrared)]
    return {"examples": [example.id for example in examples], "pictures": digest(hashes)}


def _same_examples(found: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether two settings are of the same examples, by their names alone where a record has no more."""
    return found["examples"] == mine["examples"] and found.get("pictures") in (None, mine["pictures"])


def _difference(found: Any, mine: Any) -> str:
    if not isinstance(found, dict):
        return f"{found!r}, not {mine!r}"
    names = [name for name in {**found, **mine} if found.get(name) != mine.get(name)]
    short = [name for name in names if name not in ("examples", "pictures")]
    return ", ".join([f"{name} {found.get(name)!r}, not {mine.get(name)!r}" for name in short] or ["other examples"])
