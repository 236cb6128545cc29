"""How much of each method's error is one level and one contrast, which a camera's gain control chooses.

`python -m benchmarks.level_error --data DATASET --run runs/compare` reads the pictures that `benchmarks.compare` wrote
and prints, for each camera and method, means over pairs: PSNR as it is, PSNR once the picture has the mean of the real
one, PSNR once it has the best gain and offset, its mean level and spread beside the real ones, and how it correlates
with the real one.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np

from benchmarks.compare import METHODS
from diffv2ir.data import read_examples
from diffv2ir.evaluate import gray_square

COLUMNS = (
    "PSNR",
    "with its mean",
    "with best gain and offset",
    "mean level",
    "of real",
    "spread",
    "of real",
    "correlation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of benchmarks.compare")
    parser.add_argument("--source", action="append", help="camera; may be repeated (default: all)")
    arguments = parser.parse_args()
    examples = read_examples(arguments.data, split="test", kinds=["pairs"], sources=arguments.source)
    print(f"| camera | method | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 2)}")
    for source in sorted({example.source for example in examples}):
        own = [example for example in examples if example.source == source]
        for method in METHODS:
            files = [arguments.run / method / f"{example.id}.png" for example in own]
            if not all(path.is_file() for path in files):
                continue
            rows = [
                level_error(np.asarray(gray_square(path)), np.asarray(gray_square(example.infrared)))
                for path, example in zip(files, own, strict=True)
            ]
            means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
            print(f"| {source} ({len(own)}) | {method} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


def level_error(picture: np.ndarray, real: np.ndarray) -> tuple[float, ...]:
    """The numbers of `COLUMNS` for two 8-bit gray pictures of one size; of a constant picture the correlation is 0."""
    picture, real = picture.astype(float), real.astype(float)
    moved = np.clip(picture - picture.mean() + real.mean(), 0, 255)
    gain, offset = np.polyfit(picture.ravel(), real.ravel(), 1) if picture.std() else (0.0, real.mean())
    constant = not (picture.std() and real.std())
    correlation = 0.0 if constant else float(np.corrcoef(picture.ravel(), real.ravel())[0, 1])
    return (
        _psnr(picture, real), _psnr(moved, real), _psnr(gain * picture + offset, real),
        float(picture.mean()), float(real.mean()), float(picture.std()), float(real.std()), correlation,
    )  # fmt: skip


def _psnr(picture: np.ndarray, real: np.ndarray) -> float:
    """As `metrics.psnr`, of a picture that may leave the scale of 0 to 255."""
    return 10 * math.log10(255**2 / max(float(np.mean((picture - real) ** 2)), 1e-9))


if __name__ == "__main__":
    main()
