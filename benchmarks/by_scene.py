"""Means over scenes beside means over pairs: frames of one video are not new evidence.

`python -m benchmarks.by_scene --data DATASET benchmarks/baselines/results/scores.json` reads what `benchmarks.compare`
wrote and prints, for each method, the mean over all pairs and the mean over scenes of each scene's mean, with 95 %
bootstrap intervals over scenes, and by how much the last method, ours, is ahead of each, scene by scene.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffv2ir.bootstrap import mean_interval
from diffv2ir.data import read_examples

MEASURES = {"psnr": ".2f", "ssim": ".3f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("scores", type=Path, help="scores.json of benchmarks.compare")
    arguments = parser.parse_args()
    record = json.loads(arguments.scores.read_text(encoding="utf-8"))
    examples = read_examples(arguments.data, split=record["split"], kinds=["pairs"])
    scene_of = {example.id: example.place for example in examples}
    print(to_markdown({method: own["images"] for method, own in record["methods"].items()}, scene_of))


def to_markdown(methods: Mapping[str, Mapping[str, Mapping[str, float]]], scene_of: Mapping[str, str]) -> str:
    """Methods -> example ids -> measures, and the scene of each example, as a table."""
    last = list(methods)[-1]
    lines = [
        "| method | pairs: PSNR, dB | SSIM | scenes: PSNR, dB (95 %) | SSIM (95 %) "
        f"| {last} less it, by scene: PSNR, dB | SSIM |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, images in methods.items():
        pairs, scenes, leads = [], [], []
        for name, form in MEASURES.items():
            pairs.append(f"{statistics.fmean(row[name] for row in images.values()):{form}}")
            means = scene_means({key: row[name] for key, row in images.items()}, scene_of)
            scenes.append(_with_interval(means, form))
            ahead = scene_means({key: methods[last][key][name] - row[name] for key, row in images.items()}, scene_of)
            leads.append("" if method == last else _with_interval(ahead, form))
        lines.append(f"| {method} | {' | '.join([*pairs, *scenes, *leads])} |")
    return "\n".join(lines)


def _with_interval(values: Sequence[float], form: str) -> str:
    low, high = mean_interval(values)
    return f"{statistics.fmean(values):{form}} ({low:{form}} to {high:{form}})"


def scene_means(values: Mapping[str, float], scene_of: Mapping[str, str]) -> list[float]:
    """The mean of each scene's values, in the order of the scenes' first examples."""
    scenes: dict[str, list[float]] = defaultdict(list)
    for key, value in values.items():
        scenes[scene_of[key]].append(value)
    return [statistics.fmean(own) for own in scenes.values()]


if __name__ == "__main__":
    main()
