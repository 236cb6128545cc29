"""Bundles that are complete are found; others are refused with what is wrong."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from diffv2ir import bundle, hub
from diffv2ir.bundle import COMPONENTS, BundleError, check, is_half, resolve
from diffv2ir.pipeline import DiffV2IRPipeline

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "segmenter": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "captioner": "model.safetensors",
}


@pytest.fixture
def copy(bundle_folder, tmp_path):
    return shutil.copytree(bundle_folder, tmp_path / "copy")


def edit(path, **changes):
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refusal(folder) -> str:
    with pytest.raises(BundleError) as error:
        check(folder)
    return str(error.value)


def test_complete_bundle_passes(bundle_folder):
    check(bundle_folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_missing_components_are_named(copy, component):
    shutil.rmtree(copy / component)
    assert f"- {component}: the folder is missing" in refusal(copy)
    edit(copy / "model_index.json", **{component: None})
    assert f"- {component}: not listed in model_index.json" in refusal(copy)


def test_everything_missing_is_named_at_once(copy):
    for component in ("vae", "captioner"):
        shutil.rmtree(copy / component)
    (copy / "unet" / WEIGHTS["unet"]).unlink()
    message = refusal(copy)
    assert all(part in message for part in ("- vae: ", "- captioner: ", "- unet: no weights"))


def test_a_missing_shard_is_named(copy):
    whole = copy / "unet" / WEIGHTS["unet"]
    tensors = load_file(whole)
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shards = dict.fromkeys(sorted(tensors)[:5], names[0]) | dict.fromkeys(sorted(tensors)[5:], names[1])
    for name in names:
        save_file({key: tensors[key] for key in tensors if shards[key] == name}, copy / "unet" / name)
    whole.unlink()
    index = copy / "unet" / f"{whole.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    check(copy)
    (copy / "unet" / names[1]).unlink()
    assert f"- unet: {names[1]} is missing ({index.name} lists it)" in refusal(copy) and names[0] not in refusal(copy)
    (copy / "unet" / names[0]).unlink()
    assert all(f"- unet: {name} is missing" in refusal(copy) for name in names)
    index.write_text("{")
    assert f"- unet: {index.name} is damaged" in refusal(copy)


def test_an_index_of_weights_of_another_kind_does_not_count(copy):
    (copy / "unet" / "diffusion_pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "not-here.bin"}}')
    check(copy)


@pytest.mark.parametrize("component", WEIGHTS)
def test_missing_and_damaged_files_are_named(copy, component):
    weights = copy / component / WEIGHTS[component]
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    assert f"- {component}: {weights.name} is damaged" in refusal(copy)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert f"- {component}: {weights.name} is damaged" in refusal(copy)
    weights.unlink()
    assert f"- {component}: no weights" in refusal(copy)
    weights.write_bytes(content)
    (copy / component / "config.json").unlink()
    assert f"- {component}: " in refusal(copy) and "config" in refusal(copy)


def test_scheduler_is_checked(copy):
    config = copy / "scheduler" / "scheduler_config.json"
    edit(config, prediction_type="sample")
    assert "scheduler: the scheduler's prediction_type must be one of" in refusal(copy)
    config.write_text("{half")
    assert "scheduler_config.json cannot be read" in refusal(copy)
    config.rename(config.with_name("other.json"))
    assert "scheduler: scheduler_config.json is missing" in refusal(copy)


def test_wrong_classes_are_named(copy):
    edit(copy / "model_index.json", captioner=["transformers", "GitModel"], unet=["diffusers", "UNet2DModel"])
    message = refusal(copy)
    assert "captioner: expected BlipForConditionalGeneration, got GitModel" in message
    assert "unet: expected UNet2DConditionModel, got UNet2DModel" in message


def test_unet_of_eight_channels_is_refused(copy, new_unet):
    shutil.rmtree(copy / "unet")
    new_unet(8).save_pretrained(copy / "unet")
    message = refusal(copy)
    assert "in_channels must be 12 (3 x 4: noisy target, visible and segmentation latents), got 8" in message
    edit(copy / "unet" / "config.json", in_channels=12)
    assert "the weights of conv_in have 8 input channels, the config says 12" in refusal(copy)


def test_text_of_another_width_is_refused(copy):
    edit(copy / "unet" / "config.json", cross_attention_dim=48)
    assert "cross_attention_dim must be 32 (the hidden size of the text encoder), got 48" in refusal(copy)


def test_styles_and_defaults_are_checked(copy):
    index = copy / "model_index.json"
    (copy / "styles" / "night" / bundle.ADAPTER).unlink()
    assert "style 'night': styles/night/pytorch_lora_weights.safetensors is missing" in refusal(copy)
    edit(index, styles=["general"], map_style="stripes")
    assert "map_style must be one of union, regions, got 'stripes'" in refusal(copy)
    edit(index, map_style="union", bands={"general": "UV"})
    assert "bands: that of style 'general' must be one of LWIR, NIR, got 'UV'" in refusal(copy)
    edit(index, bands={}, phrases="at night")
    assert "phrases must be a list of texts, got 'at night'" in refusal(copy)
    edit(index, phrases=["at night"], defaults={"steps": 0})
    assert "defaults: steps must be a whole number from 1 to 500, got 0" in refusal(copy)
    edit(index, defaults={"guidance": 7})
    assert "defaults: unknown settings: guidance" in refusal(copy)
    edit(index, defaults={"style": "night"})
    assert "defaults: style 'night' is not one of general" in refusal(copy)
    edit(index, defaults={"steps": 3})
    check(copy)


def test_other_folders_are_refused(tmp_path, copy):
    assert "is not a bundle: model_index.json is missing" in refusal(tmp_path)
    edit(copy / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "holds a StableDiffusionPipeline, not a DiffV2IRPipeline" in refusal(copy)
    (copy / "model_index.json").write_text("[]")
    assert "must hold a JSON object" in refusal(copy)
    (copy / "model_index.json").write_text("{")
    assert "model_index.json cannot be read" in refusal(copy)


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_weight_that_is_missing_or_of_another_shape_is_refused(copy, component):
    path = copy / component / WEIGHTS[component]
    tensors = load_file(path)
    key = max(tensors, key=lambda name: tensors[name].numel())
    large = torch.cat([tensors[key]] * 2)
    rest = {name: value for name, value in tensors.items() if name != key}
    save_file(rest, path, metadata={"format": "pt"})
    with pytest.raises(BundleError, match=f"{component}|{key}"):
        DiffV2IRPipeline.from_pretrained(copy)
    save_file({**rest, key: large}, path, metadata={"format": "pt"})
    with pytest.raises(BundleError, match="cannot be loaded"):
        DiffV2IRPipeline.from_pretrained(copy)


@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "captioner_processor/tokenizer.json"])
def test_missing_vocabulary_is_refused(copy, file):
    (copy / file).unlink()
    with pytest.raises(BundleError, match=file.split("/")[0]):
        DiffV2IRPipeline.from_pretrained(copy)


# Names


def test_folders_and_names(bundle_folder, tmp_path, monkeypatch):
    assert resolve(bundle_folder) == resolve(str(bundle_folder)) == bundle_folder
    monkeypatch.setenv("DIFFV2IR_TINY", str(bundle_folder))
    assert resolve("tiny") == bundle_folder
    monkeypatch.setenv("DIFFV2IR_TINY", str(tmp_path / "none"))
    with pytest.raises(BundleError, match="none: no such folder .*DIFFV2IR_TINY"):
        resolve("tiny")
    for name in ("no-such-bundle", str(tmp_path / "missing"), "a/b/c"):
        with pytest.raises(BundleError, match=r"no such folder \(a bundle is 'tiny', a folder, a hub id"):
            resolve(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="no such folder"):
        resolve(tmp_path / "file")


def test_a_folder_called_tiny_stays_it(bundle_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_folder, tmp_path / "tiny")
    assert resolve(resolve("./tiny")).samefile(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["sd15", "blip", "sam"])
def test_a_part_of_a_bundle_is_called_by_what_it_is(name):
    with pytest.raises(BundleError, match=f"{name} is not a bundle: {hub.SOURCES[name].what}"):
        resolve(name)


def test_hub_repository_is_downloaded(bundle_folder, monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(name=name, **options)
        return [] if options.get("dry_run") else str(bundle_folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda api, *repository, **options: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name", revision="v1", cache_dir=tmp_path) == bundle_folder
    assert (asked["name"], asked["revision"], asked["cache_dir"]) == ("owner/name", "v1", tmp_path)
    assert {"model_index.json", "unet/*", "segmenter/*", "styles/**"} <= set(asked["allow_patterns"])
    assert "*.ckpt" in asked["ignore_patterns"]


@pytest.mark.parametrize("given", [None, "v1"])
def test_a_revision_of_a_hub_repository_comes_with_its_name(bundle_folder, monkeypatch, given):
    asked = []
    monkeypatch.setattr(hub, "download", lambda source, **options: asked.append(source) or bundle_folder)
    assert resolve("owner/name@refs/pr/1", revision=given) == bundle_folder
    assert (asked[0].repo_id, asked[0].revision) == ("owner/name", "refs/pr/1")
    with pytest.raises(BundleError, match="a hub id 'owner/name' or 'owner/name@REVISION'"):
        resolve("owner/name@")


def test_half_precision_is_read_off_the_weights(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "half")
    assert not is_half(folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float16)
    unet.save_pretrained(folder / "unet")
    assert is_half(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert not is_half(folder)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no\nnetwork"), OSError("no\nnetwork")])
def test_hub_that_cannot_be_reached_is_one_sentence(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BundleError) as refused:
        DiffV2IRPipeline.from_pretrained("owner/name")
    message = str(refused.value)
    assert message.startswith("owner/name: not a folder here, not downloaded before, and the hub cannot be reached")
    assert "\n" not in message and "network" not in message
