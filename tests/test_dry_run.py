"""`--dry-run`: its numbers are those of models that are really built, and it names what is missing."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from make_data import make_manifest_dataset, make_start_folder
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from diffv2ir.data import read_examples
from diffv2ir.training import dry_run as dry_run_module
from diffv2ir.training.cache import ViewConfig
from diffv2ir.training.diffusion import EMBEDDINGS_BYTES
from diffv2ir.training.dry_run import count_parameters, count_trainable, device_memory, dry_run
from diffv2ir.training.fresh import FreshConfig
from diffv2ir.training.loop import LoopConfig
from diffv2ir.training.phases import LoraSettings, PhaseConfig, prepare_unet, train_phase
from train import launch

LOOP = LoopConfig(steps=3, batch_size=4, micro_batch_size=2, warmup_steps=1, checkpoint_every=1)
LORA = LoraSettings(rank=2, alpha=2, targets=("to_q", "conv1"))
PHASES = {
    "1": PhaseConfig("1", LOOP, lora=LORA, validation_fraction=0.0),
    "2": PhaseConfig("2", LOOP, validation_fraction=0.0),
    "3": PhaseConfig("3", LOOP, style="dusk", validation_fraction=0.0),
    "3-lora": PhaseConfig("3", LOOP, style="dusk", lora=LORA, validation_fraction=0.0),
}
SD15_UNET = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    cross_attention_dim=768,
    attention_head_dim=8,
)


@pytest.fixture(scope="module")
def start(bundle_folder, tmp_path_factory):
    return make_start_folder(bundle_folder, tmp_path_factory.mktemp("start") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven pairs and four infrared images to train on; their files hold no image."""
    folder = make_manifest_dataset(tmp_path_factory.mktemp("data") / "data")
    for path in (folder / "images").iterdir():
        path.write_bytes(b"not an image")
    return folder


@pytest.mark.parametrize("name", PHASES)
def test_counts_are_those_of_built_models(name, start, bundle_folder, data):
    config, folder = PHASES[name], bundle_folder if name.startswith("3") else start
    report = dry_run(config, data, folder, bundle_folder)
    assert report.missing == () and report.batch == (2, 2)
    assert report.examples == (11 if name == "1" else 7)

    unet = prepare_unet(config, UNet2DConditionModel.from_pretrained(folder / "unet"), 4, folder)
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    assert report.footprint.trainable == count_trainable(unet)
    assert report.footprint.total == count_parameters(unet)
    assert (report.footprint.trainable < report.footprint.total) == (config.lora is not None)
    trained, everything = count_trainable(unet), count_parameters(unet) + count_parameters(text_encoder)
    assert report.footprint.memory == device_memory(config, unet, text_encoder)
    assert sum(report.footprint.memory.values()) == 4 * everything + (4 + 8 + 4) * trained


def test_options_that_save_memory(start, bundle_folder, data, monkeypatch):
    for module in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    loop = replace(LOOP, optimizer="adamw8bit", ema_device="cpu")
    small = dry_run(replace(PHASES["2"], loop=loop), data, start, bundle_folder)
    (problem,) = small.missing
    assert "pip install bitsandbytes" in problem
    full, trained = dry_run(PHASES["2"], data, start, bundle_folder).footprint, small.footprint.trainable
    assert small.footprint.memory == full.memory | {"optimizer": 2 * trained, "average": 0}
    assert full.main_memory == {"text embeddings": EMBEDDINGS_BYTES, "average": 0}
    assert small.footprint.main_memory == full.main_memory | {"average": 4 * trained}
    assert "at most 1.07 GB per process, besides the program: text embeddings 1.07 GB, average 0.00 GB" in str(small)
    half = dry_run(replace(PHASES["2"], frozen_dtype="bf16"), data, start, bundle_folder).footprint
    text_encoder = count_parameters(CLIPTextModel.from_pretrained(start / "text_encoder"))
    assert full.memory["weights"] - half.memory["weights"] == 2 * text_encoder
    assert full.checkpoint - small.footprint.checkpoint == (8 - 2) * trained


def test_text_names_batch_epochs_and_sizes(start, bundle_folder, data):
    text = str(dry_run(PHASES["2"], data, start, bundle_folder))
    assert "4 = 1 process(es) x 2 in a forward pass x 2 accumulated" in text
    assert "3 = 1.7 epochs of 7 examples" in text
    assert "2 checkpoints" in text and text.endswith("nothing is missing")


def test_fresh_views_take_no_disk(start, bundle_folder, data):
    kept = replace(PHASES["2"], view=ViewConfig(variants=10**6))
    texts = [str(dry_run(replace(kept, fresh=fresh), data, start, bundle_folder)) for fresh in (None, FreshConfig())]
    assert ["latents at most 0.00 GB" in text for text in texts] == [False, True]


@pytest.mark.parametrize("name", ["1", "2", "3-lora"])
def test_checkpoint_and_latents_take_what_was_said(name, start, bundle_folder, tmp_path):
    folder = bundle_folder if name.startswith("3") else start
    config = replace(PHASES[name], view=ViewConfig(resize=18, crop=16, variants=1))
    data = make_manifest_dataset(tmp_path / "data", pairs=3, infrared=1)
    footprint = dry_run(config, data, folder, bundle_folder).footprint
    train_phase(
        config,
        read_examples(data, split="train"),
        folder,
        tmp_path / "run",
        cache=tmp_path / "cache",
        vlum=bundle_folder,
    )
    unchanged = {path.stat().st_ino for place in (folder, bundle_folder) for path in place.rglob("*")}
    files = (tmp_path / "run" / "checkpoints" / "step-0000003").rglob("*")
    written = sum(path.stat().st_size for path in files if path.is_file() and path.stat().st_ino not in unchanged)
    # Names, shapes and configurations come on top: some 600 bytes for each tensor, of which a tiny model has many.
    assert footprint.checkpoint < written < footprint.checkpoint + 450_000
    for path in (tmp_path / "cache" / "latents").rglob("*.safetensors"):
        assert all(2 * latent.numel() <= footprint.latent for latent in load_file(path).values())


def test_true_size_is_counted_without_numbers(bundle_folder, start, data, tmp_path):
    folder = shutil.copytree(start, tmp_path / "sd15")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
        assert count_parameters(unet) == 859_520_964
        assert count_trainable(prepare_unet(PHASES["2"], unet, 4, folder)) == 859_544_004
    assert all(parameter.is_meta for parameter in unet.parameters())

    (folder / "unet" / "config.json").write_text(json.dumps(dict(unet.config) | {"in_channels": 4}))
    report = dry_run(PHASES["2"], data, folder, bundle_folder)
    (problem,) = report.missing
    assert report.footprint.trainable == 859_544_004
    assert "unet: the weights are incomplete" in problem and "the model has 859520964" in problem


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_sd15_is_counted_before_it_is_fetched(empty_hub, data, bundle_folder):
    report = dry_run(PHASES["2"], data, "sd15", bundle_folder)
    assert report.missing == ("sd15 is not here yet: a training fetches it, a dry run does not",)
    footprint, text = report.footprint, 123_060_480
    assert (footprint.trainable, footprint.total) == (859_544_004, 859_544_004)
    assert sum(footprint.memory.values()) == 4 * (859_544_004 + text) + (4 + 8 + 4) * 859_544_004
    for report in (dry_run(PHASES["2"], data, "sd15"), dry_run(PHASES["2"], data, "sd15", "blip+sam")):
        _, blip, sam = report.missing
        assert blip.startswith("blip (captioner and segmenter") and sam.startswith("sam (captioner and segmenter")
    other = dry_run(PHASES["2"], data, "owner/other", bundle_folder)
    assert other.footprint is None and "owner/other is not here yet" in other.missing[0]
    with_styles = dry_run(PHASES["3"], data, "sd15", bundle_folder)
    assert with_styles.footprint is None and "phase 3 needs a UNet of 12 input channels" in with_styles.missing[1]
    assert dry_run(PHASES["3"], data, None, bundle_folder).footprint.total == 859_544_004


def test_memory_and_disk_of_this_machine_are_compared(start, bundle_folder, data, tmp_path, monkeypatch):
    places = dict(start=start, vlum=bundle_folder, output=tmp_path / "run")
    report = dry_run(PHASES["2"], data, **places)
    assert not report.missing
    needed = sum(report.footprint.memory.values()) + report.footprint.activations
    stored = sum(dry_run_module.disk_sizes(PHASES["2"], report.footprint, 7))
    monkeypatch.setattr(dry_run_module, "free_memory", lambda device: needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=stored))
    assert not dry_run(PHASES["2"], data, **places).missing
    monkeypatch.setattr(dry_run_module, "free_memory", lambda device: needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=stored - 1))
    memory, disk = dry_run(PHASES["2"], data, **places).missing
    assert "cpu has 0.06 GB free, about 0.06 GB are needed" in memory and "micro_batch_size" in memory
    assert disk.startswith(f"the disk of {tmp_path} has 0.0")
    (tmp_path / "run" / "cache" / "latents").mkdir(parents=True)
    (tmp_path / "run" / "cache" / "latents" / "one").write_bytes(b"made")
    assert dry_run(PHASES["2"], data, **places).missing == (memory,)


def test_configurations_without_weights_are_counted(start, bundle_folder, data, tmp_path):
    whole = dry_run(PHASES["2"], data, start, bundle_folder)
    folder = shutil.copytree(start, tmp_path / "start")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    report = dry_run(PHASES["2"], data, folder, bundle_folder)
    assert report.footprint == whole.footprint
    assert report.missing == tuple(
        f"{folder}: {name}: no weights (*.safetensors)" for name in ("vae", "text_encoder", "unet")
    )


def saved_by_a_real_forward_pass(unet, config, tokens):
    """Bytes that autograd saves on the CPU, where attention is fused too, each tensor once and without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    saved, side = {}, config.view.crop // 4

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    sample = torch.randn(2, unet.config.in_channels, side, side).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(sample, torch.tensor([3, 5]), torch.randn(2, tokens, unet.config.cross_attention_dim)).sample
    assert output.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("name", PHASES)
def test_activations_are_those_of_a_real_forward_pass(name, start, bundle_folder, data):
    config = replace(PHASES[name], view=ViewConfig(resize=70, crop=64))
    folder = bundle_folder if name.startswith("3") else start
    unet = prepare_unet(config, UNet2DConditionModel.from_pretrained(folder / "unet"), 4, folder)
    real = saved_by_a_real_forward_pass(unet, config, tokens=16)
    report = dry_run(config, data, folder, bundle_folder)
    # The CPU keeps some of the tensors in both memory layouts.
    assert 0.92 * real < report.footprint.activations <= real
    total = sum(report.footprint.memory.values()) + report.footprint.activations
    assert f"{total / 1e9:.2f} GB per device" in str(report)
    assert "\nactivations  0.0" in str(report) and "in a forward pass of 2 at 64 pixels" in str(report)


def test_activations_follow_batch_precision_and_checkpointing(empty_hub, data, bundle_folder):
    def activations(samples, precision="no", checkpointing=False):
        loop = replace(LOOP, batch_size=samples, micro_batch_size=samples, mixed_precision=precision)
        config = replace(PHASES["2"], loop=loop, gradient_checkpointing=checkpointing)
        return dry_run(config, data, "sd15", bundle_folder).footprint.activations

    one, four = activations(1), activations(4)
    assert four == pytest.approx(4 * one, rel=0.01)
    half = [activations(samples, "fp16") for samples in (1, 4)]
    per_sample = (half[1] - half[0]) / 3
    assert 0.5 * one < per_sample < one  # norms stay in float32
    assert half[0] - per_sample == pytest.approx(2 * 859_544_004, rel=0.02)  # copies of the weights
    checkpointed = activations(4, checkpointing=True)
    assert 0.1 * four < checkpointed < 0.4 * four
    assert activations(4, "fp16", True) - 2 * 859_544_004 < 0.8 * checkpointed


def test_a_batch_that_does_not_fit_has_no_activations(start, bundle_folder, data):
    report = dry_run(replace(PHASES["2"], loop=replace(LOOP, micro_batch_size=3)), data, start, bundle_folder)
    assert report.footprint.activations is None
    assert "activations come on top" in str(report) and "not counted, since the batch does not fit" in str(report)


def test_a_dry_run_needs_no_argument(empty_hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["phase2", "--dry-run"])
    with pytest.raises(SystemExit) as exit:
        launch.run_phase("2", "sd15/phase2.yaml", "")
    printed = capsys.readouterr().out
    assert exit.value.code == 1
    assert "859,544,004 parameters" in printed and "256 = 1 process(es) x 32" in printed and "100,000" in printed
    assert all(f"- --{name} is not given" in printed for name in ("data", "start", "output"))
    monkeypatch.setattr(sys, "argv", ["phase2", "--data", "somewhere"])
    with pytest.raises(SystemExit) as exit:
        launch.run_phase("2", "sd15/phase2.yaml", "")
    assert exit.value.code == 2 and "a training needs --start, --output" in capsys.readouterr().err


def test_what_is_missing_is_listed(start, bundle_folder, data, tmp_path):
    folder = shutil.copytree(start, tmp_path / "start")
    shutil.rmtree(folder / "vae")
    vlum = shutil.copytree(bundle_folder, tmp_path / "vlum")
    (vlum / "captioner" / "model.safetensors").unlink()
    report = dry_run(PHASES["2"], tmp_path / "nowhere", folder, vlum)
    assert report.footprint is None and report.examples == 0
    dataset, vae, captioner = report.missing
    assert "nowhere is not a dataset" in dataset
    assert vae == f"{folder}: vae: the folder is missing"
    assert captioner == f"{vlum}: captioner: no weights (*.safetensors)"
    assert f"missing:\n- {dataset}\n- {vae}" in str(report)


def test_teacher_that_is_not_there_is_missing(start, bundle_folder, data, tmp_path):
    taught = replace(PHASES["2"], fresh=FreshConfig())
    (problem,) = dry_run(taught, data, start, bundle_folder).missing
    assert "python -m train.teacher" in problem and "none was given" in problem
    (problem,) = dry_run(taught, data, start, bundle_folder, tmp_path).missing
    assert "holds no finished teacher" in problem
    (tmp_path / "member0").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "member0" / "teacher.safetensors", {"bands": '["LWIR"]'})
    assert not dry_run(taught, data, start, bundle_folder, tmp_path).missing


def test_folder_that_is_not_there_is_one_line(data, bundle_folder, tmp_path):
    for vlum in (bundle_folder, None):
        report = dry_run(PHASES["2"], data, tmp_path / "nowhere", vlum)
        assert report.missing == (f"{tmp_path / 'nowhere'}: no such folder",)


def test_unet_and_batch_that_do_not_fit(start, bundle_folder, data):
    (problem,) = dry_run(PHASES["3"], data, start, bundle_folder).missing
    assert "phase 3 needs a UNet of 12 input channels" in problem
    loop = LoopConfig(steps=1, batch_size=4, micro_batch_size=3)
    report = dry_run(PhaseConfig("2", loop), data, start, bundle_folder)
    assert report.missing == ("micro_batch_size 3 does not divide the 4 samples of one process",)


@pytest.mark.parametrize("complete", [True, False])
def test_exit_code_says_whether_anything_is_missing(
    empty_hub, complete, start, bundle_folder, data, tmp_path, monkeypatch, capsys
):
    (tmp_path / "phase2.yaml").write_text('phase: "2"\nloop: {steps: 1, batch_size: 2}\n')
    arguments = ["phase2", "--dry-run", "--data", data, "--start", start, "--config", tmp_path / "phase2.yaml"]
    arguments += ["--output", tmp_path / "run", *(["--vlum", bundle_folder] if complete else [])]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    with pytest.raises(SystemExit) as exit:
        launch.run_phase("2", "sd15/phase2.yaml", "")
    printed = capsys.readouterr().out
    assert exit.value.code == (0 if complete else 1)
    assert ("nothing is missing" in printed) == complete
    assert ("sam (captioner and segmenter, without --vlum) is not here yet" in printed) != complete
    assert not (tmp_path / "run").exists()


def test_a_shared_model_is_divided_among_the_processes(start, bundle_folder):
    unet, text_encoder = (
        UNet2DConditionModel.from_pretrained(bundle_folder / "unet"),
        CLIPTextModel.from_pretrained(bundle_folder / "text_encoder"),
    )
    config, texts = PHASES["2"], 4 * count_parameters(text_encoder)
    alone = device_memory(config, unet, text_encoder)
    assert device_memory(config, unet, text_encoder, 8) == alone
    shared = device_memory(replace(config, loop=replace(config.loop, shard=True)), unet, text_encoder, 8)
    assert shared["weights"] - texts == pytest.approx((alone["weights"] - texts) / 8, abs=1)
    for name in ("gradients", "optimizer", "average"):
        assert shared[name] == pytest.approx(alone[name] / 8, abs=1)
