"""The command lines of training: what is wrong ends in a message and exit code 1, before anything is trained."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from make_data import draw_scene, make_manifest_dataset, make_start_folder
from safetensors.torch import load_file

from diffv2ir import bundle, hub
from diffv2ir.data import read_examples
from diffv2ir.training import learnt, starts
from diffv2ir.training.config import load_config
from diffv2ir.training.phases import PhaseConfig, train_phase
from train import launch, tiny

ROOT = Path(__file__).parent.parent
PHASE2 = (
    'phase: "2"\nloop: {steps: 1, batch_size: 2}\nview: {resize: 18, crop: 16, variants: 1}\nvalidation_fraction: 0.0\n'
)


@pytest.fixture(scope="module")
def start(bundle_folder, tmp_path_factory):
    return make_start_folder(bundle_folder, tmp_path_factory.mktemp("start") / "base")


@pytest.fixture
def command(start, bundle_folder, tmp_path, monkeypatch):
    """Run the command line of phase 2 on a small dataset; returns its error message."""
    make_manifest_dataset(tmp_path / "data", pairs=4, infrared=0)
    (tmp_path / "phase2.yaml").write_text(PHASE2)

    def run(*extra):
        folders = {"--data": "data", "--output": "run", "--config": "phase2.yaml"}
        arguments = [part for option, name in folders.items() for part in (option, str(tmp_path / name))]
        arguments += ["--start", str(start), "--vlum", str(bundle_folder), *map(str, extra)]
        monkeypatch.setattr(sys, "argv", ["phase2", *arguments])
        with pytest.raises(SystemExit) as exit:
            launch.run_phase("2", "sd15/phase2.yaml", "")
        # `sys.exit` with a text prints it and ends the process with code 1.
        assert isinstance(exit.value.code, str) and exit.value.code.startswith("error: ")
        assert not (tmp_path / "run").exists()
        return exit.value.code

    return run


def test_missing_partner(command, tmp_path):
    (tmp_path / "data" / "images" / "1_ir.png").unlink()
    assert "scene1: no file" in (message := command()) and "1_ir.png" in message


def test_unequal_sizes(command, tmp_path):
    draw_scene(1, (40, 40))[1].save(tmp_path / "data" / "images" / "1_ir.png")
    assert "scene1: sizes differ: visible 96x72, infrared 40x40" in command()


def test_unreadable_files_are_all_named(command, tmp_path):
    images = tmp_path / "data" / "images"
    (images / "0.png").write_bytes((images / "0.png").read_bytes()[:200])
    (images / "2_ir.png").write_bytes(b"not an image")
    message = command()
    assert "2 problem(s)" in message and "0.png: " in message and "2_ir.png: not an image" in message


def test_empty_split(command, tmp_path):
    manifest = tmp_path / "data" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"split": "train"', '"split": "test"'))
    assert "no example with split='train'" in command()


def test_data_that_does_not_fit_the_phase(command, tmp_path):
    (tmp_path / "phase2.yaml").write_text(PHASE2 + "sources: [elsewhere]\n")
    assert "no example of kinds None and sources ('elsewhere',)" in command()


def test_folder_that_is_no_dataset(command, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is not a dataset" in command("--data", tmp_path / "empty")


def test_configuration_of_another_phase(command, tmp_path):
    (tmp_path / "phase2.yaml").write_text('phase: "1"\nloop: {steps: 1}\nlora: {rank: 2}\n')
    assert "phase2.yaml is a configuration of phase 1, not of phase 2" in command()


def test_misspelt_setting(command, tmp_path):
    (tmp_path / "phase2.yaml").write_text(PHASE2 + "droput: 0.1\n")
    assert "unknown setting(s) ['droput']" in command()


def test_start_folder_that_is_not_there(command, tmp_path):
    assert "nowhere" in command("--start", tmp_path / "nowhere")


def test_what_takes_no_time_is_checked_before_the_images(command, tmp_path, monkeypatch):
    (tmp_path / "data" / "images" / "1.png").write_bytes(b"not an image")
    assert command("--start", tmp_path / "nowhere") == f"error: {tmp_path / 'nowhere'}: no such folder"
    message = command("--vlum", tmp_path / "data")
    assert "captioner: the folder is missing" in message and "segmenter: the folder is missing" in message
    assert "1.png: not an image" in command()


def test_images_are_checked_once(tmp_path, monkeypatch):
    data = make_manifest_dataset(tmp_path / "data", pairs=3, infrared=0)
    examples, checked = read_examples(data, split="train"), []
    monkeypatch.setattr(learnt, "check_examples", lambda examples: checked.append(len(examples)))
    for _ in range(2):
        learnt.check_once(tmp_path / "run", examples)
    assert checked == [2]
    learnt.check_once(tmp_path / "run", examples[:1])
    draw_scene(50)[0].save(examples[0].visible)
    learnt.check_once(tmp_path / "run", examples[:1])
    assert checked == [2, 1, 1]


def test_a_finished_phase_looks_at_no_image_and_says_that_its_steps_stay(start, bundle_folder, tmp_path, caplog):
    data = make_manifest_dataset(tmp_path / "data", pairs=4, infrared=0)
    (tmp_path / "phase2.yaml").write_text(PHASE2)
    options = dict(data=data, start=start, output=tmp_path / "run", config=tmp_path / "phase2.yaml")
    options |= dict(vlum=bundle_folder)

    def train():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["phase2", *(f"--{name}={value}" for name, value in options.items())])
            launch.run_phase("2", "sd15/phase2.yaml", "")

    train()
    (data / "images" / "1.png").write_bytes(b"not an image")
    options["start"] = tmp_path / "gone"
    with caplog.at_level("INFO"):
        train()
    assert "already finished" in caplog.text and "asks for" not in caplog.text
    (tmp_path / "phase2.yaml").write_text(PHASE2.replace("steps: 1,", "steps: 5,"))
    train()
    assert "phase 2: finished at 1 steps; the configuration asks for 5: start in a new folder, or delete" in caplog.text


def test_captioner_and_segmenter_as_published_are_taken_where_there_are_none(
    start, bundle_folder, tmp_path, monkeypatch
):
    blip = tmp_path / "blip"
    for name in ("captioner", "captioner_processor"):
        shutil.copytree(bundle_folder / name, blip, dirs_exist_ok=True)
    folders = {hub.SOURCES["blip"]: blip, hub.SOURCES["sam"]: bundle_folder / "segmenter"}
    monkeypatch.setattr(hub, "download", folders.__getitem__)
    made = tmp_path / "cache" / "vlum"
    assert starts.locate_vlum(None, start, "1", made) is None
    assert starts.locate_vlum(None, bundle_folder, "2", made) is None
    assert starts.locate_vlum(str(bundle_folder), start, "2", made) == bundle_folder and not made.exists()
    assert starts.locate_vlum(None, start, "2", made) == made
    starts.check_parts(made, starts.VLUM)
    monkeypatch.setattr(hub, "download", None)  # would be called, were it made again
    assert starts.locate_vlum("blip+sam", bundle_folder, "3", made) == made
    data = make_manifest_dataset(tmp_path / "data", pairs=4, infrared=0)
    (tmp_path / "phase2.yaml").write_text(PHASE2)
    options = dict(data=data, start=start, output=tmp_path / "run", config=tmp_path / "phase2.yaml")
    options |= dict(cache=tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", ["phase2", *(f"--{name}={value}" for name, value in options.items())])
    launch.run_phase("2", "sd15/phase2.yaml", "")
    bundle.check(tmp_path / "run" / "result")


def test_errors_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        launch.run(lambda: 1 / 0)


@pytest.mark.parametrize("phase", ["1", "2", "3"])
def test_each_phase_has_its_command(phase, monkeypatch):
    called = []
    monkeypatch.setattr(launch, "run_phase", lambda *arguments: called.append(arguments[:2]))
    runpy.run_module(f"train.phase{phase}", run_name="__main__")
    assert called == [(phase, f"sd15/phase{phase}.yaml")]
    assert (Path(launch.__file__).parent / "configs" / called[0][1]).is_file()


def test_tiny_checks_its_data_first(tmp_path, monkeypatch):
    data = make_manifest_dataset(tmp_path / "data", pairs=4, infrared=0)
    arguments = ["tiny", "--data", str(data), "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", arguments)
    (data / "images" / "1.png").write_bytes(b"not an image")
    with pytest.raises(SystemExit, match="error: .*\n.*1.png: not an image"):
        tiny.main()
    draw_scene(1)[0].save(data / "images" / "1.png")
    records = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("caption", None)
    (data / "manifest.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(SystemExit, match="error: .*has no captions"):
        tiny.main()
    assert not (tmp_path / "run").exists()


LONGER = """
phase: "2"
loop: {steps: 12, batch_size: 4, micro_batch_size: 2, learning_rate: 1.0e-3, warmup_steps: 4, checkpoint_every: 3}
view: {resize: 18, crop: 16, variants: 2}
dropout: 0.1
validation_fraction: 0.0
"""


@pytest.mark.timeout(1800)  # three trainings, two of them in processes of their own
def test_killed_and_resumed_training_ends_with_the_same_weights(
    start, bundle_folder, tmp_path, monkeypatch, caplog, capsys
):
    data = make_manifest_dataset(tmp_path / "data", pairs=6, infrared=0)
    config, output = tmp_path / "phase2.yaml", tmp_path / "run"
    config.write_text(LONGER)
    options = dict(data=data, start=start, output=output, config=config, vlum=bundle_folder, threads=1)
    command = [sys.executable, "-m", "train.phase2", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while first.poll() is None and not (output / "checkpoints" / "step-0000003").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (output / "result").exists()

    monkeypatch.setattr(sys, "argv", command[2:])
    with caplog.at_level("INFO"):
        launch.run_phase("2", "sd15/phase2.yaml", "")
    assert "resumed at step" in caplog.text and capsys.readouterr().out.strip() == str(output / "result")

    torch.set_num_threads(1)
    examples = read_examples(data, split="train")
    whole = train_phase(
        load_config(config, PhaseConfig), examples, start, tmp_path / "whole", cache=tmp_path / "c", vlum=bundle_folder
    )
    ours, theirs = (load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (output / "result", whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
