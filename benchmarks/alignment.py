"""Justify the threshold of misaligned pairs: measure pairs as they are and moved by known warps.

python -m benchmarks.alignment --data DATASET --to benchmarks/data/alignment.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from diffv2ir.data import Example, read_examples
from diffv2ir.data.alignment import THRESHOLD, Warp, alignment, choose_threshold, warp_scores
from diffv2ir.imaging import open_image

CONSPICUOUS = 0.03
PAIRS_AT_MOST = 300


def report(scores: dict[Warp, list[float]], others: dict[str, list[float]]) -> str:
    """Markdown: what the measure says of every warp, the threshold that follows, and other pairs by source."""
    aligned = np.array(scores[Warp()])
    moved = np.concatenate([values for one, values in scores.items() if one.shift >= CONSPICUOUS])
    threshold, lost, found = choose_threshold(aligned, moved)
    lines = [
        "# Where misalignment begins",
        "",
        f"`python -m benchmarks.alignment`: {len(aligned)} training pairs of the sources that their authors aligned,",
        "as they are and with the visible image moved by a known warp (in a random direction, mirrored at the frame).",
        "",
        "| warp of the visible image | 5 % | median | 95 % | below 0 | AUC against unmoved |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one, values in scores.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        worse = np.mean(aligned[:, None] > np.array(values)) if one != Warp() else 0.5
        below = np.mean(np.array(values) < THRESHOLD)
        lines.append(f"| {one} | {low:.3f} | {middle:.3f} | {high:.3f} | {below:.1%} | {worse:.3f} |")
    lines += [
        "",
        f"Between unmoved pairs and those shifted by {CONSPICUOUS:.0%} of the side or more, `choose_threshold` finds "
        f"{threshold:.3f}: it drops {lost:.1%} of the unmoved pairs and {found:.1%} of the shifted ones. The default "
        f"is {THRESHOLD:g}, which needs no data: below it the images fit better when one is moved.",
        "",
        "What the default says of other pairs, where parallax was left:",
        "",
        "| pairs | count | 5 % | median | 95 % | below 0 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, values in sorted(others.items()):
        low, middle, high = np.percentile(values, [5, 50, 95])
        below = np.mean(np.array(values) < THRESHOLD)
        lines.append(f"| {name} | {len(values)} | {low:.3f} | {middle:.3f} | {high:.3f} | {below:.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, help="Markdown file")
    parser.add_argument("--parallax", nargs="*", default=["flirone", "flir"], help="sources that nobody aligned")
    options = parser.parse_args()
    pairs = [e for e in read_examples(options.data, "train", ["pairs", "crops"]) if e.visible]
    aligned = [e for e in pairs if e.source not in options.parallax]
    chosen = [aligned[k] for k in np.random.default_rng(0).permutation(len(aligned))[:PAIRS_AT_MOST]]
    others: dict[str, list[float]] = {}
    for example in pairs:
        if example.source in options.parallax:
            others.setdefault(f"{example.source} ({example.kind})", []).append(alignment(*_images(example)))
    options.to.write_text(report(warp_scores(_images(e) for e in chosen), others))


def _images(example: Example):
    return open_image(example.visible), open_image(example.infrared)


if __name__ == "__main__":
    main()
