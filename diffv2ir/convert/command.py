"""`python -m diffv2ir convert CHECKPOINT --to FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffv2ir.convert import names
from diffv2ir.loading import CommandError


def add_parser(commands: Any) -> None:
    """The command among those of the parser (`add_subparsers`)."""
    parser = commands.add_parser(
        "convert", help="turn an official checkpoint into a bundle, or into a training's start"
    )
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="of DiffV2IR, InstructPix2Pix or Stable Diffusion 1.x: .ckpt, .safetensors or a diffusers folder; "
        "or stage2, m3fd, flir, sd15, which are fetched (see `fetch`) unless something of that name lies here",
    )
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--captioner",
        metavar="DIR",
        help="BLIP: a folder, blip, or OWNER/NAME[@REVISION] on the hub (default: blip if it is here)",
    )
    parser.add_argument(
        "--segmenter",
        metavar="FILE",
        help="SAM: sam, sam_vit_b_*.pth, or a bundle's segmenter (default: sam if it is here)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="CLIP's tokenizer: its folder, that of a model with one, or sd15, of which only the tokenizer is fetched "
        "(default: the checkpoint's own, else that of sd15 if it is here); 'none' takes none of the three that is here",
    )
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

    source = names.locate_checkpoint(options.source, print)
    given = {"--captioner": options.captioner, "--segmenter": options.segmenter, "--tokenizer": options.tokenizer}
    unasked = _not_looked_for(source, options.keep_channels)
    parts = {
        flag: None if name is None and flag in unasked else names.locate_part(flag, name, print)
        for flag, name in given.items()
    }
    try:
        converted = convert(
            source,
            options.to,
            ema=not options.raw,
            widen=not options.keep_channels,
            captioner=Path(parts["--captioner"]) if parts["--captioner"] else None,
            segmenter=Path(parts["--segmenter"]) if parts["--segmenter"] else None,
            tokenizer=Path(parts["--tokenizer"]) if parts["--tokenizer"] else None,
            progress=lambda part: print(f"{part} ...", flush=True),
        )
    except (ConvertError, BundleError, OSError) as error:
        raise CommandError(error) from error
    print(converted)
    print(f"weights of the UNet: {converted.unet_weights}")
    wanted = [flag for flag in converted.missing if flag not in unasked and given.get(flag) != names.OFF]
    if sentence := names.how_to_complete(wanted):
        print(sentence)
    return OK


def _not_looked_for(source: Path, keep_channels: bool) -> set[str]:
    """Flags of parts that are of no use unless they are given: no bundle is meant, or the checkpoint has its own."""
    flags = {"--captioner", "--segmenter"} if keep_channels else set()
    return flags | {"--tokenizer"} if (source / "tokenizer").is_dir() else flags
