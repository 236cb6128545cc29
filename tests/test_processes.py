"""Two processes, over gloo on the CPU, train as one does: the same weights, each example once an epoch, one writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from make_data import make_manifest_dataset, make_start_folder
from processes import COUNT, make_loop
from safetensors.torch import load_file
from torch import nn

from diffv2ir import bundle
from diffv2ir.data import read_examples
from diffv2ir.data.build import build
from diffv2ir.data.cleaning import CleaningConfig
from diffv2ir.lines import read_pairs
from diffv2ir.training.config import load_config
from diffv2ir.training.loop import LoopConfig, _check_sharing
from diffv2ir.training.phases import PhaseConfig, train_phase
from diffv2ir.training.sharding import shard

TESTS = Path(__file__).parent
CLOSE = dict(rtol=1e-4, atol=1e-5)
# Adam divides by the gradient's size. With this seed none is rounding alone, which would make a step of rounding.
PHASE = """
phase: "2"
loop: {seed: 1, steps: 2, batch_size: 4, micro_batch_size: 1, warmup_steps: 1, ema_decay: 0.5, max_grad_norm: 1.0e+9}
view: {resize: 18, crop: 16, variants: 1}
validation_fraction: 0.0
own_captions: true
"""
ADAPTER = """
phase: "3"
style: dusk
lora: {rank: 2, alpha: 2, targets: [to_q, conv1]}
gradient_checkpointing: true
map_style: regions
"""
SHARED = PHASE.replace("{seed", "{shard: true, seed")
PHASES = {
    "copied": PHASE,
    "shared": SHARED,
    "shared-adapter": SHARED.replace('\nphase: "2"\n', ADAPTER).replace("ema_decay: 0.5", "ema_decay: 0"),
}
HALF = "shared-half"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(bundle_folder, tmp_path_factory):
    """The tasks of `processes.py`, done by two processes. They read shards, but for the command."""
    folder = tmp_path_factory.mktemp("processes")
    data = make_manifest_dataset(folder / "data", pairs=5, infrared=0)
    build([("folder", data)], folder / "shards", CleaningConfig(smallest=8, skip=("duplicate", "misaligned")))
    start = make_start_folder(bundle_folder, folder / "start")
    task = {"data": str(data), "shards": str(folder / "shards"), "start": str(start), "vlum": str(bundle_folder)}
    texts = {**PHASES, HALF: SHARED.replace("{shard", "{mixed_precision: bf16, shard")}
    task["outputs"] = {name: str(folder / "runs" / name) for name in texts}
    task["command"] = str(folder / "runs" / "command")
    (folder / "phase.json").write_text(json.dumps(task))
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    for name in ("alone-then-two", "alone-then-shared"):
        make_loop(folder / name, 3).run()
    (folder / "stdout").write_text(run_two(TESTS / "processes.py", folder))
    return folder


def run_two(*command):
    """Standard output of `accelerate launch` with two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # With --cpu accelerate starts several processes by MPI alone.
    launcher = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    ended = subprocess.run(
        [sys.executable, "-m", *launcher.split(), f"--main_process_port={port}", *map(str, command)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process makes in six steps, and its losses."""
    loop = make_loop(tmp_path_factory.mktemp("whole"), 6)
    return loop.run().state_dict(), [entry["loss"] for entry in loop.history]


def trained(folder, name, output):
    """A phase's configuration, what it starts from, and the weights that one process and that two make of it."""
    task, config = json.loads((folder / "phase.json").read_text()), load_config(folder / f"{name}.yaml", PhaseConfig)
    start = Path(task["vlum" if config.lora else "start"])
    alone = train_phase(
        config, read_examples(Path(task["data"]), split="train"), start, output / "run",
        cache=output / "cache", vlum=Path(task["vlum"]),
    )  # fmt: skip
    file = f"styles/dusk/{bundle.ADAPTER}" if config.lora else WEIGHTS
    own, of_two = (load_file(result / file) for result in (alone, folder / "runs" / name / "result"))
    assert own.keys() == of_two.keys()
    return config, start, own, of_two


@pytest.mark.parametrize("name", PHASES)
def test_two_processes_train_a_unet_on_shards_as_one_does_on_their_folder(folder, name, tmp_path):
    config, start, own, of_two = trained(folder, name, tmp_path)
    for key, value in own.items():
        torch.testing.assert_close(of_two[key], value, **CLOSE)
    if config.lora:
        assert any(value.abs().max() > 0 for key, value in own.items() if "lora_B" in key)  # zero before the training
    else:
        changed = "mid_block.resnets.0.conv1.weight"
        assert not torch.equal(load_file(start / WEIGHTS)[changed], own[changed])
    assert len(list((folder / "runs" / name).glob("shard-*"))) == (2 if config.loop.shard else 0)


def test_two_processes_share_a_unet_in_half_precision(folder, tmp_path):
    """Each process computes in bfloat16; weights, moments and average stay in float32."""
    _, start, own, of_two = trained(folder, HALF, tmp_path)
    before, full = load_file(start / WEIGHTS), load_file(folder / "runs" / "shared" / "result" / WEIGHTS)

    def apart(others):
        """Mean over all weights but those of the widened layer."""
        parts = [(own[key] - others[key]).abs().flatten() for key in before if own[key].shape == before[key].shape]
        return float(torch.cat(parts).mean())

    # After a step, rounding alone makes a weight another bfloat16 here and there.
    assert apart(of_two) < 0.02 * apart(before) and apart(of_two) < 0.5 * apart(full)
    assert all(weight.dtype == torch.float32 for weight in of_two.values())
    assert len(list((folder / "runs" / HALF).glob("shard-*"))) == 2


def test_the_command_trains_with_two_processes(folder):
    result = folder / "runs" / "command" / "result"
    assert (folder / "stdout").read_text().split() == [str(result)]  # by one of them
    bundle.check(result)


def test_each_process_fills_its_part_of_the_caches(folder):
    """Of which one takes longer than torch would wait by itself: without `PATIENCE` there is no result at all."""
    parts = [set((folder / f"made-{rank}").read_text().splitlines()) for rank in (0, 1)]
    assert all(parts) and not parts[0] & parts[1]
    caches = [path / "cache" for path in (folder / "runs").iterdir()]
    entries = [path for cache in caches for path in cache.rglob("*") if path.suffix in (".png", ".safetensors")]
    assert parts[0] | parts[1] == set(map(str, entries))
    for cache in caches:
        assert len(list((cache / "maps").rglob("*.png"))) == len(list((cache / "latents").rglob("*.safetensors"))) == 4
        assert sum(len(read_pairs(path)) for path in cache.glob("captions-*-of-2.jsonl")) == 4
        hashes = sum(len(read_pairs(path)) for path in cache.glob("hashes-*-of-2.jsonl"))
        assert hashes == (8 if cache.parent.name == "command" else 0)  # those of shards are in the manifest


@pytest.mark.parametrize("name", ["alone-then-two", "two-then-alone", "alone-then-shared", "shared-then-alone"])
def test_another_number_of_processes_goes_on(folder, name, whole):
    loop = make_loop(folder / name, 6)
    for key, value in loop.run().state_dict().items():
        torch.testing.assert_close(value, whole[0][key], **CLOSE)
    assert [entry["loss"] for entry in loop.history] == pytest.approx(whole[1], rel=1e-4)


def test_each_process_holds_a_part_and_ends_with_the_whole(folder, whole):
    (parts, gathered), (others, _) = (torch.load(folder / f"shared-{rank}.pt") for rank in (0, 1))
    sizes = [value.numel() for value in whole[0].values()]
    assert [a + b for a, b in zip(parts, others, strict=True)] == sizes and max(parts) < max(sizes)
    for key, value in whole[0].items():
        torch.testing.assert_close(gathered[key], value, **CLOSE)


def test_gradients_lie_where_they_are_exchanged(folder):
    """Each in a storage of its own would be a second copy of all of them."""
    tensors = len(list(make_loop(folder / "unused", 1).parameters))
    assert {(folder / f"buckets-{rank}").read_text() for rank in (0, 1)} == {f"1 of {tensors}"}


def test_each_example_is_seen_once_an_epoch(folder):
    shares = [json.loads((folder / "two-then-alone" / f"seen-{rank}-of-2.json").read_text()) for rank in (0, 1)]
    first, second = ({tuple(draw) for draw in share} for share in shares)
    assert len(first) == len(second) == 6 and not first & second
    assert first | second == {(epoch, index) for epoch in (0, 1) for index in range(COUNT)}


def test_one_writes(folder):
    assert (folder / "two-then-alone" / "writers").read_text().splitlines()[0] == "0 .step-0000003.partial"
    assert {line[0] for line in (folder / "alone-then-two" / "writers").read_text().splitlines()} == {"0"}


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_other_ways_of_sharing_are_refused(kind):
    with pytest.raises(ValueError, match=f"said by `shard` .*that of accelerate says {kind.value}"):
        _check_sharing(kind)
    _check_sharing(DistributedType.MULTI_GPU)


@pytest.mark.parametrize("other", [{"ema_device": "cpu"}, {"optimizer": "adamw8bit"}])
def test_what_needs_whole_tensors_is_refused(other):
    with pytest.raises(ValueError, match="shard needs ema_device 'model' and optimizer 'adamw'"):
        LoopConfig(steps=1, shard=True, **other)


def test_a_weight_in_two_places_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="1.weight is also used elsewhere"):
        shard(model, torch.device("cpu"), 2)
