"""The commands that are about models as files: `fetch NAME`, `bundles`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffv2ir.hub import SOURCES, locate


def add_model_commands(commands: argparse._SubParsersAction) -> None:
    """`fetch` and `bundles`. The former's `run` raises HubError."""
    fetch = commands.add_parser(
        "fetch",
        help="get a model from the Hugging Face hub",
        description="Get a model from the Hugging Face hub, or what is still missing of it; prints where it is.",
        epilog="; ".join(f"{name}: {source.what}" for name, source in SOURCES.items()),
    )
    fetch.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(SOURCES)}; NAME@REVISION for another commit, branch or tag; a local path is printed as it is",
    )
    fetch.add_argument("--to", type=Path, metavar="DIR", help="folder for it (default: the hub's cache)")
    fetch.set_defaults(run=run_fetch)

    bundles = commands.add_parser(
        "bundles",
        help="list the bundles and models that are here",
        description="List the bundles and models that are here: tiny, bundles in bundles/ and the results of trainings "
        "in runs/ below this folder, what the paper's checkpoints were converted to, and what the hub's cache has.",
    )
    bundles.add_argument(
        "folders", nargs="*", type=Path, metavar="PATH", help="other bundles, models and checkpoints to look at"
    )
    bundles.set_defaults(run=run_bundles)


def run_fetch(options: argparse.Namespace) -> int:
    print(locate(options.name, options.to, tell=lambda sentence: print(sentence, file=sys.stderr)))
    return 0


def run_bundles(options: argparse.Namespace) -> int:
    from diffv2ir.inventory import inventory

    for entry in inventory(options.folders):
        print(f"{entry.name}: {entry.what}, {entry.size / 1e6:.1f} MB, {'INCOMPLETE' if entry.problem else 'complete'}")
        print(f"  {entry.folder}")
        for line in entry.problem.splitlines():
            print(f"  {line}")
    return 0
