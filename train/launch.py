"""What every launcher shares: logging, threads, the phase arguments, and an exit code that tells the truth."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from diffv2ir.data import DataError, check_examples, read_examples, split_validation
from diffv2ir.training.config import load_config
from diffv2ir.training.dry_run import dry_run
from diffv2ir.training.loop import TrainingError, process_state
from diffv2ir.training.phases import PhaseConfig, train_phase
from diffv2ir.training.validation import validate_bundle

T = TypeVar("T")


def run(function: Callable[[], T], threads: int | None = None) -> T:
    """Run a training, print and return what it returns.

    What the user can mend is one clear line and exit code 1, anything else a traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    if threads:
        torch.set_num_threads(threads)
    try:
        result = function()
    except (DataError, TrainingError, ValueError, OSError) as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        sys.exit(f"error: {error}")
    if process_state().is_main_process:
        print(result)
    return result


def run_phase(phase: str, default_config: str, description: str) -> None:
    """The command line of one phase."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder: manifest.jsonl, or rgb/ ir/ [seg/]")
    parser.add_argument("--start", type=Path, required=True, help="folder in the diffusers layout to start from")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; start again to resume")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / default_config)
    parser.add_argument("--vlum", type=Path, help="folder with captioner and segmenter, where --start has none")
    parser.add_argument("--cache", type=Path, help="captions, maps and latents; default: OUTPUT/cache")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run takes and what is missing; no training"
    )
    arguments = parser.parse_args()

    def read_config() -> PhaseConfig:
        config = load_config(arguments.config, PhaseConfig)
        if config.phase != phase:
            raise ValueError(f"{arguments.config} is a configuration of phase {config.phase}, not of phase {phase}")
        return config

    def train() -> Path:
        config = read_config()
        examples = [example for example in read_examples(arguments.data, split="train") if config.fits(example)]
        check_examples(examples)
        training, validation = split_validation(examples, config.validation_fraction)
        return train_phase(
            config,
            training,
            arguments.start,
            arguments.output,
            cache=arguments.cache or arguments.output / "cache",
            validation=validation,
            vlum=arguments.vlum,
            validate=validate_bundle,
        )

    if arguments.dry_run:
        report = run(lambda: dry_run(read_config(), arguments.data, arguments.start, arguments.vlum))
        sys.exit(1 if report.missing else 0)
    run(train, arguments.threads)
