"""The command line: `python -m diffv2ir translate PHOTO... --out DIR`, `evaluate`, `compare`, `convert` ..."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffv2ir.cli_models import add_model_commands
from diffv2ir.convert import command as convert_command
from diffv2ir.hub import HubError
from diffv2ir.loading import CommandError, add_model_arguments, load_pipeline
from diffv2ir.memory import OutOfDeviceMemory
from diffv2ir.settings import PRESETS, GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline, Output

OK, SOME_FAILED, USAGE = 0, 1, 2
NO_SEGMENTATION = "none"
CONDITIONS = ("caption", "map")
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 when some photo could not be translated, 2 for a wrong request."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except (CommandError, HubError, OutOfDeviceMemory) as error:
        print(f"diffv2ir {options.command}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="diffv2ir", description="Translate visible photos into infrared pictures.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    translate = commands.add_parser("translate", help="turn photos into infrared pictures")
    translate.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
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

    evaluate = commands.add_parser("evaluate", help="score a bundle on pairs of visible and real infrared images")
    evaluate.add_argument("--data", required=True, type=Path, metavar="DIR", help="dataset folder")
    evaluate.add_argument("--split", default="test", help="part of the dataset (default: test)")
    evaluate.add_argument("--kind", default="pairs", help="kind of examples (default: pairs)")
    evaluate.add_argument("--source", help="one camera's examples only (default: all)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="evaluate N examples, evenly spread")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores to FILE")
    evaluate.add_argument("--sheet", type=Path, metavar="FILE", help="write a picture: visible | map | ours | real")
    evaluate.add_argument("--sheet-scenes", type=int, default=24, metavar="N", help="scenes on the sheet (default: 24)")
    evaluate.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at a time (default: 4)")
    evaluate.add_argument(
        "--without",
        choices=CONDITIONS,
        action="append",
        default=[],
        help="switch a condition off, to see what it gives",
    )
    add_model_arguments(evaluate)
    add_settings_arguments(evaluate)
    evaluate.set_defaults(run=run_evaluate)

    compare = commands.add_parser("compare", help="compare two evaluations image by image")
    compare.add_argument("first", type=Path, metavar="FIRST", help="a file that evaluate --json wrote")
    compare.add_argument("second", type=Path, metavar="SECOND", help="another one, of the same images or some of them")
    compare.set_defaults(run=run_compare)
    add_model_commands(commands)
    convert_command.add_parser(commands)
    return parser


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """`--preset` and one flag per field of `GenerationSettings`; what is not given stays as the bundle says."""
    group = parser.add_argument_group("settings", "What is not given is taken from the bundle.")
    group.add_argument("--preset", choices=sorted(PRESETS), help="a set of settings; the flags below go on top")
    hints = typing.get_type_hints(GenerationSettings)
    for field in dataclasses.fields(GenerationSettings):
        kind = next(
            kind for kind in (int, float, str) if kind in (hints[field.name], *typing.get_args(hints[field.name]))
        )
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else {int: "N", float: "X", str: "NAME"}[kind],
            help=f"{field.metadata['label']}: {field.metadata['help']}".replace("%", "%%"),
        )


def settings_from(options: argparse.Namespace, pipe: DiffV2IRPipeline) -> GenerationSettings:
    """The bundle's settings, changed by `--preset` and then by the single flags.

    Raises:
        CommandError: a value out of its range, or a style that the bundle does not have.
    """
    names = [field.name for field in dataclasses.fields(GenerationSettings)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    try:
        settings = pipe.default_settings.replace(**{**PRESETS.get(options.preset, {}), **given})
    except ValueError as error:
        raise CommandError(error) from error
    if settings.style not in pipe.styles:
        raise CommandError(f"style {settings.style!r} is not in this bundle, which has {', '.join(pipe.styles)}")
    return settings


def run_translate(options: argparse.Namespace) -> int:
    from diffv2ir.batch import output_paths, output_stems, translate_photos
    from diffv2ir.imaging import ImageError

    if options.segmentation not in (None, NO_SEGMENTATION) and len(options.photos) > 1:
        raise CommandError("--segmentation FILE fits one photo, got several")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
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
        try:
            result.output.save(infrared_path, options.bits)
            if result.output.segmentation is not None:
                result.output.segmentation.save(map_path)
        except OSError as error:
            raise CommandError(f"{infrared_path} cannot be written: {error}") from error
        _print_result(photo, infrared_path, result.output)
    return SOME_FAILED if failed else OK


def _segmentation(value: str | None) -> Any:
    from diffv2ir.imaging import open_image

    if value is None:
        return None
    return False if value == NO_SEGMENTATION else open_image(value)


def _print_result(photo: Path, path: Path, output: Output) -> None:
    timings = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in output.timings.items())
    print(f"{photo} -> {path}\n  caption: {output.caption or '(off)'}\n  seed: {output.seed}\n  timings: {timings}")


def _check_writable(path: Path | None) -> None:
    """Refuse a place for a result before an hour of work, not after it; makes its folder."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error}") from error


def _examples_of(options: argparse.Namespace) -> list[Any]:
    from diffv2ir.data import read_examples

    examples = read_examples(options.data, options.split, [options.kind])
    sources = sorted({example.source for example in examples})
    if options.source is not None and options.source not in sources:
        raise CommandError(f"--source {options.source!r} is not in {options.data}, which has {', '.join(sources)}")
    return [example for example in examples if options.source in (None, example.source)]


def run_evaluate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from diffv2ir.data import DataError, check_examples
    from diffv2ir.evaluate import save_sheet, score, spread, translate_examples

    for name in ("limit", "batch_size", "sheet_scenes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise CommandError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    try:
        examples = spread(_examples_of(options), options.limit)
        check_examples(examples)
    except (DataError, OSError) as error:
        raise CommandError(error) from error
    if options.sheet and options.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise CommandError(f"--sheet must end in {', '.join(SHEET_SUFFIXES)}, got {options.sheet.name}")
    _check_writable(options.json)
    _check_writable(options.sheet)
    pipe = load_pipeline(options)
    settings = settings_from(options, pipe)
    settings = settings.replace(seed=settings.seed or 0)
    with tqdm(total=len(examples), unit="image") as bar:
        translations = translate_examples(
            pipe, examples, settings, options.batch_size, lambda done, total: bar.update(done - bar.n), options.without
        )
    report = score(translations, settings)
    print(report.table())
    record = {
        "bundle": options.bundle,
        "split": options.split,
        "kind": options.kind,
        "source": options.source,
        "without": options.without,
        **report.to_dict(),
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if options.sheet:
        save_sheet(spread(translations, options.sheet_scenes), options.sheet)
    return OK


def run_compare(options: argparse.Namespace) -> int:
    from diffv2ir.bootstrap import compare

    first, second = (_read_images(path) for path in (options.first, options.second))
    common = [key for key in first if key in second]
    if not common:
        raise CommandError(f"{options.first} and {options.second} have no image in common")
    print(f"{options.first} less {options.second}, {len(common)} images of {len(first)} and {len(second)}")
    for name, unit in (("psnr", " dB"), ("ssim", "")):
        result = compare([first[key][name] for key in common], [second[key][name] for key in common])
        low, high = result.interval
        print(
            f"{name.upper()}: {result.difference:+.3f}{unit} (95 %: {low:+.3f} to {high:+.3f}), "
            f"better on {result.win_rate:.0%} of the images"
        )
    return OK


def _read_images(path: Path) -> dict[str, dict[str, float]]:
    """PSNR and SSIM by example of an evaluation's file; equal images are written as null there."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {
            key: {name: math.inf if row[name] is None else float(row[name]) for name in ("psnr", "ssim")}
            for key, row in images.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is not a file that evaluate --json wrote: {error}") from error
