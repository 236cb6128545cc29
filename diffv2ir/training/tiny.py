"""The whole chain that makes the tiny bundle, stage by stage; each stage resumes, and a finished one is skipped."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import DDPMScheduler

from diffv2ir.data import DataError, Example, check_examples, read_examples, split_validation
from diffv2ir.efficientnet import loss_network
from diffv2ir.files import write_atomically
from diffv2ir.training.autoencoder import AutoencoderConfig, train_autoencoder
from diffv2ir.training.captioner import CaptionerConfig, train_captioner, unseen_captions
from diffv2ir.training.config import load_config
from diffv2ir.training.pack import pack_bundle
from diffv2ir.training.phases import PhaseConfig, link_tree, train_phase
from diffv2ir.training.segmenter import SegmenterConfig, train_segmenter
from diffv2ir.training.teacher import TeacherConfig, load_network, train_teacher
from diffv2ir.training.text import TextConfig, train_text
from diffv2ir.training.validation import validate_bundle

logger = logging.getLogger(__name__)

STYLES = ("flir", "campus", "nir")
# The stage whose weights are the bundle's.
GENERAL = "phase2-picture"
# Which phase each phase of the chain starts from.
FOLLOWS = {
    "phase1": "base",
    "phase2": "phase1",
    GENERAL: "phase2",
    **{f"phase3-{style}": GENERAL for style in STYLES},
}

# Chosen on the validation part of train.
DEFAULTS = dict(
    steps=1,
    sampler="dpmpp_2m",
    resolution=128,
    visible_scale=1.0,
    segmentation_scale=1.0,
    text_scale=1.0,
    edge_radius=12.0,
    gain_control=0.05,
)

# Hour and light in the words of its captions, which are all that its text encoder knows of them.
PHRASES = ("in daylight", "at dusk", "at night")

# Zero terminal SNR: the first step of sampling starts from pure noise, as it does in training, so the overall
# brightness of the picture is free. v-prediction is defined there, epsilon-prediction is not.
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
)


@dataclass(frozen=True)
class Stage:
    """One step of the chain. `minutes` is what it took on two cores; only the estimate of the rest uses it."""

    name: str
    minutes: float
    run: Callable[[], Path]


def train_tiny(data: Path, output: Path, configs: Path, hold_phases: bool = False) -> Path:
    """Train every component on `data` (a dataset folder) and pack the bundle into `output/bundle`.

    A style whose camera is not in the data is left out.

    Args:
        configs: folder with one YAML file a stage (`train/configs/tiny`).
        hold_phases: pack base and phase 1 too, so that the page can show a photo through all phases.

    Raises:
        DataError: before anything is trained, naming the files, or the stage that has nothing to learn from.
        TrainingError: before anything is trained, if ImageNet weights are not installed.
    """
    load_network()
    load_network(loss_network)
    everything = read_examples(data, split="train")
    logger.info("checking %d examples", len(everything))
    check_examples(everything)
    train, validation = split_validation(everything)
    if not any(example.visible and example.caption for example in train):
        raise DataError(f"{data} has no captions: text encoder and captioner cannot learn from it")
    styles = _styles(train, data, configs)
    stages = _stages(train, validation, output, configs, styles, hold_phases)
    total, spent, expected = sum(stage.minutes for stage in stages), 0.0, 0.0
    for number, stage in enumerate(stages, start=1):
        pace = max(0.2, min(5.0, spent / expected)) if expected > 5 else 1.0
        logger.info(
            "stage %d of %d: %s (about %.0f min; about %.0f min left in all)",
            number, len(stages), stage.name, stage.minutes * pace, total * pace,
        )  # fmt: skip
        started = time.monotonic()
        stage.run()
        took = (time.monotonic() - started) / 60
        total -= stage.minutes
        if took > 0.5:  # a stage that was finished before says nothing about the machine
            spent, expected = spent + took, expected + stage.minutes
    logger.info("finished: %s", output / "bundle")
    return output / "bundle"


def _styles(train: list[Example], data: Path, configs: Path) -> list[str]:
    """Those of `STYLES` that there are examples for.

    Raises:
        DataError: another phase has none.
    """
    needs = {name: load_config(configs / f"{name}.yaml", PhaseConfig) for name in ("base", "phase1", "phase2", GENERAL)}
    for name, config in needs.items():
        if not any(map(config.fits, train)):
            raise DataError(f"{data}: {name} has no example of kinds {config.kinds} and sources {config.sources}")
    styles = []
    for style in STYLES:
        config = load_config(configs / f"phase3-{style}.yaml", PhaseConfig)
        if any(map(config.fits, train)):
            styles.append(style)
        else:
            logger.info("no style %s: there is no example of sources %s", style, config.sources)
    return styles


def _stages(
    train: list[Example],
    validation: list[Example],
    output: Path,
    configs: Path,
    styles: Sequence[str],
    hold_phases: bool,
) -> list[Stage]:
    parts, vlum, cache = output / "parts", output / "vlum", output / "cache"

    def component(kind, function, name: str) -> Callable[[], Path]:
        return lambda: function(train, output / name, load_config(configs / f"{name}.yaml", kind))

    def phase(name: str, **options) -> Callable[[], Path]:
        start = output / FOLLOWS[name] / "result" if name in FOLLOWS else parts
        return lambda: train_phase(
            load_config(configs / f"{name}.yaml", PhaseConfig), train, start, output / name,
            cache=cache, validation=validation, teacher=output / "teacher", validate=validate_bundle,
            unseen_captions=unseen_captions(output / "captioner"), **options,
        )  # fmt: skip

    return [
        Stage("segmenter", 15, component(SegmenterConfig, train_segmenter, "segmenter")),
        Stage("tokenizer and text encoder", 2, component(TextConfig, train_text, "text")),
        Stage("captioner", 30, component(CaptionerConfig, train_captioner, "captioner")),
        Stage("autoencoder", 5, component(AutoencoderConfig, train_autoencoder, "autoencoder")),
        Stage("teacher", 42, component(TeacherConfig, train_teacher, "teacher")),
        Stage("assembly", 0.1, lambda: assemble(output, parts, vlum)),
        Stage("text-to-image base", 3, phase("base", vlum=vlum)),
        Stage("phase 1, infrared prior", 2, phase("phase1")),
        Stage("phase 2", 155, phase("phase2", vlum=vlum)),
        Stage("phase 2, the picture itself", 20, phase(GENERAL)),
        *[Stage(f"phase 3, {style}", 5, phase(f"phase3-{style}")) for style in styles],
        Stage("packing", 0.2, lambda: pack(output / GENERAL / "result", output, hold_phases, styles)),
    ]


def pack(general: Path, output: Path, hold_phases: bool = False, styles: Sequence[str] = STYLES) -> Path:
    """The bundle that is committed: `general` with its styles, and its defaults."""
    trained = {style: output / f"phase3-{style}" / "result" for style in styles}
    early = (output / "base" / "result", output / "phase1" / "result") if hold_phases else None
    return pack_bundle(general, trained, output / "bundle", "tiny", DEFAULTS, early, PHRASES)


def assemble(output: Path, parts: Path, vlum: Path) -> Path:
    """Put the trained components into two folders: what the base starts from, and the understanding models."""
    if parts.is_dir():
        return parts

    def write_vlum(folder: Path) -> None:
        for name in ("captioner", "captioner_processor"):
            link_tree(output / "captioner" / name, folder / name)
        link_tree(output / "segmenter" / "segmenter", folder / "segmenter")

    def write_parts(folder: Path) -> None:
        link_tree(output / "autoencoder" / "vae", folder / "vae")
        for name in ("text_encoder", "tokenizer"):
            link_tree(output / "text" / name, folder / name)
        DDPMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "vae": ["diffusers", "AutoencoderTiny"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))

    shutil.rmtree(vlum, ignore_errors=True)
    write_atomically(vlum, write_vlum)
    write_atomically(parts, write_parts)
    return parts
