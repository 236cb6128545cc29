"""What `test_processes.py` runs in each of two processes: one folder of tasks, done together over gloo."""

import json
import os
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.distributed import distributed_c10d

from diffv2ir.data import read_examples
from diffv2ir.training import cache as cache_module
from diffv2ir.training import loop as loop_module
from diffv2ir.training.config import load_config
from diffv2ir.training.loop import Loop, LoopConfig
from diffv2ir.training.phases import PhaseConfig, train_phase
from diffv2ir.training.sharding import shard
from train import launch

COUNT, BATCH = 6, 4
# Of one process's first map. Torch's own patience is made shorter than that.
SLOW, PATIENCE = 8, timedelta(seconds=6)


def make_loop(output: Path, steps: int, shard: bool = False) -> Loop:
    """A small model. `output` gets what each process saw (`seen-RANK-of-COUNT.json`) and who saved (`writers`)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model._no_split_modules = ["Linear"]
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
        checkpoint_every=3, log_every=1, shard=shard,
    )  # fmt: skip
    return Loop(config, output, model, loss, COUNT, save=save)


def recorded_shard(record: Path, *arguments) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    record.touch()
    shard(*arguments)


def record_caches(folder: Path) -> None:
    """`folder` gets the names of what each process puts into the caches (`made-RANK`), the first process slowly."""
    write, draw, slow = cache_module.write_file_atomically, cache_module.segmentation_map, [rank() == 0]

    def recorded_write(path, *arguments, **options):
        with (folder / f"made-{rank()}").open("a") as file:
            file.write(f"{path}\n")
        write(path, *arguments, **options)

    def slow_map(*arguments):
        if slow[0]:
            time.sleep(SLOW)
            slow[0] = False
        return draw(*arguments)

    cache_module.write_file_atomically, cache_module.segmentation_map = recorded_write, slow_map


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed_c10d.default_pg_timeout = PATIENCE
    record_caches(folder)
    make_loop(folder / "alone-then-two", 6).run()
    copied = make_loop(folder / "two-then-alone", 3)
    copied.run()
    buckets = {parameter.grad.untyped_storage().data_ptr() for parameter in copied.parameters}
    (folder / f"buckets-{rank()}").write_text(f"{len(buckets)} of {len(copied.parameters)}")
    make_loop(folder / "alone-then-shared", 6, shard=True).run()
    make_loop(folder / "shared-then-alone", 3, shard=True).run()
    loop = make_loop(folder / "shared", 6, shard=True)
    parts = [parameter.to_local().numel() for parameter in loop.parameters]
    whole = loop.run()
    torch.save((parts, whole.state_dict() if rank() == 0 else None), folder / f"shared-{rank()}.pt")
    task = json.loads((folder / "phase.json").read_text())
    examples = read_examples(Path(task["shards"]), split="train")
    start, vlum = Path(task["start"]), Path(task["vlum"])
    for name, output in task["outputs"].items():
        config, output = load_config(folder / f"{name}.yaml", PhaseConfig), Path(output)
        loop_module.shard = partial(recorded_shard, output / f"shard-{rank()}")
        train_phase(config, examples, vlum if config.phase == "3" else start, output, cache=output / "cache", vlum=vlum)
    options = ["--data", task["data"], "--start", task["start"], "--vlum", task["vlum"], "--threads", "1"]
    sys.argv = ["phase2", *options, "--output", task["command"], "--config", str(folder / "copied.yaml")]
    launch.run_phase("2", "sd15/phase2.yaml", "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
