"""Time, memory and evaluations of the UNet per photo, next to the sampling loop of the paper's released code.

`python benchmarks/inference.py --bundle BUNDLE --peer literal` prints a table in Markdown; `--json FILE` writes its
figures. Both sides run in this one process, with the same weights, dtype, device, caption, map and noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a file, Python looks for modules beside it and not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import diffusers
import numpy as np
import torch
from PIL import Image

from benchmarks import literal
from benchmarks.random_bundle import random_pipeline
from diffv2ir.compilation import is_compiled
from diffv2ir.guidance import synchronize
from diffv2ir.imaging import ImageError, open_image
from diffv2ir.loading import CommandError, add_model_arguments, load_pipeline, set_up
from diffv2ir.memory import DTYPES
from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline
from diffv2ir.settings import PRESETS, GenerationSettings
from diffv2ir.training.shapes import SHAPES

STAGES = ("caption", "segmentation", "text", "encode", "denoise", "decode")
# Made once for both sides: the models are the same.
UNDERSTANDING = ("caption", "segmentation")
_WARM_UP_STEPS = 2


@dataclass
class Run:
    """One side, over some photos.

    Attributes:
        seconds: by stage, one number per photo.
        evaluations: pictures that went through the UNet, counted at its door.
        peak_bytes: most memory allocated on the GPU while drawing, after `prepare`; None on other devices.
        pictures: 8-bit gray at the working size.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    evaluations: int = 0
    peak_bytes: int | None = None
    pictures: list[np.ndarray] = field(default_factory=list)

    def note(self, timings: dict[str, float]) -> None:
        for stage in STAGES:
            self.seconds[stage].append(timings[stage])

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "pictures"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser("benchmarks/inference.py", __doc__)
    parser.add_argument("--peer", choices=("literal", "none"), default="literal", help="what to compare with")
    options = parser.parse_args(arguments)
    try:
        photos = [open_image(path) for path in options.photo] or [example_photo()]
        pipe = build_pipeline(options)
        changes = {**PRESETS["paper"], "branch_order": "svt", "steps": options.steps, "seed": options.seed}
        if options.resolution is not None:
            changes["resolution"] = options.resolution
        settings = pipe.default_settings.replace(**changes)
    except (CommandError, ImageError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    report = compare(pipe, photos, settings, options.peer == "literal")
    report = {"bundle": options.random or options.bundle, **report}
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def build_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The arguments of what measures a photo's way through the pipeline."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    add_model_arguments(parser)
    parser.set_defaults(dtype="fp32")  # the same figures on every device
    parser.add_argument("--random", choices=tuple(SHAPES), help="instead of --bundle: random weights of this shape")
    parser.add_argument("--photo", nargs="*", type=Path, default=[], help="default: one made picture of 640 x 480")
    parser.add_argument("--steps", type=int, default=PRESETS["paper"]["steps"], help="default: the paper's 100")
    parser.add_argument("--resolution", type=int, help="default: the bundle's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def build_pipeline(options: argparse.Namespace) -> DiffV2IRPipeline:
    if options.random is None:
        return load_pipeline(options)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = random_pipeline(SHAPES[options.random], device, getattr(torch, DTYPES.get(options.dtype, options.dtype)))
    set_up(pipe, options)
    return pipe


def example_photo() -> Image.Image:
    """Waves of colour, 640 x 480."""
    y, x = np.mgrid[0:480, 0:640]
    channels = [128 + 100 * np.sin(x / 37), 128 + 100 * np.cos(y / 23), (x + y) / 5]
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))


def compare(
    pipe: DiffV2IRPipeline, photos: Sequence[Image.Image], settings: GenerationSettings, with_peer: bool = True
) -> dict[str, Any]:
    """Both sides on all photos, after a warm-up on the first; see `table` for what is told.

    Args:
        settings: with sampler "euler_ancestral", branch order "svt" and a seed.
    """
    sides = {"ours": run_ours, **({"literal": run_literal} if with_peer else {})}
    warm_up = settings.replace(steps=min(_WARM_UP_STEPS, settings.steps))
    runs = {}
    conditionings = [pipe.prepare(photo, resolution=settings.resolution) for photo in photos[:1]]
    for run in sides.values():
        run(pipe, photos[:1], conditionings, warm_up)
    for name, run in sides.items():
        runs[name] = run(pipe, photos, conditionings, settings)
    report = {
        "device": device_name(pipe.compute_device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "memory": pipe.memory_mode,
        "compiled": is_compiled(pipe),
        "photos": len(photos),
        "settings": settings.to_dict(),
        **{name: run.to_dict() for name, run in runs.items()},
    }
    if with_peer:
        report["taken_over"] = list(UNDERSTANDING)
        pairs = zip(runs["ours"].pictures, runs["literal"].pictures, strict=True)
        differences = [np.abs(ours.astype(int) - other.astype(int)) for ours, other in pairs]
        report["difference"] = {
            "mean": float(np.mean([difference.mean() for difference in differences])),
            "max": int(max(difference.max() for difference in differences)),
        }
    return report


def run_ours(
    pipe: DiffV2IRPipeline,
    photos: Sequence[Image.Image],
    conditionings: list[Conditioning],
    settings: GenerationSettings,
) -> Run:
    """As the library does it. Replaces `conditionings` by those of the photos."""
    conditionings[:] = [pipe.prepare(photo, resolution=settings.resolution) for photo in photos]
    with measured(pipe) as run:
        for conditioning in conditionings:
            output = pipe.generate(conditioning, settings)
            run.note(output.timings)
            run.pictures.append((output.levels * 255).round().astype(np.uint8))
    return run


def run_literal(
    pipe: DiffV2IRPipeline,
    photos: Sequence[Image.Image],
    conditionings: list[Conditioning],
    settings: GenerationSettings,
) -> Run:
    """As the released code does it, not compiled. Caption and map, and their seconds, are those of `conditionings`."""
    pipe.set_style(settings.style)
    own = []
    for photo, known in zip(photos, conditionings, strict=True):
        drawn = False if known.segmentation is None else known.segmentation
        own.append(pipe.prepare(photo, known.caption, drawn, settings.resolution))
    with torch.compiler.set_stance("force_eager"), measured(pipe) as run:
        for conditioning, known in zip(own, conditionings, strict=True):
            latents, denoising = timed(pipe, lambda c=conditioning: literal.sample(pipe, c, settings))
            picture, decoding = timed(pipe, lambda x=latents: pipe.decode(x))
            understanding = {stage: known.timings[stage] for stage in UNDERSTANDING}
            run.note({**conditioning.timings, **understanding, "denoise": denoising, "decode": decoding})
            run.pictures.append(np.asarray(picture))
    return run


@contextmanager
def measured(pipe: DiffV2IRPipeline):
    """A `Run` that counts what goes through the UNet, and GPU memory, until the block ends."""
    run = Run()

    def count(module: torch.nn.Module, inputs: tuple) -> None:
        run.evaluations += len(inputs[0])

    device = pipe.compute_device
    hook = pipe.unet.register_forward_pre_hook(count)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield run
    finally:
        hook.remove()
    if device.type == "cuda":
        run.peak_bytes = torch.cuda.max_memory_allocated(device)


def timed(pipe: DiffV2IRPipeline, work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and its seconds."""
    synchronize(pipe.compute_device)
    start = time.perf_counter()
    result = work()
    synchronize(pipe.compute_device)
    return result, time.perf_counter() - start


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def table(report: dict[str, Any]) -> str:
    """The report in Markdown: seconds per photo by stage (the mean), evaluations, memory, difference."""
    sides = [side for side in ("ours", "literal") if side in report]
    settings = report["settings"]
    lines = [
        f"{report['bundle']} on {report['device']}, {report['dtype']}, memory mode {report['memory']}, "
        f"{'compiled, ' if report['compiled'] else ''}"
        f"{settings['steps']} steps at {settings['resolution']} px, {report['photos']} photo(s), "
        f"torch {report['torch']}, diffusers {report['diffusers']}",
        "",
        f"| per photo | {' | '.join(sides)} |",
        "| --- |" + " ---: |" * len(sides),
    ]
    seconds = {side: {stage: float(np.mean(report[side]["seconds"][stage])) for stage in STAGES} for side in sides}
    for stage in STAGES:
        cells = [f"{seconds[side][stage]:.3f}" for side in sides]
        if stage in report.get("taken_over", ()):
            cells[-1] = f"({cells[-1]})"
        lines.append(f"| {stage}, s | {' | '.join(cells)} |")
    lines.append("| all, s | " + " | ".join(f"{sum(seconds[side].values()):.3f}" for side in sides) + " |")
    evaluations = [f"{report[side]['evaluations'] / report['photos']:g}" for side in sides]
    lines.append(f"| UNet evaluations | {' | '.join(evaluations)} |")
    peaks = [report[side]["peak_bytes"] for side in sides]
    cells = ["-" if peak is None else f"{peak / 1e9:.2f}" for peak in peaks]
    lines.append(f"| peak GPU memory while drawing, GB | {' | '.join(cells)} |")
    if "difference" in report:
        difference = report["difference"]
        lines += [
            "",
            "In brackets: made once, for both sides.",
            f"Difference of the pictures: mean {difference['mean']:.3f}, max {difference['max']} gray levels.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
