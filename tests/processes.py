"""What `test_processes.py` runs in each of two processes: one folder of tasks, done together over gloo."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from diffv2ir.data import read_examples
from diffv2ir.training.config import load_config
from diffv2ir.training.loop import Loop, LoopConfig
from diffv2ir.training.phases import PhaseConfig, train_phase

COUNT, BATCH = 6, 4


def make_loop(output: Path, steps: int) -> Loop:
    """A small model. `output` gets what each process saw (`seen-RANK-of-COUNT.json`) and who saved (`writers`)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    output.mkdir(parents=True, exist_ok=True)
    processes, seen = os.environ.get("WORLD_SIZE", 1), []

    def loss(model, draws):
        seen.extend((draw.epoch, draw.index) for draw in draws)
        (output / f"seen-{rank()}-of-{processes}.json").write_text(json.dumps(seen))
        inputs = torch.stack([torch.randn(4, generator=draw.generator()) + draw.index for draw in draws])
        return {"loss": (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()}

    def save(folder, model):
        with (output / "writers").open("a") as file:
            file.write(f"{rank()} {folder.name}\n")

    config = LoopConfig(
        steps=steps, batch_size=BATCH, warmup_steps=1, schedule="constant", learning_rate=1e-2, ema_decay=0.5,
        checkpoint_every=3, log_every=1,
    )  # fmt: skip
    return Loop(config, output, model, loss, COUNT, save=save)


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    make_loop(folder / "alone-then-two", 6).run()
    make_loop(folder / "two-then-alone", 3).run()
    task = json.loads((folder / "phase.json").read_text())
    config = load_config(folder / "phase.yaml", PhaseConfig)
    start, vlum, output = (Path(task[name]) for name in ("start", "vlum", "output"))
    train_phase(
        config, read_examples(Path(task["data"]), split="train"), start, output, cache=output / "cache", vlum=vlum
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
