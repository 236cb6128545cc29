"""The command line: `python -m diffv2ir translate PHOTO... --out DIR`, `evaluate`, `compare`, `convert` ..."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffv2ir.bundle import BundleError
from diffv2ir.cli_evaluate import add_evaluate_commands
from diffv2ir.cli_models import add_model_commands
from diffv2ir.cli_settings import add_settings_arguments, settings_from
from diffv2ir.convert import command as convert_command
from diffv2ir.hub import HubError
from diffv2ir.loading import CommandError, add_model_arguments, load_pipeline
from diffv2ir.memory import OutOfDeviceMemory

if TYPE_CHECKING:
    from diffv2ir.pipeline import Output

OK, SOME_FAILED, USAGE = 0, 1, 2
NO_SEGMENTATION = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 when some photo could not be translated, 2 for a wrong request."""
    options = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        return options.run(options)
    except (CommandError, BundleError, FloatingPointError, HubError, OutOfDeviceMemory) as error:
        print(f"diffv2ir {options.command}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="diffv2ir", description="Translate visible photos into infrared pictures.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    translate = commands.add_parser("translate", help="turn photos into infrared pictures")
    translate.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="picture files: JPEG, PNG, WebP ...")
    translate.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the results")
    translate.add_argument("--caption", help="use this caption instead of the model's; '' switches the caption off")
    translate.add_argument(
        "--segmentation",
        metavar="FILE",
        help=f"use this picture as segmentation map (one photo only); '{NO_SEGMENTATION}' switches the map off",
    )
    translate.add_argument("--bits", type=int, choices=(8, 16), default=8, help="of the gray pictures (default: 8)")
    add_model_arguments(translate)
    add_settings_arguments(translate)
    translate.set_defaults(run=run_translate)

    add_evaluate_commands(commands)
    add_model_commands(commands)
    convert_command.add_parser(commands)
    return parser


def run_translate(options: argparse.Namespace) -> int:
    from diffv2ir.batch import output_paths, output_stems, translate_photos
    from diffv2ir.imaging import ImageError

    if options.segmentation not in (None, NO_SEGMENTATION) and len(options.photos) > 1:
        raise CommandError("--segmentation FILE fits one photo, got several")
    _make_folder(options.out)
    try:
        segmentation = _segmentation(options.segmentation)
    except (ImageError, OSError) as error:
        raise CommandError(error) from error
    pipe = load_pipeline(options)
    settings = settings_from(options, pipe)
    stems = output_stems(options.photos, options.out)
    failed = 0
    for result in translate_photos(pipe, options.photos, settings, options.caption, segmentation):
        photo = options.photos[result.number]
        if result.output is None:
            print(f"{photo}: skipped, {result.error}", file=sys.stderr)
            failed += 1
            continue
        infrared_path, map_path = output_paths(options.out, stems[result.number])
        replaced = infrared_path.exists()
        try:
            result.output.save(infrared_path, options.bits)
            if result.output.segmentation is not None:
                result.output.segmentation.save(map_path)
        except OSError as error:
            raise CommandError(f"{infrared_path} cannot be written: {error.strerror or error}") from error
        _print_result(photo, f"{infrared_path}{' (replaced)' * replaced}", result.output)
    return SOME_FAILED if failed else OK


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CommandError(f"--out {out}: this or what it lies in is a file; name a folder for the results") from error
    except OSError as error:
        raise CommandError(f"--out {out}: the folder cannot be made ({error.strerror})") from error


def _segmentation(value: str | None) -> Any:
    from diffv2ir.imaging import open_image

    if value is None:
        return None
    return False if value == NO_SEGMENTATION else open_image(value)


def _print_result(photo: Path, place: str, output: Output) -> None:
    timings = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in output.timings.items())
    print(f"{photo} -> {place}\n  caption: {output.caption or '(off)'}\n  seed: {output.seed}\n  timings: {timings}")
