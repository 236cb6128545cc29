"""Each way of running the pipeline faster or smaller, on and off, in one process: time, memory, change of the picture.

`python benchmarks/optimisations.py --random sd15 --dtype fp16 --resolution 512` prints a table in Markdown; `--json
FILE` writes its figures. Every row draws the same picture from the same caption and map, which are made once: a row
differs from "as it is" by what its name says, and from the others in nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a file, Python looks for modules beside it and not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import diffusers
import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from benchmarks.inference import build_parser, build_pipeline, device_name, example_photo, measured
from diffv2ir.compilation import compile_models, leave_compiled
from diffv2ir.imaging import ImageError, open_image
from diffv2ir.loading import CommandError
from diffv2ir.memory import DTYPES, MODES, OutOfDeviceMemory, place
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import PRESETS, GenerationSettings

AS_IT_IS = "as it is"
_CONVERTED = ("unet", "vae", "text_encoder", "captioner")


@contextmanager
def _as_it_is(pipe: DiffV2IRPipeline) -> Iterator[None]:
    yield


@contextmanager
def _branches(pipe: DiffV2IRPipeline, way: str) -> Iterator[None]:
    before = os.environ.get("DIFFV2IR_BRANCHES")
    os.environ["DIFFV2IR_BRANCHES"] = way
    try:
        yield
    finally:
        os.environ.pop("DIFFV2IR_BRANCHES")
        if before is not None:
            os.environ["DIFFV2IR_BRANCHES"] = before


@contextmanager
def _plain_attention(pipe: DiffV2IRPipeline) -> Iterator[None]:
    """The UNet's attention as two matrix products and a softmax, in place of torch's fused one."""
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        pipe.unet.set_attn_processor(before)


@contextmanager
def _channels_last(pipe: DiffV2IRPipeline) -> Iterator[None]:
    for model in (pipe.unet, pipe.vae):
        model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.contiguous_format)


@contextmanager
def _compiled(pipe: DiffV2IRPipeline, **options: Any) -> Iterator[None]:
    compile_models(pipe, **options)
    try:
        yield
    finally:
        leave_compiled(pipe)


@contextmanager
def _compiled_channels_last(pipe: DiffV2IRPipeline, **options: Any) -> Iterator[None]:
    with _channels_last(pipe), _compiled(pipe, **options):
        yield


@contextmanager
def _dtype(pipe: DiffV2IRPipeline, dtype: torch.dtype) -> Iterator[None]:
    """Weights that were rounded stay so afterwards; fp32 after fp16 has its time and memory, not other weights."""
    before = pipe.unet.dtype
    for name in _CONVERTED:
        getattr(pipe, name).to(dtype)
    try:
        yield
    finally:
        for name in _CONVERTED:
            getattr(pipe, name).to(before)


@contextmanager
def _memory(pipe: DiffV2IRPipeline, mode: str) -> Iterator[None]:
    device, before = pipe.compute_device, pipe.memory_mode
    place(pipe, device, mode)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        place(pipe, device, before)


def rows(options: argparse.Namespace) -> dict[str, Callable]:
    """What is measured, by name: contexts that change a pipeline and change it back."""
    used = DTYPES.get(options.dtype, options.dtype)
    compiling = {} if options.backend is None else {"backend": options.backend}
    result: dict[str, Callable] = {
        AS_IT_IS: _as_it_is,
        "branches as one batch": lambda pipe: _branches(pipe, "together"),
        "branches one by one": lambda pipe: _branches(pipe, "separate"),
        "attention without SDPA": _plain_attention,
        "channels_last": _channels_last,
    }
    for mode in list(MODES)[1:]:
        result[f"memory {mode}"] = lambda pipe, mode=mode: _memory(pipe, mode)
    result["compiled"] = lambda pipe: _compiled(pipe, **compiling)
    result["compiled, channels_last"] = lambda pipe: _compiled_channels_last(pipe, **compiling)
    # Last: what follows would have their rounded weights.
    for short, name in DTYPES.items():
        if name != used:
            result[short] = lambda pipe, name=name: _dtype(pipe, getattr(torch, name))
    return result


def measure(pipe: DiffV2IRPipeline, change: Callable, conditioning, settings: GenerationSettings) -> dict[str, Any]:
    """One row: seconds and peak memory of a picture after one that is not counted, which is "first_seconds"."""
    with change(pipe):
        started = time.perf_counter()
        # Four steps: the first has the most branches to measure, compile and choose kernels for; none is left after.
        pipe.generate(conditioning, settings.replace(steps=min(4, settings.steps)))
        first = time.perf_counter() - started
        with measured(pipe) as run:
            output = pipe.generate(conditioning, settings)
    return {
        "first_seconds": first,
        "milliseconds_per_step": 1000 * output.timings["denoise"] / settings.steps,
        "decode_seconds": output.timings["decode"],
        "evaluations": run.evaluations,
        "peak_bytes": run.peak_bytes,
        "levels": output.levels * 255,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser("benchmarks/optimisations.py", __doc__)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of the table (default: all)")
    parser.add_argument("--backend", help="of torch.compile (default: its own)")
    parser.set_defaults(steps=30)
    options = parser.parse_args(arguments)
    try:
        photo = open_image(options.photo[0]) if options.photo else example_photo()
        chosen = {name: change for name, change in rows(options).items() if not options.rows or name in options.rows}
        if unknown := set(options.rows or ()) - set(chosen):
            raise ValueError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows(options))}")
        if len(options.photo) > 1:
            raise ValueError(f"one photo is measured, got {len(options.photo)}")
        pipe = build_pipeline(options)
        changes = {**PRESETS["paper"], "steps": options.steps, "seed": options.seed}
        if options.resolution is not None:
            changes["resolution"] = options.resolution
        settings = pipe.default_settings.replace(**changes)
    except (CommandError, ImageError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    report = compare(pipe, photo, settings, chosen)
    report = {"bundle": options.random or options.bundle, **report}
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def compare(pipe: DiffV2IRPipeline, photo, settings: GenerationSettings, chosen: dict[str, Callable]) -> dict[str, Any]:
    """All rows, each with the mean and largest difference of its picture to that of the first, in gray levels.

    A row whose device has too little memory says so, and the others go on.
    """
    conditioning = pipe.prepare(photo, resolution=settings.resolution)
    found, first = {}, None
    for name, change in chosen.items():
        try:
            row = measure(pipe, change, conditioning, settings)
        except (OutOfDeviceMemory, torch.OutOfMemoryError) as error:
            found[name] = {"error": str(error).splitlines()[0]}
            continue
        levels = row.pop("levels")
        first = levels if first is None else first
        difference = np.abs(levels - first)
        found[name] = {**row, "mean_difference": float(difference.mean()), "max_difference": float(difference.max())}
        print(f"{name}: {row['milliseconds_per_step']:.1f} ms a step", file=sys.stderr, flush=True)
    return {
        "device": device_name(pipe.compute_device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "settings": settings.to_dict(),
        "understanding_seconds": conditioning.timings,
        "rows": found,
    }


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    settings = report["settings"]
    lines = [
        f"{report['bundle']} on {report['device']}, {report['dtype']} where nothing else is said, {settings['steps']} "
        f"steps at {settings['resolution']} px, torch {report['torch']}, diffusers {report['diffusers']}",
        "",
        "| | ms a step | decoding, s | first picture (4 steps), s | peak GPU memory while drawing, GB "
        "| difference: mean, max |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in report["rows"].items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | |")
            continue
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        lines.append(
            f"| {name} | {row['milliseconds_per_step']:.1f} | {row['decode_seconds']:.3f} | {row['first_seconds']:.1f} "
            f"| {peak} | {row['mean_difference']:.2f}, {row['max_difference']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
