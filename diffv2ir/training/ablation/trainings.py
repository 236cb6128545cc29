"""Trainings of an ablation: each is run once, in a folder named by everything it depends on, and resumes there."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from diffv2ir.data import Example
from diffv2ir.training.ablation.cells import model_hash
from diffv2ir.training.cache import file_hash
from diffv2ir.training.config import from_mapping
from diffv2ir.training.learnt import digest, examples_hash, recorded_examples
from diffv2ir.training.phases import PhaseConfig, check_teacher, train_phase
from diffv2ir.training.teacher import teacher_hash
from diffv2ir.training.tiny import FOLLOWS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainings:
    """What all trainings of an ablation share.

    Attributes:
        folder: of the trainings.
        cache: captions, maps and latents.
        vlum: folder with captioner, captioner_processor and segmenter, for starts that have none.
        teacher: output folder of `train_teacher`, for configurations that are `taught`.
        unseen_captions: file of `train_captioner`, for configurations with `own_captions`.
        finished: a run of `train.tiny` whose results are taken where they are the same training; None = there is none.
    """

    folder: Path
    cache: Path
    vlum: Path
    finished: Path | None = None
    teacher: Path | None = None
    unseen_captions: Path | None = None

    def result(self, name: str, config: PhaseConfig, examples: Sequence[Example], start: Path) -> Path:
        """The result folder of training `config` from `start`; trained now if it is not there.

        Raises:
            DataError, TrainingError, ValueError: see `train_phase`.
        """
        chosen = [example for example in examples if config.fits(example)]
        if (known := self._finished(name, config, chosen, start)) is not None:
            logger.info("%s: taken from %s", name, known)
            return known
        parts = [asdict(config), model_hash(start), model_hash(self.vlum), examples_hash(chosen)]
        check_teacher(config, self.teacher, chosen)
        if config.taught:
            parts.append(teacher_hash(self.teacher))
        unseen = self.unseen_captions if config.own_captions else None
        if unseen:
            parts.append(file_hash(unseen))
        return train_phase(
            config, examples, start, self.folder / f"{name}-{digest(parts)}",
            cache=self.cache, vlum=self.vlum, teacher=self.teacher, unseen_captions=unseen,
        )  # fmt: skip

    def _finished(self, name: str, config: PhaseConfig, examples: Sequence[Example], start: Path) -> Path | None:
        """The finished run's result of this name, if configuration, examples and start are the same."""
        if self.finished is None or name not in FOLLOWS:
            return None
        if start.resolve() != (self.finished / FOLLOWS[name] / "result").resolve():
            return None
        stage = self.finished / name
        history = stage / "history.json"
        if not history.is_file() or not (stage / "result" / "model_index.json").is_file():
            return None
        stored = json.loads(history.read_text(encoding="utf-8"))["config"]
        # Another version may have had more settings. One that was not in use changes nothing.
        names = {field.name for field in fields(PhaseConfig)}
        known = {name: value for name, value in stored.items() if name in names or value is not None}
        if not known.keys() <= names:
            return None
        if from_mapping(known, PhaseConfig) != config:
            return None
        recorded = recorded_examples(stage)
        if recorded != examples_hash(examples):
            why = "does not say what it learnt from" if recorded is None else "learnt from other examples"
            logger.warning("%s: %s %s; it is trained anew", name, stage, why)
            return None
        return stage / "result"


def shrunk(config: PhaseConfig, factor: float) -> PhaseConfig:
    """The phase with `factor` times the steps, the warm-up and the views, which are then seen as often as before.

    Raises:
        ValueError: the factor is not positive.
    """
    if factor <= 0:
        raise ValueError(f"steps-factor must be greater than 0, got {factor}")
    steps, warmup = (max(1, round(number * factor)) for number in (config.loop.steps, config.loop.warmup_steps))
    view = replace(config.view, variants=max(1, round(config.view.variants * min(1.0, factor))))
    return replace(config, loop=replace(config.loop, steps=steps, warmup_steps=warmup), view=view)
