"""Table 3 of the paper: all combinations of the training phases, with map and caption on and off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from diffv2ir.data import Example
from diffv2ir.evaluate import OVERALL, example_seed
from diffv2ir.phases import draw_phases
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.scores import View
from diffv2ir.settings import GENERAL_STYLE, GenerationSettings
from diffv2ir.training.ablation import report
from diffv2ir.training.ablation.cells import Cells, device_name, model_hash
from diffv2ir.training.ablation.scoring import Draw, Photos, generating, load_pipe, score_cell, warm_up
from diffv2ir.training.ablation.trainings import Trainings
from diffv2ir.training.learnt import digest, examples_hash
from diffv2ir.training.loop import process_state
from diffv2ir.training.pack import pack_bundle
from diffv2ir.training.phases import PhaseConfig

NAME = "table3"
SWITCHED = ((), ("map",), ("caption",), ("map", "caption"))

# What a model is trained with that never sees a condition.
_NEVER = {
    "map": lambda config: replace(config, without_map=True),
    "caption": lambda config: config.with_fixed_prompt(""),
}


@dataclass(frozen=True)
class Recipe:
    """The phases that are combined.

    Attributes:
        base: the text-to-image folder; phase1: configuration of phase 1.
        phase2: name -> configuration; phase 2 may come in several stages, each from the one before.
        phase3: name and configuration of the target style.
    """

    base: Path
    phase1: PhaseConfig
    phase2: dict[str, PhaseConfig]
    phase3: tuple[str, PhaseConfig]

    @property
    def settings(self) -> GenerationSettings:
        """What pictures are made with, the same for every row: the defaults of phase 2."""
        return GenerationSettings.from_dict(list(self.phase2.values())[-1].defaults)

    @property
    def alone(self) -> PhaseConfig:
        """Phase 3 without a phase 2: the UNet is widened, and all weights learn from the target pairs.

        An adapter would leave the new input channels at zero, and the photo unseen.
        """
        last = list(self.phase2.values())[-1]
        return replace(self.phase3[1], phase="2", style=None, lora=None, defaults=last.defaults)


@dataclass(frozen=True)
class Variant:
    """One training to score.

    Attributes:
        phases: whether phase 1, 2 and 3 were trained.
        style: of the bundle. never: the conditions that were null in training.
        repaints: "base" or "phase 1" where there is only a text-to-image model, which repaints the photo
            (`diffv2ir.phases`); `bundle` holds it.
    """

    phases: tuple[bool, bool, bool]
    bundle: Path
    style: str = GENERAL_STYLE
    never: tuple[str, ...] = ()
    repaints: str | None = None

    @property
    def switches(self) -> tuple[tuple[str, ...], ...]:
        """What is switched off, cell by cell. Repainting has no map, and its prompt is not a condition of Eq. 2."""
        if self.repaints:
            return ((),)
        return (self.never,) if self.never else SWITCHED


@dataclass
class PhaseTable:
    """The table in the making.

    Attributes:
        examples: to train on; pairs: of the target style, to score on.
        trained: also train the full chain without map, without caption, and without both.
        views: see `scores.score`.
    """

    recipe: Recipe
    trainings: Trainings
    examples: Sequence[Example]
    pairs: Sequence[Example]
    settings: GenerationSettings
    output: Path
    title: str
    trained: bool = False
    views: Sequence[View] | None = None
    cells: Cells = field(init=False)

    def __post_init__(self) -> None:
        self.cells = Cells(self.output / "cells", self.views)
        self._load = lru_cache(maxsize=1)(load_pipe)  # the rows of one model come one after the other

    def make(self) -> Path:
        """Train what is missing, score what is not scored, write table and plot; returns the table."""
        starts = {False: self.recipe.base, True: self._train("phase1", self.recipe.phase1, self.recipe.base)}
        variants = [self._variant(starts, phases) for phases in product((False, True), repeat=3) if any(phases[1:])]
        if self.trained:
            variants += [self._variant(starts, (True, True, True), never) for never in SWITCHED[1:]]
        if not process_state().is_main_process:
            return self.output
        general = next(variant.bundle for variant in variants if variant.phases == (True, True, False))
        held = self._hold(starts, general)
        variants = [
            Variant((False, False, False), held, repaints="base"),
            Variant((True, False, False), held, repaints="phase 1"),
            *variants,
        ]
        variants.sort(key=lambda variant: (*variant.phases[1:], variant.phases[0], len(variant.never)))
        photos = Photos(load_pipe(general), self.pairs, self.settings, self.views)
        results = [
            (variant, without, self._score(variant, without, photos))
            for variant in variants
            for without in variant.switches
        ]
        full = next(result for variant, without, result in results if _is_full(variant, without))
        self._write([_row(*one, full) for one in results], photos)
        return self.output / f"{NAME}.md"

    def _train(self, name: str, config: PhaseConfig, start: Path) -> Path:
        return self.trainings.result(name, config, self.examples, start)

    def _variant(
        self, starts: dict[bool, Path], phases: tuple[bool, bool, bool], never: tuple[str, ...] = ()
    ) -> Variant:
        """Train one combination; stages that others have too are found."""

        def without(config: PhaseConfig) -> PhaseConfig:
            for condition in never:
                config = _NEVER[condition](config)
            return config

        folder, (name, config) = starts[phases[0]], self.recipe.phase3
        if phases[1]:
            for stage, own in self.recipe.phase2.items():
                folder = self._train(stage, without(own), folder)
            if phases[2]:
                folder = self._train(name, without(config), folder)
            style = config.style if phases[2] and config.lora else GENERAL_STYLE
            return Variant(phases, folder, style, never)
        return Variant(phases, self._train(f"{name}-alone", self.recipe.alone, folder))

    def _hold(self, starts: dict[bool, Path], general: Path) -> Path:
        """A bundle that holds base and phase 1 too."""
        key = digest([model_hash(folder) for folder in (starts[False], starts[True], general)])
        folder = self.trainings.folder / f"held-{key}"
        if not folder.is_dir():
            pack_bundle(general, {}, folder, "held", {}, (starts[False], starts[True]))
        return folder

    def _score(self, variant: Variant, without: tuple[str, ...], photos: Photos) -> dict[str, Any]:
        key = {
            "table": NAME,
            "repaints": variant.repaints,
            "bundle": model_hash(variant.bundle),
            "without": without,
            "settings": self.settings.replace(style=variant.style).to_dict(),
            "pairs": examples_hash(self.pairs),
            "device": device_name(photos.pipe.compute_device),
        }
        return self.cells.get(key, lambda: self._measure(variant, without, photos))

    def _measure(self, variant: Variant, without: tuple[str, ...], photos: Photos) -> dict[str, Any]:
        pipe, settings = self._load(variant.bundle), self.settings.replace(style=variant.style)
        draw = (
            _repainting(pipe, settings, variant.repaints) if variant.repaints else generating(pipe, settings, without)
        )
        warm_up(photos, draw)
        return score_cell(photos, settings, draw)

    def _write(self, rows: list[report.Row], photos: Photos) -> None:
        text = [
            f"{self.title} 95 % bootstrap intervals over the photos. `Less full row`: the mean, over the photos, of "
            "PSNR less that which all phases with map and caption have on the same photo; the two differ where the "
            "interval is without 0.",
            "`off`: trained with the condition, which is switched off for the picture. `never`: trained without it. "
            "Without phase 2 and 3 there is a text-to-image model, which repaints the photo (SDEdit). Phase 3 without "
            "phase 2 widens the UNet and trains all its weights on the target pairs, for as long as phase 3 takes.",
            report.COST_NOTE.format(device=device_name(photos.pipe.compute_device)),
        ]
        measures = ["psnr", "psnr_difference", *report.measures_of(rows)[1:]]
        columns = ["phase 1", "phase 2", "phase 3", "map", "caption", *measures, *report.COSTS]
        report.plot_rows(self.output / f"{NAME}.png", rows, [_label(row) for row in rows])
        report.write_table(self.output, NAME, rows, columns, text, [f"{NAME}.png"])


def _repainting(pipe: DiffV2IRPipeline, settings: GenerationSettings, name: str) -> Draw:
    """Draws the picture of phase `name`, "base" or "phase 1"."""

    def draw(example: Example, conditioning: Conditioning) -> tuple[Image.Image, int]:
        own, steps = settings.replace(seed=example_seed(example, settings.seed)), []
        (picture,) = draw_phases(pipe, conditioning, own, lambda *step: steps.append(step), only=name)
        return picture.image, 2 * len(steps)  # with the text and without it

    return draw


def _is_full(variant: Variant, without: tuple[str, ...]) -> bool:
    """All phases, and nothing switched off or never seen."""
    return all(variant.phases) and not without and not variant.never


def _row(variant: Variant, without: tuple[str, ...], result: dict[str, Any], full: dict[str, Any]) -> report.Row:
    trained = {f"phase {number}": "yes" if on else "no" for number, on in enumerate(variant.phases, start=1)}
    off = "never" if variant.never else "off"
    switches = {name: None if variant.repaints else off if name in without else "on" for name in _NEVER}
    # Repainting loads its model for every photo: that time says nothing.
    costs = {name: None if variant.repaints and name != "evaluations" else result[name] for name in report.COSTS}
    less = {} if _is_full(variant, without) else report.difference_fields(result["images"], full["images"])
    return {**trained, **switches, **costs, **report.score_fields(result["methods"]["model"][OVERALL]), **less}


def _label(row: report.Row) -> str:
    phases = "+".join(str(number) for number in (1, 2, 3) if row[f"phase {number}"] == "yes") or "base"
    return ", ".join([phases, *(f"{name} {row[name]}" for name in _NEVER if row[name] not in (None, "on"))])
