"""Write the model card of a trained bundle from its training run and its scores."""

import argparse
from pathlib import Path

from diffv2ir.training.card import write_card
from train.launch import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="output folder of train.tiny; without it the stages stay as they are")
    parser.add_argument("--bundle", type=Path, required=True, help="folder that gets README.md and curves.png")
    parser.add_argument("--general", type=Path, required=True, help="scores of the style general on all cameras")
    parser.add_argument(
        "--style", nargs="*", default=[], metavar="NAME=FILE", help="scores of a style on its own camera"
    )
    parser.add_argument("--choice", type=Path, required=True, help="table of benchmarks.choose_defaults")
    parser.add_argument("--template", type=Path, default=Path(__file__).with_name("card.md"))
    arguments = parser.parse_args()

    def write() -> Path:
        wrong = [entry for entry in arguments.style if "=" not in entry]
        if wrong:
            raise ValueError(f"--style wants NAME=FILE, got {', '.join(wrong)}")
        styles = {name: Path(file) for name, file in (entry.split("=", 1) for entry in arguments.style)}
        return write_card(
            arguments.template, arguments.run, arguments.bundle, arguments.general, styles, arguments.choice
        )

    run(write)


if __name__ == "__main__":
    main()
