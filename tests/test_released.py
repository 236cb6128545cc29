"""The paper's checkpoints by their names: fetched from a hub on this machine, converted once, then used as bundles."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from fake_hub import COMMIT, running_hub
from official_layout import make_checkpoint, make_official
from transformers import BlipForConditionalGeneration

from diffv2ir import bundle, cli, hub
from diffv2ir.convert import assemble
from diffv2ir.hub_sources import RELEASED, SOURCES
from diffv2ir.inventory import inventory
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import PRESETS
from diffv2ir.training.starts import locate_start
from diffv2ir.vlum import SamSegmenter


def saved(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def repositories(bundle_folder):
    """Small models under the names of the real ones."""
    blip = {path.name: path.read_bytes() for path in (bundle_folder / "captioner_processor").iterdir()}
    blip["config.json"] = (bundle_folder / "captioner" / "config.json").read_bytes()
    model = BlipForConditionalGeneration.from_pretrained(bundle_folder / "captioner")
    blip["pytorch_model.bin"] = saved(model.state_dict())
    tokenizer = {f"tokenizer/{path.name}": path.read_bytes() for path in (bundle_folder / "tokenizer").iterdir()}
    content = {
        "stage2": {SOURCES["stage2"].file: saved(make_checkpoint(make_official()))},
        "blip": blip,
        "sam": {SOURCES["sam"].file: b"sam"},
        "sd15": {**tokenizer, "unet/config.json": b"not wanted"},
    }
    return {f"{SOURCES[name].repo_type}s/{SOURCES[name].repo_id}": files for name, files in content.items()}


@pytest.fixture
def server(repositories, bundle_folder, monkeypatch, tmp_path):
    segmenter = SamSegmenter.from_pretrained(bundle_folder / "segmenter")
    monkeypatch.setattr(SamSegmenter, "from_checkpoint", lambda path: segmenter)
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, revision=COMMIT, sha256=None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    with running_hub(tmp_path / "hub") as server:
        server.repositories = repositories
        yield server


def test_one_command_translates_with_the_paper_s_weights(server, photo_file, tmp_path, caplog):
    out = tmp_path / "out"
    command = ["translate", str(photo_file), "--bundle", "stage2", "--out", str(out), "--steps", "1", "--device", "cpu"]
    with caplog.at_level("INFO", "diffv2ir"):
        assert cli.main([*command, "--resolution", "64"]) == 0
    assert (out / f"{photo_file.stem}_ir.png").is_file()
    folder = tmp_path / "own" / "diffv2ir" / "bundles" / "stage2"
    said = caplog.text
    assert f"stage2: converting it, into {folder}" in said and "the raw ones: the checkpoint has no average" in said
    assert "tokenizer/tokenizer_config.json" in server.fetched and "unet/config.json" not in server.fetched

    server.refusal = (503, "", "")  # the second time asks nobody
    shutil.rmtree(tmp_path / "hub")
    pipe = DiffV2IRPipeline.from_pretrained("stage2")
    assert pipe.folder == folder and pipe.config.map_style == "union"
    assert all(getattr(pipe.default_settings, name) == value for name, value in PRESETS["paper-code"].items())
    assert locate_start("stage2", fetch=False) == folder == locate_start("stage2")
    shutil.copytree(folder, folder.with_name(".flir.partial"))  # of a conversion that was killed
    [entry] = [entry for entry in inventory() if folder.parent in entry.folder.parents]
    assert entry.name == "stage2" and not entry.problem


def test_who_comes_meanwhile_waits(server, monkeypatch):
    conversions, convert = [], assemble.convert

    def counted(*arguments, **options):
        conversions.append(arguments)
        return convert(*arguments, **options)

    monkeypatch.setattr(assemble, "convert", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(bundle.resolve, ["stage2", "stage2"])
    assert first == second and len(conversions) == 1


def test_another_commit_is_another_bundle_and_another_cache_its_own(server, tmp_path):
    folder = bundle.resolve("stage2", revision=COMMIT, cache_dir=tmp_path / "mine")
    assert folder == tmp_path / "mine" / "bundles" / f"stage2@{COMMIT}"
    assert not (tmp_path / "own").exists() and not (tmp_path / "hub").exists()
    assert bundle.resolve(f"stage2@{COMMIT}", "older", tmp_path / "mine") == folder
    with pytest.raises(bundle.BundleError, match="stage2: .*there is no revision 'older'"):
        bundle.resolve("stage2", revision="older")


def test_what_goes_wrong_leaves_nothing_and_is_told(server, tmp_path, monkeypatch):
    with pytest.raises(hub.HubError, match="m3fd is not here yet"):
        locate_start("m3fd", fetch=False)
    with pytest.raises(bundle.BundleError, match="m3fd: .*there is no file 'IR-500k/finetuned_checkpoints/M3FD.ckpt'"):
        bundle.resolve("m3fd")
    path = f"datasets/{SOURCES['flir'].repo_id}"
    monkeypatch.setitem(server.repositories, path, {SOURCES["flir"].file: saved({"state_dict": {"x": torch.ones(1)}})})
    with pytest.raises(bundle.BundleError, match="flir: "):
        locate_start("flir")
    assert not [path for path in (tmp_path / "own").rglob("*") if path.is_dir() and path.name in RELEASED]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flir").mkdir()  # what lies here goes first
    assert bundle.resolve("flir").samefile(tmp_path / "flir") and locate_start("flir").samefile(tmp_path / "flir")
