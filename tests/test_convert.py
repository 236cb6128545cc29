"""Official checkpoints become bundles: the same outputs, every key accounted for, nothing run that is pickled."""

import argparse
import collections
import datetime
import functools
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from official_layout import Autoencoder, ClipText, LatentDiffusion, UNet, make_checkpoint, make_official
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from diffv2ir import bundle, hub
from diffv2ir.cli import main
from diffv2ir.convert import checkpoint as checkpoint_module
from diffv2ir.convert import write as write_module
from diffv2ir.convert.assemble import convert
from diffv2ir.convert.checkpoint import ConvertError, open_checkpoint
from diffv2ir.convert.official import read_components
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import PRESETS, GenerationSettings
from diffv2ir.training.phases import Parts

CLOSE = dict(rtol=1e-4, atol=1e-4)


def in_half(model):
    """The model with weights that float16 can hold, so that a conversion loses nothing."""
    return model.half().float()


@pytest.fixture(scope="module")
def parts(bundle_folder, tmp_path_factory):
    """Tokenizer, captioner (model and processor in one folder, as on the hub) and segmenter."""
    captioner = tmp_path_factory.mktemp("blip") / "captioner"
    shutil.copytree(bundle_folder / "captioner", captioner)
    shutil.copytree(bundle_folder / "captioner_processor", captioner, dirs_exist_ok=True)
    return {
        "tokenizer": bundle_folder / "tokenizer",
        "captioner": captioner,
        "segmenter": bundle_folder / "segmenter",
    }


@pytest.fixture(scope="module")
def official():
    return in_half(make_official())


@pytest.fixture(scope="module")
def average():
    return in_half(make_official(seed=1)).model.diffusion_model


@pytest.fixture(scope="module")
def checkpoint(official, average, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "phase2.ckpt"
    torch.save(make_checkpoint(official, average), path)
    return path


@pytest.fixture(scope="module")
def converted(checkpoint, parts, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_module, "SHARD", 1_000_000)  # several shards, as a model of true size has
        result = convert(checkpoint, target, **parts)
    assert result.missing == () and str(result) == f"{target}: a bundle, from a checkpoint of DiffV2IR"
    return target


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path_factory):
    """Whatever the hub's cache of this machine holds is not taken."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def state(official, average):
    """The weights of the checkpoint, to be changed."""
    return make_checkpoint(official, average)["state_dict"]


def shapes_of(state):
    return {key: tuple(weight.shape) for key, weight in state.items()}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_unet(folder, reference, channels=12):
    unet = UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32).eval()
    sample, text, timesteps = noise(2, channels, 16, 8), noise(2, 16, 128, seed=1), torch.tensor([3.0, 812.5])
    expected = reference(sample, timesteps, text)
    torch.testing.assert_close(unet(sample, timesteps, encoder_hidden_states=text).sample, expected, **CLOSE)


def test_unet_is_the_averaged_one(converted, average, official):
    assert len(list((converted / "unet").glob("*.safetensors"))) > 1
    assert_same_unet(converted / "unet", average)
    with pytest.raises(AssertionError):
        assert_same_unet(converted / "unet", official.model.diffusion_model)


def test_raw_weights_on_request(checkpoint, official, tmp_path):
    convert(checkpoint, tmp_path / "raw", ema=False)
    assert_same_unet(tmp_path / "raw" / "unet", official.model.diffusion_model)


@torch.no_grad()
def test_vae_gives_the_same(converted, official):
    vae = AutoencoderKL.from_pretrained(converted / "vae", dtype=torch.float32).eval()
    assert vae.config.scaling_factor == 0.18215
    image, latents = noise(1, 3, 24, 16), noise(1, 4, 12, 8)
    moments = official.first_stage_model.moments(image)
    torch.testing.assert_close(vae.encode(image).latent_dist.parameters, moments, **CLOSE)
    torch.testing.assert_close(vae.encode(image).latent_dist.mode(), moments[:, :4], **CLOSE)
    torch.testing.assert_close(vae.decode(latents).sample, official.first_stage_model.decode(latents), **CLOSE)


@torch.no_grad()
def test_text_encoder_gives_the_same(converted, official):
    text_encoder = CLIPTextModel.from_pretrained(converted / "text_encoder", dtype=torch.float32).eval()
    tokens = torch.randint(0, 195, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = official.cond_stage_model.transformer(tokens)
    torch.testing.assert_close(text_encoder(tokens)[0], expected, **CLOSE)


def test_bundle_is_complete_in_float16_and_translates(converted, photo):
    bundle.check(converted)
    weights = [path for path in converted.rglob("*.safetensors")]
    assert {tensor.dtype for path in weights for tensor in open_checkpoint(path).values()} == {torch.float16}
    pipe = DiffV2IRPipeline.from_pretrained(converted)
    settings = pipe.default_settings.replace(steps=2, resolution=64, seed=1)
    assert pipe(photo, settings, caption="a car").image.size == photo.size
    assert pipe.config.map_style == "union" and pipe.config.name == "phase2"
    assert pipe.default_settings == GenerationSettings().replace(**PRESETS["paper-code"])


def test_scheduler_is_that_of_the_checkpoint(converted, state):
    own = DDPMScheduler.from_pretrained(converted / "scheduler")
    torch.testing.assert_close(own.alphas_cumprod, state["alphas_cumprod"])
    assert (own.config.prediction_type, own.config.timestep_spacing) == ("epsilon", "linspace")


def test_another_noise_schedule_is_refused(state, tmp_path):
    state["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    torch.save(state, tmp_path / "cosine.ckpt")
    with pytest.raises(ConvertError, match="noise schedule .* is not that of Stable Diffusion 1.x"):
        convert(tmp_path / "cosine.ckpt", tmp_path / "out")


# Every key is accounted for


def test_all_parameters_of_true_size(official):
    for channels, count in ((4, 859_520_964), (8, 859_532_484), (12, 859_544_004)):
        with torch.device("meta"):
            model = LatentDiffusion(UNet(channels), Autoencoder(), ClipText())
        state = make_checkpoint(model)["state_dict"]
        assert state["model.diffusion_model.out.2.weight"].is_meta
        unet, vae, text = read_components(shapes_of(state), "official")
        assert sum(weight.numel() for weight in unet.model.state_dict().values()) == count
        assert len(unet.keys) == 686 and len(vae.keys) == 248 and len(text.keys) == 196
        used = [*unet.keys.values(), *vae.keys.values(), *text.keys.values()]
        assert len(set(used)) == len(used) == sum(1 for _ in model.parameters())
        for component in (unet, vae, text):
            assert all(weight.is_meta for weight in component.model.state_dict().values())
        assert unet.model.config.block_out_channels == [320, 640, 1280, 1280]
        assert text.model.config.num_attention_heads == 12 and vae.model.config.latent_channels == 4


MIDDLE = "model.diffusion_model.middle_block.0.in_layers.2.weight"
MIDDLE_EMA = "model_ema.diffusion_modelmiddle_block0in_layers2weight"


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (MIDDLE, "unet.mid_block.resnets.0.conv1.weight"),
        (MIDDLE_EMA, MIDDLE_EMA),
        ("first_stage_model.decoder.mid.attn_1.q.bias", "vae.decoder.mid_block.attentions.0.to_q.bias"),
        ("cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias", "encoder.layers.1.mlp.fc2.bias"),
        ("model.diffusion_model.output_blocks.1.1.conv.bias", "model.diffusion_model.output_blocks.1.1.conv.bias"),
        ("model.diffusion_model.input_blocks.2.0.op.bias", "unet.down_blocks.0.downsamplers.0.conv.bias"),
        ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight"),
    ],
)
def test_missing_keys_are_listed(state, gone, named):
    del state[gone]
    with pytest.raises(ConvertError, match="missing") as refused:
        read_components(shapes_of(state), "phase2.ckpt")
    assert named in str(refused.value) and str(refused.value).startswith("phase2.ckpt")


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.middle_block.0.in_layers.2.scale",
        "model_ema.diffusion_modelnothing",
        "first_stage_model.quantize.embedding.weight",
        "cond_stage_model.transformer.vision_model.embeddings.class_embedding",
        "cond_stage_model.logit_scale",
        "control_model.input_blocks.0.0.weight",
    ],
)
@pytest.mark.parametrize("ema", [True, False])
def test_unexpected_keys_are_listed(state, key, ema):
    state[key] = torch.zeros(3)
    with pytest.raises(ConvertError, match=rf"1 unexpected: {key}$"):
        read_components(shapes_of(state), "phase2.ckpt", ema)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("key", [MIDDLE, MIDDLE_EMA, "first_stage_model.encoder.mid.attn_1.k.weight"])
def test_misshapen_keys_are_listed(state, key, ema):
    shape = tuple(state[key].shape)
    state[key] = torch.zeros(*shape, 2)
    with pytest.raises(ConvertError, match="1 misshapen: ") as refused:
        read_components(shapes_of(state), "phase2.ckpt", ema)
    assert f"{key} is {(*shape, 2)}, expected {shape[:2] if 'attn' in key else shape}" in str(refused.value)


def test_all_kinds_of_problems_at_once(state):
    keys = [key for key in state if "output_blocks.1.0" in key]
    for key in keys:
        del state[key]
    state["foo"] = torch.zeros(3)
    state[MIDDLE_EMA] = torch.zeros(3)
    with pytest.raises(ConvertError) as refused:
        read_components(shapes_of(state), "phase2.ckpt")
    lines = str(refused.value).splitlines()
    assert lines[1].startswith(f"- {len(keys)} missing: unet.up_blocks.0.resnets.1")
    assert lines[2].startswith(f"- {len(keys) + 1} unexpected: foo, model_ema.") and "1 misshapen: " in lines[3]


def test_a_long_list_is_cut(state):
    for number in range(30):
        state[f"foo.{number:02}"] = torch.zeros(1)
    with pytest.raises(ConvertError, match=r"30 unexpected: foo.00, .*foo.19 and 10 more$"):
        read_components(shapes_of(state), "phase2.ckpt")


def test_all_of_a_long_list_are_in_a_file(state, tmp_path):
    foreign = [f"foo.{number:02}" for number in range(30)]
    del state[MIDDLE_EMA]
    torch.save({**state, **dict.fromkeys(foreign, torch.zeros(1))}, tmp_path / "long.ckpt")
    listed = tmp_path / "bundles" / "long.keys.txt"
    with pytest.raises(ConvertError, match=rf"foo.19 and 10 more\nAll of them: {listed}$"):
        convert(tmp_path / "long.ckpt", tmp_path / "bundles" / "long")
    assert listed.read_text().splitlines() == [f"missing: {MIDDLE_EMA}", *(f"unexpected: {key}" for key in foreign)]
    assert [path.name for path in listed.parent.iterdir()] == [listed.name]


def test_a_list_that_the_message_holds_is_in_no_file(state, tmp_path):
    torch.save({**state, "foo": torch.zeros(1)}, tmp_path / "short.ckpt")
    with pytest.raises(ConvertError, match="1 unexpected: foo$"):
        convert(tmp_path / "short.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["short.ckpt"]


def test_bookkeeping_is_known_by_name(state):
    state |= {"logvar": torch.zeros(1000), "first_stage_model.loss.perceptual_loss.lin0.weight": torch.zeros(1)}
    assert [component.name for component in read_components(shapes_of(state), "x")] == ["unet", "vae", "text_encoder"]


def test_other_models_are_refused(state):
    linear = {**shapes_of(state), "model.diffusion_model.middle_block.1.proj_in.weight": (64, 64)}
    with pytest.raises(ConvertError, match="Stable Diffusion 2 or later, expected one of 1.x"):
        read_components(linear, "sd2.ckpt")
    only_unet = {key: shape for key, shape in shapes_of(state).items() if not key.startswith("first_stage")}
    with pytest.raises(ConvertError, match="unet.ckpt: first_stage_model.* is missing"):
        read_components(only_unet, "unet.ckpt")


# Files


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_code_is_refused(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**make_checkpoint(official), "callbacks": Calls(os.system, "touch evil-was-here")}, "evil.ckpt")
    with pytest.raises(
        ConvertError, match=r"evil.ckpt is refused: loading it would call (posix|nt).system.*safetensors"
    ):
        convert(tmp_path / "evil.ckpt", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.ckpt"]


TOUCH = "open('evil-was-here', 'w')"


@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (Calls(eval, TOUCH), "builtins.eval"),
        (Calls(exec, TOUCH), "builtins.exec"),
        (Calls(getattr, "", "join"), "builtins.getattr"),
        (Calls(__import__, "os"), "builtins.__import__"),
        (Calls(importlib.import_module, "os"), "importlib.import_module"),
        (Calls(functools.partial, os.getcwd), "functools.partial"),
        (Calls(subprocess.Popen, ["touch", "evil-was-here"]), "Popen"),
        (Calls(np.load, "evil.npy", None, True), "numpy.load"),
        (Calls(shutil.rmtree, "."), "shutil.rmtree"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: argparse.Namespace(value=evil),
        lambda evil: collections.defaultdict(dict, {"value": evil}),
        lambda evil: collections.defaultdict(evil.call[0]),
        lambda evil: np.array([evil], dtype=object),
        lambda evil: Calls(pathlib.PurePosixPath, evil),
    ],
    ids=["bare", "Namespace", "defaultdict", "default_factory", "array", "argument"],
)
def test_code_is_refused_wherever_it_is(evil, named, wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": {"a": wrap(evil)}}, "evil.ckpt")
    with pytest.raises(ConvertError, match=rf"evil.ckpt is refused: loading it would call .*{re.escape(named)}"):
        open_checkpoint(tmp_path / "evil.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.ckpt"]


def foreign(patch, name, base=object):
    """A class of a package that is not here, for as long as `patch` lasts."""
    module, _, own = name.rpartition(".")
    made = type(own, (base,), {"__module__": module})
    for end in [*(place for place, letter in enumerate(module) if letter == "."), len(module)]:
        patch.setitem(sys.modules, module[:end], types.ModuleType(module[:end]))
    setattr(sys.modules[module], own, made)
    return made


def test_what_lightning_leaves_is_harmless(official, tmp_path, monkeypatch):
    """Classes of packages that are not here: as keys, as objects with a state, called, and as dicts."""
    with monkeypatch.context() as patch:
        kept = foreign(patch, "pytorch_lightning.callbacks.ModelCheckpoint")
        parameters = foreign(patch, "pytorch_lightning.utilities.parsing.AttributeDict", dict)
        saved = {
            "callbacks": {kept: {"best": 1}, "last": Calls(kept, 2, state={"best": 0.5})},
            "hyper_parameters": parameters(learning_rate=1e-4),
        }
        torch.save({**make_checkpoint(official), **saved}, tmp_path / "lightning.ckpt")
    weights = open_checkpoint(tmp_path / "lightning.ckpt")
    torch.testing.assert_close(weights[MIDDLE], official.state_dict()[MIDDLE])


def test_what_omegaconf_leaves_is_harmless(official, tmp_path, monkeypatch):
    """A DictConfig as omegaconf 2.1 pickles it; its Metadata has a defaultdict."""
    with monkeypatch.context() as patch:
        config = foreign(patch, "omegaconf.dictconfig.DictConfig")()
        config._metadata = foreign(patch, "omegaconf.base.ContainerMetadata")()
        vars(config._metadata).update(
            ref_type=object, object_type=dict, key_type=int, resolver_cache=collections.defaultdict(dict, {"a": {1: 2}})
        )
        config._content = {"lr": 1e-4}
        torch.save({**make_checkpoint(official), "hyper_parameters": config}, tmp_path / "omegaconf.ckpt")
    weights = open_checkpoint(tmp_path / "omegaconf.ckpt")
    torch.testing.assert_close(weights[MIDDLE], official.state_dict()[MIDDLE])


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(seed=1, nested=argparse.Namespace()),
        pathlib.PurePosixPath("/data"),
        pathlib.Path("data") / "sets",
        pathlib.PureWindowsPath("C:/data"),
        datetime.timedelta(hours=3),
        datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        np.arange(6.0).reshape(2, 3),
        np.array([{"a": 1}], dtype=object),
        np.float64(0.5),
        np.dtype("float32"),
        np.ndarray,
        frozenset({1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_hyperparameters_become_nothing(value, tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"value": value}}, tmp_path / "a.ckpt")
    assert torch.equal(open_checkpoint(tmp_path / "a.ckpt")["w"], torch.ones(2))
    got = checkpoint_module._load_pickle(tmp_path / "a.ckpt")["hyper_parameters"]["value"]
    assert getattr(got, "__module__", "") == checkpoint_module.__name__  # a stand-in, or the class of one
    assert vars(got) == {} or got is checkpoint_module._Inert


def test_dicts_of_other_classes_become_plain_ones(tmp_path):
    own = {"some": collections.defaultdict(list, {"a": [1]}), "other": collections.OrderedDict(b=2)}
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": own}, tmp_path / "a.ckpt")
    got = checkpoint_module._load_pickle(tmp_path / "a.ckpt")["hyper_parameters"]
    assert type(got["some"]) is dict and got == {"some": {"a": [1]}, "other": {"b": 2}}


def test_names_that_older_and_newer_versions_pickle(tmp_path):
    """numpy 1 and Python 3.13 call the same things otherwise."""
    torch.save({"state_dict": {"w": torch.ones(2)}, "a": np.float64(2), "b": pathlib.PosixPath("b")}, tmp_path / "a")
    names = [(b"numpy._core.multiarray", b"numpy.core.multiarray"), (b"pathlib\n", b"pathlib._local\n")]
    import zipfile

    with zipfile.ZipFile(tmp_path / "a") as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if entry.endswith("data.pkl"):
                for one, other in names:
                    assert one in content
                    content = content.replace(one, other)
            new.writestr(entry, content)
    assert torch.equal(open_checkpoint(tmp_path / "b.ckpt")["w"], torch.ones(2))


def test_the_old_format_is_told_from_damage(official, tmp_path):
    old = tmp_path / "old.ckpt"
    torch.save(make_checkpoint(official), old, _use_new_zipfile_serialization=False)
    with pytest.raises(ConvertError, match="old.ckpt is in the format of torch before 1.6") as refused:
        convert(old, tmp_path / "out")
    assert "truncated" not in str(refused.value)
    exec(re.search("`(.*)`", str(refused.value))[1], {})  # what it says to do helps
    assert convert(tmp_path / "old-new.ckpt", tmp_path / "out").started_from == "DiffV2IR"


def test_damaged_files_are_refused(checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    (tmp_path / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    save_file({"a": torch.zeros(100)}, tmp_path / "whole.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-50])
    for name in ("short.ckpt", "empty.ckpt", "short.safetensors"):
        with pytest.raises(ConvertError, match=f"{name} is truncated"):
            convert(tmp_path / name, tmp_path / "out")
    with pytest.raises(ConvertError, match="there is no such file"):
        convert(tmp_path / "nothing.ckpt", tmp_path / "out")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"step": 3, "w": torch.zeros(1)}, tmp_path / "mixed.ckpt")
    with pytest.raises(ConvertError, match="expected weights by name.*got none"):
        open_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(ConvertError, match="got others too: step"):
        open_checkpoint(tmp_path / "mixed.ckpt")


def test_weights_too_large_for_float16_are_refused(state, tmp_path):
    state[MIDDLE_EMA][0, 0, 0, 0] = 1e5
    torch.save(state, tmp_path / "large.ckpt")
    with pytest.raises(ConvertError, match=f"{MIDDLE_EMA} is not finite in float16 .*1e.05"):
        convert(tmp_path / "large.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["large.ckpt"]


def test_an_existing_folder_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConvertError, match="is there already"):
        convert(checkpoint, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


# Starting points


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Stable Diffusion in a safetensors file, without EMA, and its model."""
    model = in_half(make_official(in_channels=4))
    path = tmp_path_factory.mktemp("plain") / "sd.safetensors"
    save_file(make_checkpoint(model)["state_dict"], path)
    return path, model


@torch.no_grad()
def test_plain_stable_diffusion_is_widened(plain, parts, tmp_path):
    path, model = plain
    result = convert(path, tmp_path / "wide", **parts)
    assert (result.started_from, result.in_channels, result.missing) == ("Stable Diffusion", 12, ())
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "wide" / "unet", dtype=torch.float32)
    assert unet.config.in_channels == 12 and not unet.conv_in.weight[:, 4:].any()
    sample, text, timestep = noise(1, 12, 8, 8), noise(1, 16, 128), torch.tensor([500.0])
    expected = model.model.diffusion_model(sample[:, :4], timestep, text)
    torch.testing.assert_close(unet(sample, timestep, encoder_hidden_states=text).sample, expected, **CLOSE)
    assert DiffV2IRPipeline.from_pretrained(tmp_path / "wide").default_settings == GenerationSettings()


def test_instruct_pix2pix_is_widened(tmp_path):
    model = in_half(make_official(in_channels=8))
    torch.save(make_checkpoint(model, model.model.diffusion_model), tmp_path / "ip2p.ckpt")
    assert convert(tmp_path / "ip2p.ckpt", tmp_path / "wide").started_from == "InstructPix2Pix"
    weight = UNet2DConditionModel.from_pretrained(tmp_path / "wide" / "unet", dtype=torch.float32).conv_in.weight
    assert torch.equal(weight[:, :8], model.model.diffusion_model.input_blocks[0][0].weight)
    assert not weight[:, 8:].any()


def test_other_channels_are_refused(tmp_path):
    torch.save(make_checkpoint(make_official(in_channels=9)), tmp_path / "inpainting.ckpt")
    with pytest.raises(ConvertError, match=r"9 input channels, expected one of 4 \(Stable Diffusion\), 8"):
        convert(tmp_path / "inpainting.ckpt", tmp_path / "out")


@pytest.mark.parametrize("widen", [True, False])
def test_without_captioner_it_is_a_start_for_the_training(plain, parts, tmp_path, widen):
    target = tmp_path / "start"
    result = convert(plain[0], target, widen=widen, tokenizer=parts["tokenizer"])
    trains = "train.phase2 --start" if widen else "train.phase1 or train.phase2 --start"
    assert f"{target}: for {trains}; " in str(result)
    assert "to be a bundle it lacks --captioner, --segmenter" in str(result)
    loaded = Parts.load(target)
    assert loaded.vae.dtype == loaded.text_encoder.dtype == torch.float32
    unet = UNet2DConditionModel.from_pretrained(target / "unet", dtype=torch.float32)
    assert unet.config.in_channels == (12 if widen else 4)


def test_without_tokenizer_it_says_so(plain, tmp_path):
    result = convert(plain[0], tmp_path / "out")
    assert "no training can start from it yet" in str(result) and result.missing[-1] == "--tokenizer"


@pytest.fixture(scope="module")
def diffusers_folder(plain, parts, tmp_path_factory):
    """The same model as `plain`, as a StableDiffusionPipeline saves it."""
    root = tmp_path_factory.mktemp("diffusers")
    convert(plain[0], root / "converted", widen=False, tokenizer=parts["tokenizer"])
    pipe = StableDiffusionPipeline.from_pretrained(root / "converted", dtype=torch.float32)
    pipe.save_pretrained(root / "sd")
    return root / "sd"


def test_a_diffusers_folder_is_widened(diffusers_folder, plain, parts, tmp_path):
    result = convert(diffusers_folder, tmp_path / "wide", captioner=parts["captioner"], segmenter=parts["segmenter"])
    assert result.missing == ()
    pipe = DiffV2IRPipeline.from_pretrained(tmp_path / "wide")
    expected = plain[1].model.diffusion_model.input_blocks[0][0].weight
    assert torch.equal(pipe.unet.conv_in.weight[:, :4], expected) and not pipe.unet.conv_in.weight[:, 4:].any()
    assert CLIPTokenizer.from_pretrained(tmp_path / "wide" / "tokenizer").model_max_length == 16


def test_a_diffusers_folder_with_wrong_weights_is_refused(diffusers_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(diffusers_folder, broken)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {key: weight.clone() for key, weight in open_checkpoint(path).items()}
    weights["foo"] = weights.pop("conv_in.bias")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConvertError, match=r"1 missing: unet.conv_in.bias\n- 1 unexpected: unet.foo"):
        convert(broken, tmp_path / "out")
    (broken / "unet" / "config.json").unlink()
    with pytest.raises(ConvertError, match="config.json cannot be read .*: expected a diffusers folder"):
        convert(broken, tmp_path / "out")


def weights_in(folder):
    return {
        key: weight for path in sorted(folder.glob("*.safetensors")) for key, weight in open_checkpoint(path).items()
    }


OLD_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def test_diffusers_folders_of_all_ages_give_the_same(diffusers_folder, tmp_path):
    """Stable Diffusion 1.5 names the VAE's attention and CLIP's weights as versions of old did; .bin; shards."""
    folder = tmp_path / "old"
    shutil.copytree(diffusers_folder, folder)
    vae = open_checkpoint(folder / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in OLD_NAMES.items():
        vae = {key.replace(new, old) if "attentions" in key else key: weight.clone() for key, weight in vae.items()}
    assert sum("proj_attn" in key for key in vae) == 4
    save_file(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")

    text = open_checkpoint(folder / "text_encoder" / "model.safetensors")
    text = {f"text_model.{key.removeprefix('text_model.')}": weight.clone() for key, weight in text.items()}
    text["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save(text, folder / "text_encoder" / "pytorch_model.bin")

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()

    convert(diffusers_folder, tmp_path / "of-new")
    convert(folder, tmp_path / "of-old")
    for name in ("unet", "vae", "text_encoder"):
        expected, got = weights_in(tmp_path / "of-new" / name), weights_in(tmp_path / "of-old" / name)
        assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in got)
        assert {weight.dtype for weight in got.values()} == {torch.float16}


def test_a_diffusers_folder_without_weights_is_refused(diffusers_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(diffusers_folder, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConvertError, match="vae has no weights: expected diffusion_pytorch_model.safetensors or "):
        convert(broken, tmp_path / "out")


def test_a_config_of_another_model_is_refused(diffusers_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(diffusers_folder, broken)
    config = json.loads((broken / "unet" / "config.json").read_text())
    (broken / "unet" / "config.json").write_text(json.dumps({**config, "down_block_types": ["NoBlock"]}))
    with pytest.raises(ConvertError, match="unet/config.json does not describe a unet"):
        convert(broken, tmp_path / "out")


def test_a_bundle_is_not_converted_again(bundle_folder, tmp_path):
    with pytest.raises(ConvertError, match="is a bundle already"):
        convert(bundle_folder, tmp_path / "out")


def test_parts_of_other_models_are_refused(checkpoint, parts, diffusers_folder, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(parts["tokenizer"], tokenizer)
    config = json.loads((tokenizer / "tokenizer.json").read_text())
    config["added_tokens"].append({**config["added_tokens"][0], "id": 195, "content": "<extra>"})
    (tokenizer / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ConvertError, match="the tokenizer has 196 tokens, the text encoder 195"):
        convert(checkpoint, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(ConvertError, match="is not a BlipForConditionalGeneration"):
        convert(checkpoint, tmp_path / "out", captioner=tmp_path)
    with pytest.raises(ConvertError, match="is not an official SAM vit_b checkpoint"):
        convert(checkpoint, tmp_path / "out", segmenter=checkpoint)
    with pytest.raises(ConvertError, match="is not a SamSegmenter"):
        convert(checkpoint, tmp_path / "out", segmenter=diffusers_folder)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_vocabulary_is_refused(checkpoint, parts, tmp_path):
    """transformers makes an empty tokenizer of such a folder, and of a path that is not there."""
    for name in ("empty", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / "vocab.json").write_text("{}")
    for name in ("empty", "half"):
        with pytest.raises(
            ConvertError, match=f"{name} has no vocabulary .*tokenizer.json or merges.txt with vocab.json"
        ):
            convert(checkpoint, tmp_path / "out", tokenizer=tmp_path / name)
    with pytest.raises(ConvertError, match="nowhere: there is no such folder"):
        convert(checkpoint, tmp_path / "out", tokenizer=tmp_path / "nowhere")
    captioner = tmp_path / "captioner"
    shutil.copytree(parts["captioner"], captioner)
    (captioner / "tokenizer.json").unlink()
    with pytest.raises(ConvertError, match="captioner has no vocabulary .*tokenizer.json or vocab.txt"):
        convert(checkpoint, tmp_path / "out", captioner=captioner)


def test_command_says_which_weights_were_taken(checkpoint, official, diffusers_folder, tmp_path, capsys):
    raw = tmp_path / "raw.ckpt"
    torch.save(make_checkpoint(official), raw)
    said = {}
    for name, arguments in {
        "average": [checkpoint],
        "asked": [checkpoint, "--raw"],
        "none": [raw],
        "folder": [diffusers_folder],
    }.items():
        assert main(["convert", *map(str, arguments), "--to", str(tmp_path / name)]) == 0
        said[name] = re.search("^weights of the UNet: (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert said["average"] == "their average (EMA)"
    assert said["asked"] == "the raw ones, not their average (EMA), which the checkpoint has too"
    assert said["none"] == "the raw ones: the checkpoint has no average of them (EMA, model_ema.*)"
    assert said["folder"].startswith("those of the folder")


def test_command(checkpoint, parts, tmp_path, capsys):
    target = tmp_path / "bundle"
    assert main(["convert", str(checkpoint), "--to", str(target), "--tokenizer", str(parts["tokenizer"])]) == 0
    assert "unet ...\nvae ...\n" in (out := capsys.readouterr().out) and "lacks --captioner, --segmenter" in out
    assert main(["convert", str(checkpoint), "--to", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_can_be_fetched_is_taken_by_its_name(checkpoint, parts, tmp_path, monkeypatch, capsys):
    places = {"stage2": checkpoint, "blip": parts["captioner"], "sam": parts["segmenter"]}
    asked = []

    def download(source, to=None, tell=None):
        asked.append(source)
        return places[next(name for name, known in hub.SOURCES.items() if known is source)]

    monkeypatch.setattr(hub, "download", download)
    arguments = ["convert", "stage2", "--to", str(tmp_path / "paper"), "--captioner", "blip", "--segmenter", "sam"]
    assert main([*arguments, "--tokenizer", str(parts["tokenizer"])]) == 0
    assert asked == [hub.SOURCES[name] for name in ("stage2", "blip", "sam")]
    assert "a bundle, from a checkpoint of DiffV2IR" in capsys.readouterr().out
