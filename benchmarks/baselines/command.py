"""The command line that every learnt baseline has."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.baselines.pairs import training_pairs
from benchmarks.baselines.training import Budget, Learner, TrainingConfig, finished, train
from diffv2ir.data import DataError
from diffv2ir.training.loop import TrainingError


def main(make: Callable[[torch.device, int], Learner], description: str, arguments: Sequence[str] | None = None) -> int:
    """Train what `make(device, seed)` returns; 0, or 1 with one line about what the user can mend."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder: manifest.jsonl, or rgb/ and ir/")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; start again to resume")
    parser.add_argument("--minutes", type=float, help="minutes of training time, reading images included")
    parser.add_argument("--steps", type=int, help="optimizer steps, in place of --minutes")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = TrainingConfig(Budget(options.steps, options.minutes), seed=options.seed)
        learner = make(torch.device(options.device), options.seed)
        print(train(learner, training_pairs(options.data), options.run, config, options.device))
    except (DataError, TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    record = finished(options.run)
    images = record["step"] * record["batch_size"]
    print(f"{images} images in {record['seconds'] / 60:.1f} min, {record['seconds'] / images:.2f} s an image")
    return 0
