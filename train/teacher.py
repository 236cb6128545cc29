"""The teacher of phase 2 for a small UNet: pictures that a decoder on ImageNet features predicts for its photos."""

import argparse
from pathlib import Path

from diffv2ir.data import check_examples, read_parts
from diffv2ir.training.config import load_config
from diffv2ir.training.teacher import TeacherConfig, train_teacher
from train.launch import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder: manifest.jsonl, or rgb/ ir/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; start again to resume")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "tiny" / "teacher.yaml")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    arguments = parser.parse_args()

    def train() -> Path:
        config = load_config(arguments.config, TeacherConfig)
        examples, _ = read_parts(arguments.data, config.validation_fraction, lambda e: e.kind in config.kinds)
        check_examples(examples)
        return train_teacher(examples, arguments.output, config)

    run(train, arguments.threads)


if __name__ == "__main__":
    main()
