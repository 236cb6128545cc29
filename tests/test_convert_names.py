"""What the command line calls the checkpoint and the parts, and where they are."""

import shutil

import pytest
import torch
from official_layout import make_checkpoint, make_official

from diffv2ir import hub
from diffv2ir.bundle import check
from diffv2ir.cli import main
from diffv2ir.convert.names import how_to_complete, locate_checkpoint, locate_part
from diffv2ir.loading import CommandError


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub, and no hub."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def told():
    return []


def keep(cache, name, files):
    """As if one of `hub.SOURCES` had been fetched: `files` are copied, by their name in the repository."""
    source, commit = hub.SOURCES[name], "a" * 40
    repository = cache / f"models--{source.repo_id.replace('/', '--')}"
    if source.revision == "main":
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
    else:
        commit = source.revision
    for inner, path in files.items():
        target = repository / "snapshots" / commit / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
    return repository / "snapshots" / commit


@pytest.fixture
def fetched(cache, bundle_folder, tmp_path):
    """blip, sam and the tokenizer of sd15 are here."""
    captioner = tmp_path / "captioner"
    shutil.copytree(bundle_folder / "captioner", captioner)
    shutil.copytree(bundle_folder / "captioner_processor", captioner, dirs_exist_ok=True)
    (tmp_path / "sam.pth").write_bytes(b"sam")
    sam = hub.SOURCES["sam"].file
    return {
        "--captioner": keep(cache, "blip", {path.name: path for path in captioner.iterdir()}),
        "--segmenter": keep(cache, "sam", {sam: tmp_path / "sam.pth"}) / sam,
        "--tokenizer": keep(cache, "sd15", {"tokenizer": bundle_folder / "tokenizer"}) / "tokenizer",
    }


@pytest.mark.parametrize(("flag", "name"), [("--captioner", "blip"), ("--segmenter", "sam"), ("--tokenizer", "sd15")])
def test_what_was_fetched_is_taken(flag, name, fetched, told):
    assert locate_part(flag, name, told.append) == str(fetched[flag])
    told.clear()
    assert locate_part(flag, None, told.append) == str(fetched[flag])
    assert told == [f"{flag[2:]}: {name}, which is here ({flag} none leaves it out)"]
    assert locate_part(flag, "none", told.append) is None


@pytest.mark.parametrize("flag", ["--captioner", "--segmenter", "--tokenizer"])
def test_what_is_not_here_is_not_taken(flag, cache, told):
    assert locate_part(flag, None, told.append) is None and not told
    with pytest.raises(hub.HubError):
        locate_part(flag, {"--captioner": "blip", "--segmenter": "sam", "--tokenizer": "sd15"}[flag], told.append)


def test_a_model_without_its_tokenizer_is_not_taken(cache, bundle_folder, told):
    keep(cache, "sd15", {"unet": bundle_folder / "unet"})
    assert locate_part("--tokenizer", None, told.append) is None


def test_only_the_tokenizer_of_a_model_is_fetched(bundle_folder, monkeypatch, told):
    asked = []

    def download(source, tell):
        asked.append(source)
        return bundle_folder

    monkeypatch.setattr(hub, "download", download)
    assert locate_part("--tokenizer", "sd15", told.append) == str(bundle_folder / "tokenizer")
    known = hub.SOURCES["sd15"]
    assert asked[0].patterns == ("tokenizer/*",)
    assert (asked[0].repo_id, asked[0].revision) == (known.repo_id, known.revision)


def test_a_tokenizer_is_found_in_the_folder_of_a_model(bundle_folder, told):
    for given in (bundle_folder, bundle_folder / "tokenizer"):
        assert locate_part("--tokenizer", str(given), told.append) == str(bundle_folder / "tokenizer")
    with pytest.raises(CommandError, match="--tokenizer blip: it has no tokenizer of CLIP; sd15 has"):
        locate_part("--tokenizer", "blip", told.append)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("someone/model", "`hf download someone/model --local-dir model`, then convert model"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "`python -m diffv2ir fetch sd15`, then convert sd15"),
        ("Lidong26/IR-500K", "fetch flir`, then convert stage2 or m3fd or flir"),
    ],
)
def test_a_hub_id_has_to_be_fetched_first(name, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", name, "--to", "out"]) == 2
    said = capsys.readouterr().err
    assert f"{name}: there is no such file or folder here. If it is a repository of the Hugging Face hub" in said
    assert command in said


def test_paths_stay_as_they_are(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    for path in ("runs/model", "runs/model.ckpt", "model", "/runs/model/x"):
        assert str(locate_checkpoint(path, told.append)) == path


def test_what_lies_here_goes_before_a_name(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", None)  # would be called, were it taken for the name
    for name in ("flir", "blip", "sd15"):
        (tmp_path / name).mkdir()
        assert f"{name}: the one in this folder is taken, not {hub.SOURCES[name].what}" not in told
        found = (
            locate_checkpoint(name, told.append) if name == "flir" else locate_part("--captioner", name, told.append)
        )
        assert str(found) == name
        assert f"{name}: the one in this folder is taken, not {hub.SOURCES[name].what}" in told


@pytest.mark.parametrize(
    ("name", "revision"),
    [("someone/blip", "main"), ("someone/blip@v1", "v1"), ("Salesforce/blip-image-captioning-base", "8")],
)
def test_a_captioner_of_the_hub_comes_as_other_models_do(name, revision, monkeypatch, tmp_path, told):
    asked = []
    monkeypatch.setattr(hub, "download", lambda source, tell: asked.append(source) or tmp_path)
    assert locate_part("--captioner", name, told.append) == str(tmp_path)
    assert asked[0].repo_id == name.partition("@")[0] and asked[0].revision.startswith(revision)
    assert "*.json" in asked[0].patterns and asked[0].repo_type == "model"


def test_how_to_complete():
    assert how_to_complete(["12 input channels"]) == ""
    said = how_to_complete(["--segmenter", "--tokenizer"])
    assert "run `python -m diffv2ir fetch sam`, `python -m diffv2ir fetch sd15` (or `--tokenizer sd15`" in said


@pytest.fixture
def checkpoint(tmp_path):
    model = make_official()
    torch.save(make_checkpoint(model), tmp_path / "phase2.ckpt")
    return tmp_path / "phase2.ckpt"


def test_a_bundle_of_what_is_here(checkpoint, fetched, bundle_folder, tmp_path, capsys):
    segmenter = ["--segmenter", str(bundle_folder / "segmenter")]
    assert main(["convert", str(checkpoint), "--to", str(tmp_path / "bundle"), *segmenter]) == 0
    check(tmp_path / "bundle")
    assert "captioner: blip, which is here" in (said := capsys.readouterr().out) and "To complete" not in said


def test_no_captioner_for_what_is_no_bundle(checkpoint, fetched, tmp_path, capsys):
    assert main(["convert", str(checkpoint), "--to", str(tmp_path / "start"), "--keep-channels"]) == 0
    assert not (tmp_path / "start" / "captioner").exists() and (tmp_path / "start" / "tokenizer").is_dir()
    assert "To complete" not in capsys.readouterr().out


def test_the_command_says_what_to_fetch(checkpoint, cache, tmp_path, capsys):
    assert main(["convert", str(checkpoint), "--to", str(tmp_path / "out")]) == 0
    wanted = "run `python -m diffv2ir fetch blip`, `python -m diffv2ir fetch sam`, `python -m diffv2ir fetch sd15` (or"
    assert wanted in capsys.readouterr().out
    assert main(["convert", str(checkpoint), "--to", str(tmp_path / "start"), "--captioner", "none"]) == 0
    assert "To complete it, run `python -m diffv2ir fetch sam`" in capsys.readouterr().out
