"""The flags that choose a pipeline, of the command line, the page and the benchmarks, and loading what they ask for."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from diffv2ir.memory import DTYPES, MODES, OutOfDeviceMemory, place

if TYPE_CHECKING:
    import torch

    from diffv2ir.pipeline import DiffV2IRPipeline

AUTO = "auto"
# What a command says about where its model comes from and how it is placed.
_TOLD = ("diffv2ir.hub", "diffv2ir.memory", "diffv2ir.convert")


class CommandError(Exception):
    """A request that cannot be carried out; the message is shown as it is and the exit code is 2."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--bundle`, `--device`, `--dtype`, `--memory` and `--compile`, as `load_pipeline` takes them."""
    parser.add_argument(
        "--bundle",
        default="tiny",
        help="'tiny'; a folder; a hub id, OWNER/NAME[@REVISION]; or stage2, m3fd, flir: the paper's checkpoints, "
        "fetched and converted at first use (default: tiny)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, *DTYPES.values(), AUTO),
        default=AUTO,
        help="of the weights, but for SAM's (default: auto = fp16 on CUDA for a bundle stored in half precision, "
        "else fp32)",
    )
    parser.add_argument(
        "--memory",
        choices=tuple(MODES),
        help="; ".join(f"{mode}: {what}" for mode, what in MODES.items())
        + " (default: the first that fits the device's free memory)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compile UNet and VAE decoder at the first photo, for photos of all sizes: worth it for many (not on "
        "ZeroGPU and not with --memory sequential)",
    )


def load_pipeline(options: argparse.Namespace) -> DiffV2IRPipeline:
    """The pipeline that `--bundle`, `--device`, `--dtype`, `--memory` and `--compile` ask for.

    Raises:
        CommandError: no such bundle, or one that is incomplete, or a device that is not there or has too little memory.
    """
    from diffv2ir.bundle import BundleError, resolve
    from diffv2ir.pipeline import DiffV2IRPipeline

    tell_on_stderr()
    try:
        folder = resolve(options.bundle)
        pipe = DiffV2IRPipeline.from_pretrained(folder, dtype=_dtype(options, folder))
    except (BundleError, OSError) as error:
        raise CommandError(error) from error
    set_up(pipe, options)
    return pipe


def tell_on_stderr() -> None:
    """Show on stderr what is logged about fetching and placing a model, unless logging is set up already."""
    if logging.getLogger().handlers:
        return
    for logger in map(logging.getLogger, _TOLD):
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False  # logging that is set up later would show each line twice


def _dtype(options: argparse.Namespace, folder: Path) -> torch.dtype:
    """What `--dtype` stands for, on `--device` and for a bundle in `folder`."""
    import torch

    from diffv2ir.bundle import is_half

    if options.dtype != AUTO:
        return getattr(torch, DTYPES.get(options.dtype, options.dtype))
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.float16 if device.startswith("cuda") and is_half(folder) else torch.float32


def set_up(pipe: DiffV2IRPipeline, options: argparse.Namespace) -> None:
    """Place a pipeline as `--device` and `--memory` ask for, and compile it if `--compile` does.

    Raises:
        CommandError: no such device or too little memory.
    """
    pipe.set_progress_bar_config(disable=True)
    try:
        place(pipe, options.device, options.memory)
    except (OutOfDeviceMemory, ValueError) as error:
        raise CommandError(error) from error
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"device {options.device!r} cannot be used: {error}") from error
    if options.compile:
        from diffv2ir.compilation import compile_models

        compile_models(pipe)
