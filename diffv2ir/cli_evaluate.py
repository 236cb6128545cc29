"""The commands that measure: `evaluate --data DATASET` and `compare A.json B.json`."""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffv2ir.cli_settings import add_settings_arguments, given_settings, settings_from
from diffv2ir.loading import CommandError, add_model_arguments, load_pipeline

if TYPE_CHECKING:
    from diffv2ir.data import Example
    from diffv2ir.evaluate import Translation
    from diffv2ir.kept_pictures import KeptPictures
    from diffv2ir.scores import View
    from diffv2ir.settings import GenerationSettings

CONDITIONS = ("caption", "map")
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BASELINES = ("visible_gray", "constant")


def add_evaluate_commands(commands: argparse._SubParsersAction) -> None:
    """`evaluate` and `compare`."""
    evaluate = commands.add_parser("evaluate", help="score a bundle on pairs of visible and real infrared images")
    evaluate.add_argument("--data", required=True, type=Path, metavar="DIR", help="dataset folder")
    evaluate.add_argument("--split", default="test", help="part of the dataset (default: test)")
    evaluate.add_argument("--kind", default="pairs", help="kind of examples (default: pairs)")
    evaluate.add_argument("--source", help="one camera's examples only (default: all)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="evaluate N examples, evenly spread")
    evaluate.add_argument(
        "--outputs",
        type=Path,
        metavar="DIR",
        help="score the pictures of another method instead of a bundle's: DIR/ID.png, .jpg or .webp for each example",
    )
    evaluate.add_argument(
        "--save-outputs",
        type=Path,
        metavar="DIR",
        help="write the bundle's pictures as DIR/ID.png while they are drawn; started again, only the others are drawn",
    )
    evaluate.add_argument(
        "--fid", action="store_true", help="also FID, KID and LPIPS, whose networks must be here or are downloaded"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores to FILE")
    evaluate.add_argument("--sheet", type=Path, metavar="FILE", help="write a picture: visible | map | ours | real")
    evaluate.add_argument("--sheet-scenes", type=int, default=24, metavar="N", help="scenes on the sheet (default: 24)")
    evaluate.add_argument(
        "--sheet-seed", type=int, metavar="N", help="draw these scenes at random (default: evenly spread ones)"
    )
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
    hint = f"a file that evaluate --json wrote; FILE:{BASELINES[0]} and FILE:{BASELINES[1]} are the baselines in it"
    compare.add_argument("first", metavar="FIRST", help=hint)
    compare.add_argument("second", metavar="SECOND", help="another one, of the same images or some of them")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the comparison to FILE")
    compare.set_defaults(run=run_compare)


def run_evaluate(options: argparse.Namespace) -> int:
    from diffv2ir.data import DataError, check_examples
    from diffv2ir.evaluate import check_pairs, save_sheet, score, spread

    _check_options(options)
    try:
        examples = spread(_examples_of(options), options.limit)
        check_pairs(examples)
        check_examples(examples)
    except (DataError, OSError) as error:
        raise CommandError(error) from error
    except ValueError as error:
        raise CommandError(f"--kind {options.kind} cannot be scored: {error}") from error
    for path in (options.json, options.sheet):
        _check_writable(path)
    views = _views(options)
    translations, settings, model = _read(options, examples) if options.outputs else _translate(options, examples)
    report = score(translations, settings, views)
    print(report.table())
    record = {
        "bundle": None if options.outputs else options.bundle,
        "bundle_sha256": model,
        "outputs": None if options.outputs is None else str(options.outputs),
        "split": options.split,
        "kind": options.kind,
        "source": options.source,
        "without": options.without,
        **report.to_dict(),
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if options.sheet:
        shown = _on_sheet(options, examples)
        save_sheet([one for one in translations if one.example.id in shown], options.sheet)
    return 0


def _check_options(options: argparse.Namespace) -> None:
    for name in ("limit", "batch_size", "sheet_scenes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise CommandError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.sheet and options.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise CommandError(f"--sheet must end in {', '.join(SHEET_SUFFIXES)}, got {options.sheet.name}")
    if options.outputs is None:
        return
    if not options.outputs.is_dir():
        raise CommandError(f"--outputs {options.outputs} is not a folder")
    given = [name for name in ("save_outputs", "without", "preset") if getattr(options, name)]
    given += given_settings(options)
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise CommandError(f"--outputs scores finished pictures, for which {flags} can change nothing")


def _views(options: argparse.Namespace) -> list[View]:
    """The networks of the distances; those of the literature are got before the pictures are made, not after."""
    from diffv2ir.scores import distance_views

    try:
        return distance_views(options.fid, options.device)
    except ValueError as error:
        raise CommandError(error) from error


def _read(options: argparse.Namespace, examples: list[Example]) -> tuple[list[Translation], None, None]:
    from diffv2ir.data import DataError
    from diffv2ir.outputs import read_outputs

    try:
        return read_outputs(options.outputs, examples), None, None
    except DataError as error:
        raise CommandError(error) from error


def _translate(
    options: argparse.Namespace, examples: list[Example]
) -> tuple[list[Translation], GenerationSettings, str]:
    """What the bundle makes of the examples, the settings, and the hash of the bundle's weights."""
    from tqdm import tqdm

    from diffv2ir.evaluate import translate_examples
    from diffv2ir.kept_pictures import KeptPictures
    from diffv2ir.outputs import output_path

    if options.save_outputs:
        try:
            options.save_outputs.mkdir(parents=True, exist_ok=True)
            for example in examples:
                output_path(options.save_outputs, example.id)
        except (OSError, ValueError) as error:
            raise CommandError(f"--save-outputs: {error}") from error
    pipe = load_pipeline(options)
    settings = settings_from(options, pipe)
    settings = settings.replace(seed=settings.seed or 0)
    kept, finished = None, {}
    if options.save_outputs:
        kept = KeptPictures(options.save_outputs, pipe, settings, options.without)
        # The sheet shows maps, which are not kept.
        shown = _on_sheet(options, examples) if options.sheet else ()
        finished = kept.find(example for example in examples if example.id not in shown)
    left = [example for example in examples if example.id not in finished]
    with tqdm(total=len(examples), initial=len(finished), unit="image") as bar:

        def progress(done: int, total: int) -> None:
            bar.update(len(finished) + done - bar.n)

        save = None if kept is None else lambda batch: _save(kept, batch)
        made = translate_examples(pipe, left, settings, options.batch_size, progress, options.without, save)
    finished |= {translation.example.id: translation for translation in made}
    return [finished[example.id] for example in examples], settings, pipe.bundle_sha256


def _on_sheet(options: argparse.Namespace, examples: list[Example]) -> set[str]:
    """The ids of the scenes on the sheet."""
    from diffv2ir.evaluate import spread

    count = min(options.sheet_scenes, len(examples))
    evenly = options.sheet_seed is None
    drawn = spread(examples, count) if evenly else random.Random(options.sheet_seed).sample(examples, count)
    return {example.id for example in drawn}


def _save(kept: KeptPictures, batch: Sequence[Translation]) -> None:
    try:
        kept.save(batch)
    except OSError as error:
        raise CommandError(f"--save-outputs {kept.folder} cannot be written: {error}") from error


def _examples_of(options: argparse.Namespace) -> list[Example]:
    from diffv2ir.data import read_examples

    examples = read_examples(options.data, options.split, [options.kind])
    sources = sorted({example.source for example in examples})
    if options.source is not None and options.source not in sources:
        raise CommandError(f"--source {options.source!r} is not in {options.data}, which has {', '.join(sources)}")
    return [example for example in examples if options.source in (None, example.source)]


def _check_writable(path: Path | None) -> None:
    """Refuse a place for a result before an hour of work, not after it; makes its folder."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error}") from error


def run_compare(options: argparse.Namespace) -> int:
    from diffv2ir.comparison import compare_images, table

    _check_writable(options.json)
    first, second = (_read_evaluation(place) for place in (options.first, options.second))
    common = [key for key in first.images if key in second.images]
    if not common:
        raise CommandError(f"{options.first} and {options.second} have no image in common")
    _check_same(first, second, common)
    result = compare_images(*({key: one.images[key] for key in common} for one in (first, second)))
    counts = f"{len(common)} images of {len(first.images)} and {len(second.images)}"
    print(f"{options.first} less {options.second}, {counts}")
    print(table(result))
    if options.json:
        cameras = {
            camera: {name: comparison.to_dict() for name, comparison in measures.items()}
            for camera, measures in result.items()
        }
        record = {"first": options.first, "second": options.second, "difference": cameras}
        options.json.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return 0


@dataclass(frozen=True)
class _Evaluation:
    """What an evaluation's file says.

    Attributes:
        images: every measure by example: NaN where one is not defined, infinity for PSNR of equals.
        pictures: hash of the real picture by example, empty in files of older versions. protocol: "" if it is not said.
    """

    place: str
    images: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, str]
    protocol: str


def _check_same(first: _Evaluation, second: _Evaluation, keys: Sequence[str]) -> None:
    """Refuse to compare figures of one name that are of different pictures, or were made by different protocols."""
    places = f"{first.place} and {second.place}"
    if first.protocol and second.protocol and first.protocol != second.protocol:
        raise CommandError(
            f"{places} were scored by different protocols: {first.protocol!r} is not {second.protocol!r}"
        )
    known = [key for key in keys if key in first.pictures and key in second.pictures]
    if others := [key for key in known if first.pictures[key] != second.pictures[key]]:
        raise CommandError(
            f"{places} were not scored on the same pictures: the real one of {others[0]} differs, and so for "
            f"{len(others)} of {len(keys)} names that both have"
        )
    if len(known) < len(keys):
        older = [one.place for one in (first, second) if not one.pictures.keys() >= set(keys)]
        print(
            f"warning: {' and '.join(older)} cannot tell which pictures were scored (older evaluate --json): "
            "equal names are taken for equal pictures",
            file=sys.stderr,
        )


def _read_evaluation(place: str) -> _Evaluation:
    from diffv2ir.measures import IMAGE_MEASURES

    path, _, baseline = place.rpartition(":")
    if not path or baseline not in BASELINES:
        path, baseline = place, ""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        images = record["baseline_images"][baseline] if baseline else record["images"]
        rows = {}
        for key, row in images.items():
            names = [measure.name for measure in IMAGE_MEASURES if measure.name in row]
            rows[key] = {"source": row.get("source"), "psnr": row["psnr"], "ssim": row["ssim"]}
            for name in names:
                undefined = math.inf if name == "psnr" else math.nan
                rows[key][name] = undefined if row[name] is None else float(row[name])
        return _Evaluation(place, rows, dict(record.get("pictures") or {}), record.get("protocol") or "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f" with {baseline}" if baseline else ""
        raise CommandError(f"{path} is not a file that evaluate --json wrote{what}: {error}") from error
