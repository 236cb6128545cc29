"""InstructPix2Pix's way (Brooks et al. 2023) with our network: photo and one instruction, no caption, no map.

`python -m benchmarks.baselines.ip2p --data DATASET --start runs/tiny/phase1/result --vlum runs/tiny/vlum
--teacher runs/tiny/teacher --run RUN`

The two stages of our phase 2 with their configurations, but for the prompt, which is always "turn the visible image
into infrared", and the map, which is always null. The result is a bundle; `translate` gives it the same conditions in
use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.baselines.pairs import training_pairs
from diffv2ir.data import Example
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings
from diffv2ir.training.ablation.trainings import shrunk
from diffv2ir.training.config import load_config
from diffv2ir.training.learnt import examples_hash, recorded_examples, training_seconds
from diffv2ir.training.loop import TrainingError, latest_checkpoint
from diffv2ir.training.phases import PhaseConfig, train_phase
from train.launch import run

logger = logging.getLogger(__name__)

PROMPT = "turn the visible image into infrared"
_TINY = Path(__file__).parents[2] / "train" / "configs" / "tiny"
CONFIGS = tuple(_TINY / f"{stage}.yaml" for stage in ("phase2", "phase2-picture"))


def train_ip2p(
    data: Path,
    start: Path,
    vlum: Path,
    output: Path,
    share: float = 1.0,
    configs: Sequence[Path] = CONFIGS,
    teacher: Path | None = None,
) -> Path:
    """Train phase 2 without caption and map; returns the bundle, `output/result`. Resumable.

    Args:
        start: where our phase 2 starts, too. vlum: captioner and segmenter; a bundle has them, but they are not used.
        share: part of the steps, and of the views, of the first configuration; the others are trained in full.
        configs: those of our phase 2, one stage after the other.
        teacher: output of train.teacher: our teacher is its teacher, too.

    Raises:
        DataError, TrainingError, ValueError: as `train_phase`; or share is not in (0, 1], or `output` holds a training
            on other pairs, or a finished one with another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    examples = training_examples(data, configs)
    stages = _stages(output, configs, share)
    if any((folder / "result").is_dir() or latest_checkpoint(folder) for folder, _ in stages):
        check_training(output, examples, share, configs)
    for folder, config in stages:
        start = train_phase(config, examples, start, folder, cache=output / "cache", vlum=vlum, teacher=teacher)
    return start


def training_examples(data: Path, configs: Sequence[Path] = CONFIGS) -> list[Example]:
    """Of the kinds that any of our stages learns from, see `training_pairs`; each takes what its configuration says."""
    kinds = [load_config(config, PhaseConfig).kinds for config in configs]
    return training_pairs(data, None if None in kinds else sorted({kind for own in kinds for kind in own}))


def _folders(output: Path, configs: Sequence[Path]) -> list[Path]:
    """Where each stage is trained; the last one's folder is that of the whole."""
    return [*(output / config.stem for config in configs[:-1]), output]


def _stages(output: Path, configs: Sequence[Path], share: float) -> list[tuple[Path, PhaseConfig]]:
    """Folder and configuration of each stage; `share` is for the first."""
    first, *others = (load_config(config, PhaseConfig) for config in configs)
    theirs = [without_conditions(first, share), *map(without_conditions, others)]
    return list(zip(_folders(output, configs), theirs, strict=True))


def check_training(
    output: Path, examples: Sequence[Example], share: float | None = None, configs: Sequence[Path] = CONFIGS
) -> None:
    """Refuse a training on other pairs than `examples`, or with other steps than `share` of ours; None = any.

    Raises:
        TrainingError: it is of other pairs, stages or steps.
    """
    stages = _stages(output, configs, share or 1.0)
    if recorded_examples(output) is None and (output / "result").is_dir():
        logger.warning("%s does not say what it was trained on: it is taken for the pairs of the dataset", output)
    for folder, theirs in stages:
        if (output / "result").is_dir() and not folder.is_dir():
            raise TrainingError(f"{output} was trained without the stage {folder.name} of ours: choose another folder")
        if (output / "result").is_dir() and not (folder / "result").is_dir():
            logger.warning("%s has no training of its own: what it started from is not known", folder)
        recorded = recorded_examples(folder)
        if recorded not in (None, examples_hash([example for example in examples if theirs.fits(example)])):
            raise TrainingError(
                f"{folder} was trained on other pairs, or with other captions or bands, than those of the dataset; "
                "choose another folder, or the same dataset"
            )
    folder, first = stages[0]
    record = _record(folder)
    if share is not None and record and record["steps"] != first.loop.steps:
        raise TrainingError(
            f"{folder} was trained for {record['steps']} steps, and a share of {share:g} is {first.loop.steps}; "
            "choose another folder, or the same share"
        )


def training_record(output: Path, configs: Sequence[Path] = CONFIGS) -> dict[str, float] | None:
    """What a finished training took in all: steps, samples of a step, seconds; None where a history is not there."""
    records = [_record(folder) for folder in _folders(output, configs)]
    if None in records:
        return None
    return {
        "steps": sum(record["steps"] for record in records),
        "batch_size": records[0]["batch_size"],
        "seconds": sum(record["seconds"] for record in records),
    }


def _record(folder: Path) -> dict[str, float] | None:
    path = folder / "history.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    loop, seconds = content["config"]["loop"], training_seconds(content["history"])
    return {"steps": loop["steps"], "batch_size": loop["batch_size"], "seconds": seconds}


def without_conditions(config: PhaseConfig, share: float = 1.0) -> PhaseConfig:
    """A configuration of ours with the fixed prompt, without maps, and with part of its steps and views."""
    part = shrunk(config, share)
    loop = dataclasses.replace(part.loop, warmup_steps=config.loop.warmup_steps)
    return dataclasses.replace(part.with_fixed_prompt(PROMPT), loop=loop, without_map=True)


def translate(
    pipe: DiffV2IRPipeline, photos: Sequence[Image.Image], settings: GenerationSettings, seeds: Sequence[int]
) -> Iterable[Image.Image]:
    """The infrared picture of each photo, 8-bit gray, from the photo and the fixed prompt."""
    embeds = pipe.encode_text(PROMPT)
    for photo, seed in zip(photos, seeds, strict=True):
        conditioning = pipe.prepare(photo, caption="", segmentation=False, **settings.preparation)
        conditioning = dataclasses.replace(conditioning, prompt=PROMPT, prompt_embeds=embeds)
        yield pipe.generate(conditioning, settings.replace(seed=seed)).image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="result of phase 1, as for our phase 2")
    parser.add_argument("--vlum", type=Path, required=True, help="folder with captioner and segmenter, or a bundle")
    parser.add_argument("--teacher", type=Path, help="output of train.teacher, as for our phase 2")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; start again to resume")
    parser.add_argument("--share", type=float, default=1.0, help="part of steps and views of phase2.yaml (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    options = parser.parse_args()
    run(
        lambda: train_ip2p(
            options.data, options.start, options.vlum, options.run, options.share, teacher=options.teacher
        ),
        options.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
