"""Data sets at scale: `python -m train.data build|audit|annotate ...`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffv2ir.bundle import resolve
from diffv2ir.data import DataError, read_examples
from diffv2ir.data.annotation_job import ENGINES, annotate
from diffv2ir.data.audit import audit, is_held_out, write_sheet
from diffv2ir.data.build import build
from diffv2ir.data.cleaning import STAGES, CleaningConfig
from diffv2ir.data.sources import SOURCES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; what the user can mend is one clear line and exit code 1, Ctrl-C one and 130."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        return options.command(options)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped{options.after_stop}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="build|audit|annotate")
    one = commands.add_parser("build", help="read public data sets, clean them, split by scene, write shards")
    one.set_defaults(
        command=_build, after_stop=": give the same command again, and what is measured is not measured again"
    )
    one.add_argument("--source", type=_source, action="append", required=True, metavar="NAME=PATH",
                     help=f"a data set as its authors publish it; NAME is one of {', '.join(SOURCES)}")  # fmt: skip
    one.add_argument("--to", type=Path, required=True, help="folder that is not there yet")
    default = CleaningConfig()
    one.add_argument("--smallest", type=int, default=default.smallest, help="pixels of the shorter side")
    one.add_argument("--contrast", type=float, default=default.contrast, help="standard deviation of gray levels")
    one.add_argument("--black", type=float, default=default.black, help="share of black warp border")
    one.add_argument("--near", type=int, default=default.near, help="bits of 256 that near-duplicates differ by")
    one.add_argument("--alignment", type=float, default=default.alignment, help="edge measure of misaligned pairs")
    one.add_argument("--skip", action="append", default=[], choices=STAGES[1:], help="a stage that drops nothing")
    one.add_argument("--test-fraction", type=float, default=0.1, help="of scenes that no official split settles")
    one.add_argument("--keep-official", action="store_true",
                     help="leave every image on its authors' side, also where that cuts through a scene")  # fmt: skip
    one.add_argument("--shard-length", type=int, default=1000, help="examples in a shard")
    one.add_argument("--workers", type=int, default=1, help="processes that read the images")
    two = commands.add_parser("audit", help="find near-duplicates across the split of data set folders")
    two.set_defaults(command=_audit, after_stop="")
    two.add_argument("data", type=Path, nargs="+", help="folders; several are taken as one data set")
    two.add_argument("--held-out", type=Path, action="append", default=[], metavar="DIR",
                     help="another folder, all of which counts as test; can be given several times")  # fmt: skip
    two.add_argument("--near", type=int, default=default.near, help="bits of 256 that near-duplicates differ by")
    two.add_argument("--json", type=Path, help="write the report and every leak here")
    two.add_argument("--sheet", type=Path, help="write a JPEG of up to 24 leaks here")
    two.add_argument("--workers", type=int, default=1, help="processes that read the images")
    three = commands.add_parser("annotate", help="caption and segment the visible images of shards, resumably")
    three.set_defaults(
        command=_annotate, after_stop=": give the same command again, and the shards that are not done are annotated"
    )
    three.add_argument("data", type=Path, help="folder that `build` made")
    three.add_argument("--bundle", required=True, help="whose captioner and segmenter: as --bundle of the page")
    three.add_argument("--workers", type=int, default=1, help="processes, or actors of Ray; a GPU each")
    three.add_argument("--engine", choices=ENGINES, default="local", help="ray: on a cluster, through Ray Data")
    return parser


def _source(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, such as m3fd=/data/M3FD, got {text!r}")
    return name, Path(path)


def _build(options: argparse.Namespace) -> int:
    config = CleaningConfig(
        options.smallest, options.contrast, options.black, options.near, options.alignment, tuple(options.skip)
    )
    report = build(
        options.source,
        options.to,
        config,
        test_fraction=options.test_fraction,
        keep_official=options.keep_official,
        shard_length=options.shard_length,
        workers=options.workers,
    )
    print(json.dumps(report, indent=2))
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _audit(options: argparse.Namespace) -> int:
    """Exit code 1 when something leaks, or there is no split that could, so that a script can stop."""
    examples = [example for folder in options.data for example in read_examples(folder)]
    examples += [replace(example, split="test") for folder in options.held_out for example in read_examples(folder)]
    held_out = sum(map(is_held_out, examples))
    if held_out in (0, len(examples)):
        splits = ", ".join(sorted({example.split for example in examples}))
        what = "everything is held out" if held_out else "nothing is held out"
        raise DataError(
            f"{what}, there is no split to audit: {len(examples):,} examples, all in {splits}; --held-out names a "
            "folder that is not trained on"
        )
    leaks, report = audit(examples, options.near, options.workers)
    if options.json:
        pairs = [
            {"held_out": leak.held_out.id, "trained": leak.trained.id, "same_scene": leak.same_scene} for leak in leaks
        ]
        options.json.write_text(json.dumps(report | {"leaks": pairs}, indent=2) + "\n")
    if options.sheet and leaks:
        write_sheet(leaks, options.sheet)
    print(_table(report))
    print(f"{len(leaks)} pair(s) of near-duplicates lie across the split")
    print("`python -m train.ablate table1` measures what copies and shared scenes in train do to a score")
    return 1 if leaks else 0


def _annotate(options: argparse.Namespace) -> int:
    images = annotate(options.data, resolve(options.bundle), options.workers, options.engine)
    print(f"{images:,} images annotated")
    return 0


def _table(report: dict) -> str:
    """Markdown: held-out examples with a near-duplicate ("copy"), or a frame of their scene, in train."""
    lines = [
        "| held out | examples | copy in train | scene in train | copy, random split | scene, random split |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group, here in report["as_split"].items():
        other = report["random_split"][group]
        cells = [group, here["held_out"], here["near_duplicates"], here["same_scene"], other["near_duplicates"]]
        lines.append("| " + " | ".join(map(str, [*cells, other["same_scene"]])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
