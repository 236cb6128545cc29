"""What every launcher shares: logging, threads, the phase arguments, and an exit code that tells the truth."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from diffv2ir.data import DataError, Example, read_parts
from diffv2ir.training.config import load_config
from diffv2ir.training.dry_run import DryRun, dry_run
from diffv2ir.training.learnt import check_once
from diffv2ir.training.loop import TrainingError, optimizer_class, process_state
from diffv2ir.training.phases import PhaseConfig, check_start, check_teacher, finished_result, train_phase
from diffv2ir.training.publish import check_target, publish, write_card
from diffv2ir.training.starts import START, VLUM, check_parts, locate_start, locate_vlum
from diffv2ir.training.validation import validate_bundle

T = TypeVar("T")

NEEDED = ("data", "start", "output")


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


def phase_parser(default_config: Path, description: str) -> argparse.ArgumentParser:
    """The arguments of a phase. A training needs `NEEDED`; a dry run says that they are missing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="dataset folder: manifest.jsonl, or rgb/ ir/ [seg/]")
    parser.add_argument(
        "--start",
        help="folder in the diffusers layout, tiny, or sd15, stage2, m3fd, flir or a hub id, each with @REVISION if "
        "wished",
    )
    parser.add_argument("--output", type=Path, help="folder of the run; start again to resume")
    parser.add_argument("--config", type=Path, default=default_config)
    parser.add_argument(
        "--vlum",
        help="folder, tiny, or hub id[@REVISION], with captioner and segmenter; default: those of --start, or blip+sam "
        "(as published, fetched if they are not here) where it has none",
    )
    parser.add_argument("--teacher", type=Path, help="for fresh views: output of train.teacher")
    parser.add_argument("--unseen-captions", type=Path, help="for own_captions: captions.json of a captioner's run")
    parser.add_argument("--cache", type=Path, help="captions, maps and latents; default: OUTPUT/cache")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="put the result, with a card, on the hub")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run takes and what is missing; no training"
    )
    return parser


def run_phase(phase: str, default_config: str, description: str) -> None:
    """The command line of one phase."""
    parser = phase_parser(Path(__file__).parent / "configs" / default_config, description)
    arguments = parser.parse_args()
    absent = [f"--{name}" for name in NEEDED if getattr(arguments, name) is None]
    if absent and not arguments.dry_run:
        parser.error(f"a training needs {', '.join(absent)}")

    def read_config() -> PhaseConfig:
        config = load_config(arguments.config, PhaseConfig)
        if config.phase != phase:
            raise ValueError(f"{arguments.config} is a configuration of phase {config.phase}, not of phase {phase}")
        return config

    def train() -> Path | str:
        config, target = read_config(), arguments.push_to_hub
        if target and process_state().is_main_process:
            check_target(target)
        parts = read_parts(arguments.data, config.validation_fraction, config.fits)
        result = finished_result(config, arguments.output) or _train(config, arguments, *parts)
        if target and process_state().is_main_process:
            history = arguments.output / "history.json"
            write_card(result, history, target, arguments.start, parts[0])
            steps = json.loads(history.read_text())["config"]["loop"]["steps"]
            return publish(result, target, f"Phase {phase}, {steps} steps")
        return result

    def plan() -> DryRun:
        given = vars(arguments)
        places = {name: given[name] for name in ("start", "vlum", "teacher", "output", "cache")}
        report = dry_run(read_config(), arguments.data, **places)
        return report if arguments.output else replace(report, missing=(*report.missing, "--output is not given"))

    if arguments.dry_run:
        report = run(plan)
        sys.exit(1 if report.missing else 0)
    run(train, arguments.threads)


def _train(
    config: PhaseConfig, arguments: argparse.Namespace, training: list[Example], validation: list[Example]
) -> Path:
    """Train a phase. What takes no time is checked first, then the images, once."""
    cache = arguments.cache or arguments.output / "cache"
    optimizer_class(config.loop.optimizer)
    check_teacher(config, arguments.teacher, training)
    start = locate_start(arguments.start)
    check_parts(start, START)
    check_start(config, start)
    vlum = locate_vlum(arguments.vlum, start, config.phase, cache / "vlum")
    if config.phase != "1":
        check_parts(vlum or start, VLUM)
    check_once(arguments.output, [*training, *validation])
    return train_phase(
        config,
        training,
        start,
        arguments.output,
        cache=cache,
        validation=validation,
        vlum=vlum,
        teacher=arguments.teacher,
        unseen_captions=arguments.unseen_captions,
        validate=validate_bundle,
    )
