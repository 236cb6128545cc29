"""Trainings from and to the hub, here one on this machine: hub ids as start, the result with its card, each refusal."""

import json
import sys
from dataclasses import replace

import pytest
from fake_hub import COMMIT, running_hub
from huggingface_hub import constants
from make_data import make_manifest_dataset, make_start_folder

from diffv2ir import bundle, hub
from diffv2ir.data import read_examples
from diffv2ir.training.publish import model_card
from diffv2ir.training.starts import hub_source, locate_start
from train import launch

PHASE2 = (
    'phase: "2"\nloop: {steps: 1, batch_size: 2}\nview: {resize: 18, crop: 16, variants: 1}\nvalidation_fraction: 0.0\n'
)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def start(bundle_folder, tmp_path_factory):
    return make_start_folder(bundle_folder, tmp_path_factory.mktemp("start") / "base")


@pytest.fixture
def server(start, bundle_folder, monkeypatch, tmp_path):
    with running_hub(tmp_path / "cache") as server:
        extra = {"unet/diffusion_pytorch_model.fp16.safetensors": b"half", "unet/diffusion_pytorch_model.bin": b"old"}
        server.repositories = {
            "models/owner/base": contents(start) | extra,
            "models/owner/vlum": contents(bundle_folder),
            "models/owner/theirs": {},
        }
        server.read_only = {"models/owner/theirs"}
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Phase 2 by its command line, from the hub's repositories."""
    (tmp_path / "phase2.yaml").write_text(PHASE2)

    def train(*extra, data="data"):
        folders = {"--data": data, "--output": "run", "--config": "phase2.yaml"}
        arguments = [part for option, name in folders.items() for part in (option, str(tmp_path / name))]
        arguments += ["--start", "owner/base", "--vlum", "owner/vlum", *extra]
        monkeypatch.setattr(sys, "argv", ["phase2", *arguments])
        launch.run_phase("2", "sd15/phase2.yaml", "")

    return train


def test_from_the_hub_and_to_the_hub(server, train, tmp_path, capsys, monkeypatch):
    make_manifest_dataset(tmp_path / "data", pairs=4, infrared=0)
    train("--push-to-hub", "owner/new")
    assert capsys.readouterr().out.strip() == "https://huggingface.co/owner/new"
    assert not any("fp16" in file or file.endswith(".bin") for file in server.fetched)
    assert [(wish["name"], wish["visibility"]) for wish in server.created] == [("new", "private")]
    pushed = server.repositories["models/owner/new"]
    assert pushed == contents(tmp_path / "run" / "result")
    card = pushed["README.md"].decode()
    assert "base_model: owner/base\n" in card and "| examples | 3: 2 of even, 1 of odd |" in card
    assert "--bundle owner/new" in card and "| trained | all weights of the UNet |" in card
    assert json.loads(pushed["training.json"])["config"]["phase"] == "2"
    bundle.check(bundle.resolve("owner/new", cache_dir=tmp_path / "other"))
    server.repositories["models/owner/new"].clear()
    (tmp_path / "run" / "cache").rename(tmp_path / "cache-is-gone")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "check_target", lambda name: server.read_only.add(f"models/{name}"))
        with pytest.raises(SystemExit, match="may not write there.*the same command pushes it without training"):
            train("--push-to-hub", "owner/new")
    server.read_only.clear()
    train("--push-to-hub", "owner/new")  # finished already: pushed again
    assert pushed.keys() == contents(tmp_path / "run" / "result").keys()


@pytest.mark.parametrize(
    ("target", "answer", "words"),
    [
        ("new", None, "expects OWNER/NAME, got 'new'"),
        ("owner/theirs", None, "this access token may not write there"),
        ("owner/new", (401, "", "Invalid credentials in Authorization header"), "the hub refuses the access token"),
        ("owner/new", (403, "", "You don't have the rights"), "this access token may not write there"),
        ("owner/new", (503, "", ""), "503"),
    ],
)
def test_a_push_that_would_fail_is_refused_before_the_training(server, train, tmp_path, target, answer, words):
    server.refusal = answer
    with pytest.raises(SystemExit) as exit:
        train("--push-to-hub", target, data="not-looked-at")
    assert exit.value.code.startswith("error: ") and words in exit.value.code and "\n" not in exit.value.code
    assert not (tmp_path / "run").exists()


def test_no_token_and_no_hub(server, train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(SystemExit, match="error: owner/new: the hub cannot be reached"):
            train("--push-to-hub", "owner/new")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(SystemExit, match="error: owner/new: the hub is switched off"):
            train("--push-to-hub", "owner/new")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit, match="error: owner/new: there is no access token; log in with `hf auth login`"):
        train("--push-to-hub", "owner/new")
    assert not server.created


def test_a_dry_run_fetches_nothing(server, train, tmp_path, capsys):
    make_manifest_dataset(tmp_path / "data", pairs=4, infrared=0)
    with pytest.raises(SystemExit) as exit:
        train("--dry-run")
    printed = capsys.readouterr().out
    assert exit.value.code == 1 and "- owner/base is not here yet: a training fetches it, a dry run does" in printed
    assert "- owner/vlum is not here yet" in printed
    assert not server.fetched
    for name in ("owner/base", "owner/vlum"):
        locate_start(name)
    with pytest.raises(SystemExit) as exit:
        train("--dry-run")
    assert exit.value.code == 0 and "nothing is missing" in capsys.readouterr().out


def test_what_start_may_be(server, bundle_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFV2IR_TINY", str(bundle_folder))
    assert locate_start("tiny") == bundle_folder and locate_start(str(tmp_path)) == tmp_path
    assert locate_start("owner/base@" + COMMIT).name == COMMIT
    with pytest.raises(hub.HubError, match="there is no revision 'older'"):
        locate_start("owner/base@older")
    assert hub_source("sd15") is hub.SOURCES["sd15"] is hub_source(hub.SOURCES["sd15"].repo_id)
    assert hub_source("sd15@" + COMMIT) == replace(hub.SOURCES["sd15"], revision=COMMIT)
    assert hub_source("sam") is None  # a single file
    assert hub_source("/not/there") is None and hub_source(f"{hub.SOURCES['sd15'].repo_id}@main").revision == "main"


def test_card_of_a_style_names_no_folder_of_this_machine(tmp_path):
    data = make_manifest_dataset(tmp_path / "data", pairs=3, infrared=0)
    config = {
        "phase": "3", "style": "dusk", "lora": {"rank": 4}, "view": {"crop": 16},
        "loop": {"steps": 5, "batch_size": 2, "learning_rate": 1e-4, "schedule": "cosine", "optimizer": "adamw"},
    }  # fmt: skip
    history = [{"step": 1, "loss": 0.5}, {"step": 5, "validation/psnr": 21.5}, {"step": 5, "loss": 0.25}]
    record = {"config": config, "history": history}
    card = model_card(record, "me/dusk", str(tmp_path), read_examples(data, split="train"))
    assert str(tmp_path) not in card and "base_model" not in card
    assert "| phase | 3, style `dusk` |" in card and "| trained | LoRA of rank 4 |" in card
    assert "| loss, first to last | 0.5000 to 0.2500 |" in card and "| 21.50 dB |" in card
    text = model_card({**record, "config": {**config, "phase": "1", "style": None}}, "me/base", "owner/sd", [])
    assert "pipeline_tag: text-to-image" in text and "--start me/base" in text
    assert "base_model: owner/sd\n" in text and "[owner/sd](https://huggingface.co/owner/sd)" in text
    released = model_card(record, "me/dusk", "m3fd", [])
    assert "[m3fd](https://huggingface.co/datasets/Lidong26/IR-500K)" in released and "base_model" not in released
    known = model_card(record, "me/dusk", "sd15@v1", [])
    assert f"base_model: {hub.SOURCES['sd15'].repo_id}\n" in known
