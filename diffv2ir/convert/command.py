"""`python -m diffv2ir convert CHECKPOINT --to FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """The command among those of the parser (`add_subparsers`)."""
    parser = commands.add_parser(
        "convert", help="turn an official checkpoint into a bundle, or into a training's start"
    )
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="of DiffV2IR, InstructPix2Pix or Stable Diffusion 1.x: .ckpt, .safetensors or a diffusers folder; "
        "or stage2, m3fd, flir, sd15, which are fetched (see `fetch`)",
    )
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--captioner", metavar="DIR", help="BLIP: a folder, blip, or another hub id")
    parser.add_argument("--segmenter", metavar="FILE", help="SAM: sam, sam_vit_b_*.pth, or a bundle's segmenter")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="CLIP's tokenizer (default: the folder's own)")
    parser.add_argument("--raw", action="store_true", help="take the UNet's last weights, not their average (EMA)")
    parser.add_argument(
        "--keep-channels", action="store_true", help="do not widen the UNet to 12 input channels, for train.phase1"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert and say what came out; returns the exit code 0.

    Raises:
        CommandError: the checkpoint or a part cannot be used.
        HubError: it is one of `hub.SOURCES`, and cannot be fetched.
    """
    from diffv2ir.bundle import BundleError
    from diffv2ir.cli import OK
    from diffv2ir.convert.assemble import convert
    from diffv2ir.convert.checkpoint import ConvertError
    from diffv2ir.loading import CommandError

    try:
        converted = convert(
            Path(_here(options.source)),
            options.to,
            ema=not options.raw,
            widen=not options.keep_channels,
            captioner=_here(options.captioner),
            segmenter=Path(_here(options.segmenter)) if options.segmenter else None,
            tokenizer=options.tokenizer,
            progress=lambda part: print(f"{part} ...", flush=True),
        )
    except (ConvertError, BundleError, OSError) as error:
        raise CommandError(error) from error
    print(converted)
    return OK


def _here(name: str | None) -> str | None:
    """What is one of `hub.SOURCES` is fetched; anything else stays as it is."""
    from diffv2ir.hub import SOURCES, locate

    return str(locate(name, tell=print)) if name in SOURCES else name
