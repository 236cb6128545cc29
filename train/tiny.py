"""Train the tiny bundle, all stages: `python -m train.tiny --data DIR --output DIR`."""

import argparse
from pathlib import Path

from diffv2ir.training.tiny import train_tiny
from train.launch import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder: manifest.jsonl, or rgb/ ir/ [seg/]")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; start again to resume")
    parser.add_argument("--configs", type=Path, default=Path(__file__).parent / "configs" / "tiny")
    parser.add_argument("--hold-phases", action="store_true", help="pack base and phase 1 too, for the page's Figure I")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    arguments = parser.parse_args()
    run(
        lambda: train_tiny(arguments.data, arguments.output, arguments.configs, arguments.hold_phases),
        arguments.threads,
    )


if __name__ == "__main__":
    main()
