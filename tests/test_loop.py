import contextlib
import errno
import importlib
import io
import json
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import training_utils
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from diffv2ir.training import loop as loop_module
from diffv2ir.training.loop import Loop, LoopConfig, Sampler, TrainingError, latest_checkpoint, mix_seed


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def noisy_loss(model, draws):
    inputs = torch.stack([torch.randn(4, generator=draw.generator()) + draw.index for draw in draws])
    return {"loss": (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()}


def make_loop(output, steps=6, loss=noisy_loss, **options):
    config = LoopConfig(steps=steps, batch_size=4, warmup_steps=2, checkpoint_every=2, log_every=2, ema_decay=0.9)
    config = LoopConfig(**{**config.__dict__, **options})
    return Loop(config, output, make_model(), loss, count=5)


class Killed(Exception):
    pass


def test_a_run_that_stops_and_resumes_ends_with_the_same_weights(tmp_path):
    whole = make_loop(tmp_path / "whole").run().state_dict()

    calls = 0

    def dying_loss(model, draws):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return noisy_loss(model, draws)

    with pytest.raises(Killed):
        make_loop(tmp_path / "halves", loss=dying_loss).run()
    assert latest_checkpoint(tmp_path / "halves").name == "step-0000002"
    resumed = make_loop(tmp_path / "halves").run().state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}])
def test_what_the_turns_of_the_examples_depend_on_stays(tmp_path, change):
    make_loop(tmp_path, 2).run()
    [(name, now)] = change.items()
    with pytest.raises(TrainingError, match=f"was trained with {name} .*, not {now}: set it back"):
        make_loop(tmp_path, **change).run()


def test_another_weight_decay_is_taken(tmp_path):
    make_loop(tmp_path, 2).run()
    loop = make_loop(tmp_path, weight_decay=0.5)
    loop._resume()
    assert {group["weight_decay"] for group in loop.optimizer.param_groups} == {0.5}


def test_the_time_of_a_step_is_without_validations(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: now[0])

    def loss(model, draws):
        now[0] += 1
        return noisy_loss(model, draws)

    def validate(model, step):
        now[0] += 100
        return {"psnr": 1.0}

    loop = make_loop(tmp_path, loss=loss, log_every=4, validate_every=3)
    loop.validate = validate
    loop.run()
    assert [row["seconds_per_step"] for row in loop.history if "seconds_per_step" in row] == [1.0, 1.0]


def test_gradients_are_computed_outside_autocast(tmp_path):
    class Recorded(torch.autograd.Function):
        seen = []

        @staticmethod
        def forward(ctx, values):
            Recorded.seen.append(torch.is_autocast_enabled("cpu"))
            return values.clone()

        @staticmethod
        def backward(ctx, gradients):
            Recorded.seen.append(torch.is_autocast_enabled("cpu"))
            return gradients

    def loss(model, draws):
        return {"loss": Recorded.apply(noisy_loss(model, draws)["loss"])}

    make_loop(tmp_path, 1, loss=loss, mixed_precision="bf16").run()
    assert Recorded.seen == [True, False]


def test_average_on_the_cpu_is_the_same_and_survives_a_stop(tmp_path):
    expected = make_loop(tmp_path / "model").run().state_dict()

    def dying_loss(model, draws):
        if draws[0].position >= 4 * 4:
            raise Killed
        return noisy_loss(model, draws)

    with pytest.raises(Killed):
        make_loop(tmp_path / "cpu", loss=dying_loss, ema_device="cpu").run()
    assert latest_checkpoint(tmp_path / "cpu").name == "step-0000004"
    averaged = make_loop(tmp_path / "cpu", ema_device="cpu").run().state_dict()
    for key, value in averaged.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux says what is mapped")
def test_resuming_reads_the_state_once_and_leaves_the_file(tmp_path, monkeypatch):
    """Every process resumes: at full size, whole copies of the state in main memory are gigabytes each."""
    make_loop(tmp_path, 3).run()
    loop, load, copied = make_loop(tmp_path, 3), torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **o: load(*a, **o) if o["mmap"] else pytest.fail("read at once"))
    copy = training_utils.copy.deepcopy
    monkeypatch.setattr(training_utils.copy, "deepcopy", lambda thing, *a: copied.append(thing) or copy(thing, *a))
    loop._resume()
    assert loop.step == 3 and not any(isinstance(thing, torch.Tensor) for thing in copied)
    assert "trainer.pt" not in Path("/proc/self/maps").read_text()


def test_8bit_adam_is_that_of_bitsandbytes(tmp_path, monkeypatch):
    class AdamW8bit(torch.optim.AdamW):
        pass

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=AdamW8bit))
    assert isinstance(make_loop(tmp_path, optimizer="adamw8bit").optimizer.optimizer, AdamW8bit)


def test_8bit_moments_survive_a_stop(tmp_path):
    """With the package itself, where it is installed and can do it on this machine."""
    required = bool(os.environ.get("DIFFV2IR_REQUIRE_8BIT"))
    bitsandbytes = importlib.import_module("bitsandbytes") if required else pytest.importorskip("bitsandbytes")
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    try:
        bitsandbytes.optim.AdamW8bit([weight]).step()
    except (RuntimeError, AttributeError) as error:  # older ones lack the functions of a CPU
        if required:
            raise
        pytest.skip(f"this bitsandbytes cannot do it here: {error}")

    def run(folder, *stops):
        for steps in stops:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 1))
            config = LoopConfig(
                steps=steps, batch_size=4, checkpoint_every=2, schedule="constant", learning_rate=1e-2,
                optimizer="adamw8bit", ema_decay=0.5,
            )  # fmt: skip
            loop = Loop(config, tmp_path / folder, model, noisy_loss, count=5)
            loop.run()
        kept = loop.optimizer.optimizer.state[model[1].weight]  # of smaller weights the moments are in 32 bits
        assert kept["state1"].dtype == kept["state2"].dtype == torch.uint8 and kept["state1"].float().std() > 0
        return model.state_dict()

    whole, halves = run("whole", 6), run("halves", 4, 6)
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    def loss(model, draws):
        inputs = torch.stack([torch.randn(4, generator=draw.generator()) for draw in draws])
        return {"loss": (model[2](model[0](inputs)) - 1).square().mean()}

    gradients = []
    for name, options in (("a", {}), ("b", {"micro_batch_size": 1})):
        loop = make_loop(tmp_path / name, loss=loss, max_grad_norm=1e9, **options)
        # Adam does not mind the scale of gradients: look at them, not at the weights.
        loop.optimizer.step = lambda loop=loop: gradients.append([p.grad.clone() for p in loop.parameters])
        loop._optimizer_step()
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries stay as they are")
def test_memory_that_is_freed_stays_for_the_next_step(tmp_path):
    resource = pytest.importorskip("resource")
    make_loop(tmp_path)  # on a CPU

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(1 << 24)  # 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 1000


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_attention_is_plain_where_the_gradients_of_the_fused_one_are_slow(tmp_path, precision):
    fused = []

    def loss(model, draws):
        fused.append(torch.backends.cuda.flash_sdp_enabled())  # the switch of the CPU's, too
        return noisy_loss(model, draws)

    make_loop(tmp_path, steps=2, loss=loss, mixed_precision=precision).run()
    assert fused == [precision == "no"] * 2 and torch.backends.cuda.flash_sdp_enabled()


def test_what_is_told_now_and_then_is_averaged_over_these_times(tmp_path):
    def loss(model, draws):
        told = {"high": torch.tensor(3.0)} if draws[0].position % 8 == 1 else {}  # of one chunk in every second step
        return {**noisy_loss(model, draws), **told}

    loop = make_loop(tmp_path, loss=loss, micro_batch_size=1, log_every=4)
    loop.run()
    assert loop.history[0]["high"] == 3.0


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"ema_decay": 0.0}, {}, "has no state for ema_decay 0.9, it was trained with 0.0"),
        ({}, {"optimizer": "adamw8bit"}, "has no state for optimizer adamw8bit, it was trained with adamw"),
    ],
)
def test_a_state_of_another_kind_is_refused(before, now, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=torch.optim.AdamW))
    make_loop(tmp_path, steps=2, **before).run()
    with pytest.raises(TrainingError, match=f"step-0000002 {message}: set it back"):
        make_loop(tmp_path, **now).run()
    make_loop(tmp_path, **before).run()


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    def exploding(model, draws):
        loss = noisy_loss(model, draws)["loss"]
        return {"loss": loss * float("nan") if draws[0].position >= 12 else loss}

    with pytest.raises(TrainingError, match=r"step 4 gave loss nan.*Last good checkpoint: step-0000002"):
        make_loop(tmp_path, loss=exploding).run()
    state = torch.load(latest_checkpoint(tmp_path) / "trainer.pt", weights_only=True)
    assert state["step"] == 2 and all(torch.isfinite(p).all() for p in state["parameters"])


def test_an_overflow_of_half_precision_skips_the_step(tmp_path, monkeypatch):
    """What a GPU does with fp16, on the CPU: gradients times a scale that is too large at first."""
    loop = make_loop(tmp_path, steps=6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    loop.accelerator.scaler, loop.accelerator.native_amp = scaler, True
    loop.optimizer = AcceleratedOptimizer(loop.optimizer.optimizer, device_placement=False, scaler=scaler)
    loop.accelerator._optimizers = [loop.optimizer]
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    monkeypatch.setattr(Accelerator, "autocast", lambda self: contextlib.nullcontext())
    before = [parameter.detach().clone() for parameter in loop.parameters]
    loop._optimizer_step()
    assert loop.optimizer.step_was_skipped and scaler.get_scale() == 2.0**126
    assert all(torch.equal(a, b) for a, b in zip(before, loop.parameters, strict=True))
    scaler.update(2.0**10)
    loop.run()
    assert not any(torch.equal(a, b) for a, b in zip(before, loop.parameters, strict=True))
    assert torch.load(latest_checkpoint(tmp_path) / "trainer.pt", weights_only=True)["scaler"]["scale"] == 2.0**10
    scaler.update(1.0)
    loop.step, loop.loss = 0, lambda model, draws: {"loss": noisy_loss(model, draws)["loss"] * 1e30}
    with pytest.raises(TrainingError, match="gradient norm inf"):  # the scale is not what is wrong
        loop._optimizer_step()


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    make_loop(tmp_path, steps=2).run()
    before = (latest_checkpoint(tmp_path) / "trainer.pt").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop_module.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make_loop(tmp_path, steps=4).run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]
    assert (latest_checkpoint(tmp_path) / "trainer.pt").read_bytes() == before


def test_old_checkpoints_go_and_history_stays(tmp_path):
    make_loop(tmp_path, steps=8, keep_checkpoints=2).run()
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-0000006", "step-0000008"]
    history = json.loads((latest_checkpoint(tmp_path) / "history.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [2, 4, 6, 8]


def test_saved_and_validated_weights_are_the_average(tmp_path):
    seen = {}

    def save(folder, model):
        seen["saved"] = model[0].weight.clone()

    config = LoopConfig(steps=3, batch_size=4, checkpoint_every=3, validate_every=3, ema_decay=0.9)
    loop = Loop(
        config, tmp_path, make_model(), noisy_loss, 5, save=save,
        validate=lambda model, step: seen.update(validated=model[0].weight.clone()) or {"figure": 1.0},
    )  # fmt: skip
    averaged = loop.run()[0].weight
    raw = torch.load(latest_checkpoint(tmp_path) / "trainer.pt", weights_only=True)["parameters"][0]
    assert torch.equal(seen["saved"], averaged) and torch.equal(seen["validated"], averaged)
    assert not torch.equal(raw, averaged)


def test_sampler_visits_each_example_once_an_epoch():
    draws = [draw for step in range(5) for draw in Sampler(10, seed=3).draws(step, 4)]
    assert sorted(d.index for d in draws[:10]) == list(range(10)) == sorted(d.index for d in draws[10:])
    assert [d.index for d in draws[:10]] != [d.index for d in draws[10:]]


def test_sampler_honours_weights():
    sampler = Sampler(3, seed=0, weights=[0.0, 1.0, 3.0])
    counts = torch.bincount(torch.tensor([d.index for step in range(400) for d in sampler.draws(step, 3)]), minlength=3)
    assert counts[0] == 0 and 2.4 < counts[2] / counts[1] < 3.7


def test_seeds_of_neighbours_differ():
    assert len({mix_seed(a, b) for a in range(50) for b in range(50)}) == 2500


@pytest.mark.parametrize(
    "field, value",
    [("steps", 0), ("schedule", "linear"), ("ema_decay", 1.0), ("optimizer", "sgd"), ("ema_device", "cuda")],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        LoopConfig(**{"steps": 1, field: value})


def test_scalars_and_sample_images_are_in_tensorboard(tmp_path):
    picture = Image.new("RGB", (6, 4), "red")
    config = LoopConfig(steps=4, batch_size=2, log_every=2, checkpoint_every=4, validate_every=4, ema_decay=0.0)
    loop = Loop(
        config, tmp_path, make_model(), noisy_loss, 5,
        validate=lambda model, step: {"validation/psnr": 20.0, "validation/samples": picture},
    )  # fmt: skip
    loop.run()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    assert events.Scalars("validation/psnr")[0].value == 20.0
    (sample,) = events.Images("validation/samples")
    assert (sample.step, sample.width, sample.height) == (4, 6, 4)
    assert Image.open(io.BytesIO(sample.encoded_image_string)).getpixel((0, 0)) == (255, 0, 0)
    assert {"step": 4, "validation/psnr": 20.0} in loop.history
