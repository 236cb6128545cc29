"""The phases one after the other on real classes: what is trained, what stays, and what each folder holds."""

import collections
import contextlib
import errno
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from make_data import make_manifest_dataset, make_start_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffv2ir import bundle
from diffv2ir.data import DataError, read_examples
from diffv2ir.phases import draw_phases
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training import phases, validation
from diffv2ir.training.cache import ViewConfig
from diffv2ir.training.diffusion import DROPPED_SUBSETS, DiffusionObjective, NoiseConfig, SeeingUNet, build_unet
from diffv2ir.training.fresh import FreshConfig
from diffv2ir.training.loop import Draw, LoopConfig, TrainingError
from diffv2ir.training.pack import pack_bundle
from diffv2ir.training.phases import LoraSettings, Parts, PhaseConfig, UNetSettings, prepare_unet, train_phase
from diffv2ir.training.pictures import PictureConfig
from diffv2ir.training.seeing import FeatureTarget
from diffv2ir.training.teacher import Member, TeacherConfig, train_teacher
from diffv2ir.training.validation import validate_bundle
from diffv2ir.unet import load_lora, merge_lora
from diffv2ir.vlum import build_prompt

LORA = LoraSettings(rank=2, alpha=4, targets=("to_q", "conv1"))
UNET = UNetSettings(block_out_channels=(16, 32), heads=2, norm_num_groups=8, sample_size=8)
LOOP = LoopConfig(steps=2, batch_size=4, learning_rate=1e-2, warmup_steps=1, ema_decay=0.5, checkpoint_every=1)
COMMON = dict(loop=LOOP, view=ViewConfig(resize=18, crop=16, variants=2), unet=UNET)
CONFIGS = {
    "base": PhaseConfig(phase="base", **COMMON),
    "1": PhaseConfig(phase="1", lora=LORA, **COMMON),
    "2": PhaseConfig(phase="2", defaults={"steps": 2, "resolution": 64, "sampler": "ddim"}, **COMMON),
    "adapter": PhaseConfig(phase="3", style="dusk", lora=LORA, **COMMON),
    "full": PhaseConfig(phase="3", style="dawn", **COMMON),
}
CONFIGS["2"] = replace(CONFIGS["2"], loop=replace(LOOP, validate_every=2))

Chain = collections.namedtuple("Chain", "results seen examples vlum")


@contextlib.contextmanager
def recording_objective(seen):
    """While it lasts, `seen` collects what the objective is given."""

    class Recording(DiffusionObjective):
        def __call__(self, unet, draws, targets, prompts, conditions, **losses):
            seen.append((self.scaling_factor, prompts, None if conditions is None else conditions.shape[1:]))
            return super().__call__(unet, draws, targets, prompts, conditions, **losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "DiffusionObjective", Recording)
        yield


@pytest.fixture(scope="module")
def chain(bundle_folder, tmp_path_factory):
    """All phases, each from the result of the one before; phase 3 twice."""
    output = tmp_path_factory.mktemp("chain")
    examples = read_examples(make_manifest_dataset(output / "data", pairs=5, infrared=3), split="train")
    results = {"parts": make_start_folder(bundle_folder, output / "parts", unet=False)}
    starts = {"base": "parts", "1": "base", "2": "1", "adapter": "2", "full": "adapter"}
    seen = collections.defaultdict(list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "STEPS", 1)
        patch.setattr(validation, "IMAGES", 1)
        for name, start in starts.items():
            options = dict(
                cache=output / "cache", vlum=bundle_folder, validation=examples[:2], validate=validate_bundle
            )
            with recording_objective(seen[name]):
                results[name] = train_phase(CONFIGS[name], examples, results[start], output / name, **options)
    return Chain(results, seen, examples, bundle_folder)


@pytest.fixture
def train(chain, tmp_path):
    """Train a phase from the chain's folders into a new one."""

    def train(name, start, teacher=None, **changes):
        config = replace(CONFIGS[name], **changes)
        options = dict(cache=tmp_path / "cache", vlum=chain.vlum, teacher=teacher)
        return train_phase(config, chain.examples, chain.results[start], tmp_path / "run", **options)

    return train


def unet_state(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def checkpoints(result):
    return sorted((result.parent / "checkpoints").iterdir())


# Base


def test_base_is_a_text_to_image_folder(chain):
    pipe = StableDiffusionPipeline.from_pretrained(chain.results["base"])
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.in_channels == 4
    image = pipe("a car", num_inference_steps=1, height=16, width=16, output_type="np").images[0]
    assert image.shape == (16, 16, 3)


def test_base_learns_captions_of_the_dataset_and_of_blip(chain):
    prompts = {prompt for _, batch, _ in chain.seen["base"] for prompt in batch}
    known = {example.caption for example in chain.examples if example.caption}
    assert prompts & known and prompts - known - {""}  # the first scene has no caption, BLIP makes one
    assert all(conditions is None for *_, conditions in chain.seen["base"])


# What an ImageNet network sees, as a second target


@pytest.mark.parametrize(("name", "start"), [("2", "1"), ("adapter", "2")])
def test_the_middle_of_the_unet_learns_what_the_imagenet_network_sees(train, chain, tmp_path, name, start):
    loop = replace(LOOP, steps=12, log_every=1, validate_every=0)
    view = ViewConfig(resize=36, crop=32)
    teacher = train_teacher(
        chain.examples, tmp_path / "teacher", TeacherConfig(replace(loop, steps=1), view, (Member(width=16),))
    )
    result = train(name, start, teacher, fresh=FreshConfig(uses=1000, seeing=1.0), loop=loop, view=view)
    seeing = [entry["seeing"] for entry in json.loads((result.parent / "history.json").read_text())["history"]]
    assert len(seeing) == 12 and sum(seeing[-4:]) < sum(seeing[:4])
    weights = unet_state(result)
    assert weights.keys() == unet_state(chain.results["2"]).keys()  # the head stays behind
    assert DiffV2IRPipeline.from_pretrained(result).styles[-1] == ("general" if name == "2" else "dusk")


def test_seeing_counts_where_the_photo_is_shown():
    unet = build_unet((8, 16), 1, 8, 2, norm_num_groups=4, in_channels=12, out_channels=4, sample_size=8)
    target = FeatureTarget(torch.tensor([[1 - 2**0.5, 1 + 2**0.5]]).expand(3, 2))  # mean 1, deviation 2
    model = SeeingUNet(unet, target)
    given = torch.randn(4, 12, 8, 8), torch.tensor([5, 6, 7, 8]), torch.randn(4, 3, 8)
    output = model(*given)
    assert torch.equal(output.sample, unet(*given).sample)
    assert output.seen.shape == (4, 3, 4, 4)  # the UNet halves once
    features = [torch.randn(3, 2, 2), None, torch.randn(3, 1, 1).expand(3, 2, 2), None]
    pooled = torch.nn.functional.adaptive_avg_pool2d(output.seen, 2)
    errors = [((pooled[n] - (features[n] - 1) / 2) ** 2).mean() for n in (0, 2)]
    loss = phases._seeing_loss(model, 0.5, features, output.seen)
    torch.testing.assert_close(loss, 0.5 * sum(errors) / 4)
    nothing = phases._seeing_loss(model, 0.5, [None] * 4, output.seen)
    assert nothing == 0 and nothing.requires_grad


# The picture that is shown


@pytest.mark.parametrize(("name", "start"), [("2", "1"), ("adapter", "2")])
def test_the_picture_itself_is_learnt(train, chain, name, start):
    precision = "bf16" if name == "2" else "no"
    loop = replace(LOOP, steps=12, log_every=1, validate_every=0, mixed_precision=precision)
    options = dict(
        frozen_dtype="bf16",
        picture=PictureConfig(edge_radius=20),
        noise=NoiseConfig(last_step_share=0.8),
        fresh=FreshConfig(real=1.0, uses=1000),
    )
    result = train(name, start, loop=loop, view=ViewConfig(resize=36, crop=32), **options)
    history = json.loads((result.parent / "history.json").read_text())["history"]
    known = [entry["picture"] for entry in history if "picture" in entry]
    assert len(known) > 6 and sum(known[-3:]) < sum(known[:3])
    assert all({"squared", "structure", "perceptual"} <= entry.keys() for entry in history if "picture" in entry)
    assert DiffV2IRPipeline.from_pretrained(result).styles[-1] == ("general" if name == "2" else "dusk")


def test_where_a_picture_cannot_be_learnt(train, chain, tmp_path):
    picture = PictureConfig()
    for phase in ("base", "1"):
        with pytest.raises(ValueError, match="picture is for phases 2 and 3"):
            replace(CONFIGS[phase], picture=picture)
    noise = shutil.copytree(chain.results["1"], tmp_path / "noise")
    file = noise / "scheduler" / "scheduler_config.json"
    changed = json.loads(file.read_text()) | {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    file.unlink()  # it may be a link into the chain's folder
    file.write_text(json.dumps(changed))
    chain.results["noise"] = noise
    with pytest.raises(ValueError, match="picture needs a model that predicts velocities"):
        train("2", "noise", picture=picture, fresh=FreshConfig(real=1.0))
    assert not (tmp_path / "cache").exists()  # it is said before anything is made


# A part of the weights before


def test_a_share_of_the_weights_before_stays(train, chain):
    """The training itself is the same, whatever share it is; the weights of its start are those that were widened."""
    options = dict(loop=replace(LOOP, validate_every=0))
    ends = {}
    for share in (0.0, 0.25, 0.75):
        result = train("2", "2", start_share=share, **options)
        ends[share] = unet_state(result)
        shutil.rmtree(result.parent)
    before = unet_state(chain.results["2"])
    assert changed(before, ends[0.0])
    for share in (0.25, 0.75):
        for name, value in ends[share].items():
            torch.testing.assert_close(value, (1 - share) * ends[0.0][name] + share * before[name])
    with pytest.raises(ValueError, match=r"start_share must lie in \[0, 1\), got 1"):
        replace(CONFIGS["2"], start_share=1.0)
    for name in ("base", "1"):
        with pytest.raises(ValueError, match="start_share is for phases 2 and 3"):
            replace(CONFIGS[name], start_share=0.5)


def test_a_share_of_an_adapters_effect_is_taken_away(train, chain):
    """The matrix that starts at random stays as it was trained: with a share of it, too, the line would be a curve."""
    ends = {}
    for share in (0.0, 0.25):
        result = train("adapter", "2", start_share=share, loop=replace(LOOP, validate_every=0))
        ends[share] = load_file(result / "styles" / "dusk" / bundle.ADAPTER)
        shutil.rmtree(result.parent)
    assert any(value.abs().max() > 0 for name, value in ends[0.0].items() if "lora_B" in name)
    for name, value in ends[0.25].items():
        torch.testing.assert_close(value, ends[0.0][name] * (0.75 if "lora_B" in name else 1.0))


def test_a_share_before_counts_from_the_text_to_image_model_with_new_channels(train, chain):
    result = train("2", "1", start_share=0.999, loop=replace(LOOP, validate_every=0))
    weights, before = unet_state(result), unet_state(chain.results["1"])
    channels = before["conv_in.weight"].shape[1]
    torch.testing.assert_close(weights["conv_in.weight"][:, :channels], before["conv_in.weight"], atol=1e-3, rtol=0)
    assert weights["conv_in.weight"][:, channels:].abs().max() < 1e-3


# Frozen parts in half precision


def test_frozen_parts_in_half_precision(chain, train):
    """Autoencoder, text encoder and captioner compute in bfloat16, the UNet is trained in float32."""
    seen = collections.defaultdict(set)

    def record(module, inputs, output):
        seen[type(module).__name__].update(parameter.dtype for parameter in module.parameters())

    hook = torch.nn.modules.module.register_module_forward_hook(record)
    try:  # the chain before, in this process, had float32
        result = train("2", "1", frozen_dtype="bf16", own_captions=True, loop=replace(LOOP, mixed_precision="bf16"))
    finally:
        hook.remove()
    half, single = {torch.bfloat16}, {torch.float32}
    assert (seen["Encoder"], seen["CLIPTextModel"], seen["BlipVisionModel"]) == (half, half, half)
    assert (seen["UNet2DConditionModel"], seen["ImageEncoderViT"]) == (single, single)
    assert {value.dtype for value in unet_state(result).values()} == single
    assert all(weight.isfinite().all() for weight in unet_state(result).values())
    for name in ("vae", "text_encoder"):  # what the result holds is what it started from
        path = next((result / name).glob("*.safetensors"))
        assert path.read_bytes() == next((chain.results["1"] / name).glob("*.safetensors")).read_bytes()


# Phase 1


def test_phase_1_trains_the_adapter_alone(chain):
    unet = phases._initial_unet(CONFIGS["1"], Parts.load(chain.results["base"]))
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    before, after = unet_state(chain.results["base"]), unet_state(chain.results["1"])
    merged = changed(before, after)
    assert merged == {name for name in before if name.endswith((".to_q.weight", ".conv1.weight"))}


def test_phase_1_keeps_the_adapter_that_it_merges(chain):
    unet = UNet2DConditionModel.from_pretrained(chain.results["base"] / "unet")
    load_lora(unet, chain.results["1"] / "styles" / "infrared", "infrared")
    ours, theirs = merge_lora(unet).state_dict(), unet_state(chain.results["1"])
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def test_phase_1_has_one_prompt_and_no_condition(chain):
    assert {prompt for _, batch, _ in chain.seen["1"] for prompt in batch} == {"an infrared image"}
    assert all(conditions is None for *_, conditions in chain.seen["1"])


# Phase 2


def test_phase_2_widens_the_first_convolution_and_keeps_what_it_was(chain):
    unet = phases._initial_unet(CONFIGS["2"], Parts.load(chain.results["1"]))
    before = unet_state(chain.results["1"])
    assert unet.conv_in.weight.shape[1] == unet.config.in_channels == 12
    assert torch.equal(unet.conv_in.weight[:, :4], before["conv_in.weight"])
    assert not unet.conv_in.weight[:, 4:].any()
    assert torch.equal(unet.conv_in.bias, before["conv_in.bias"])
    assert all(parameter.requires_grad for parameter in unet.parameters())
    trained = unet_state(chain.results["2"])["conv_in.weight"]
    assert trained[:, 4:8].any() and trained[:, 8:].any()


def test_phases_see_scaled_targets_conditions_and_prompts(chain):
    captions = {example.caption for example in chain.examples if example.visible}
    for name in ("2", "adapter", "full"):
        for scaling, prompts, conditions in chain.seen[name]:
            assert scaling == 0.5  # of the small autoencoder
            assert conditions == (8, 4, 4)
            assert any(prompt == build_prompt(caption) for prompt in prompts for caption in captions if caption)


@pytest.mark.parametrize("name", ["2", "adapter", "full"])
def test_result_is_a_bundle_that_generates(chain, photo, name):
    pipe = DiffV2IRPipeline.from_pretrained(chain.results[name])
    wanted = {"2": ["general"], "adapter": ["general", "dusk"], "full": ["general"]}
    assert (pipe.styles, pipe.config.name) == (wanted[name], CONFIGS[name].style or "general")
    assert (pipe.config.map_style, pipe.default_settings.sampler) == ("regions", "ddim")
    pictures = [pipe(photo, pipe.default_settings.replace(seed=1, style=style)).image for style in pipe.styles]
    assert all(picture.size == photo.size and picture.mode == "L" for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pipe.styles)


@pytest.mark.parametrize(("name", "style"), [("1", "infrared"), ("adapter", "dusk")])
def test_an_adapter_that_is_trained_again_replaces_the_one_before(chain, tmp_path, name, style):
    before = chain.results[name]
    if name == "adapter":  # with another style after it
        before = shutil.copytree(before, tmp_path / "start")
        shutil.copytree(before / "styles" / style, before / "styles" / "noon")
        index = json.loads((before / bundle.INDEX).read_text())
        (before / bundle.INDEX).write_text(json.dumps(index | {"styles": ["general", style, "noon"]}))
    file = f"styles/{style}/{bundle.ADAPTER}"
    old = (before / file).read_bytes()
    config = replace(CONFIGS[name], loop=replace(LOOP, seed=1))
    options = dict(cache=tmp_path / "cache", vlum=chain.vlum)
    result = train_phase(config, chain.examples, before, tmp_path / "again", **options)
    assert (result / file).read_bytes() != old == (before / file).read_bytes()
    if name == "adapter":
        assert json.loads((result / bundle.INDEX).read_text())["styles"] == ["general", "noon", style]


@pytest.mark.parametrize("name", ["2", "adapter", "full"])
def test_every_checkpoint_is_a_bundle(chain, name):
    folders = checkpoints(chain.results[name])
    assert [folder.name for folder in folders] == ["step-0000001", "step-0000002"]
    for folder in folders:
        bundle.check(folder)
    DiffV2IRPipeline.from_pretrained(folders[0]).set_style(CONFIGS[name].style if name == "adapter" else "general")
    kind = "styles/dusk/" + bundle.ADAPTER if name == "adapter" else "unet/diffusion_pytorch_model.safetensors"
    first, last = (load_file(folder / kind) for folder in folders)
    assert changed(first, last)
    assert not changed(last, load_file(chain.results[name] / kind))


def test_validation_writes_a_sheet_and_figures(chain):
    output = chain.results["2"].parent
    sheet = Image.open(output / "samples" / "step-0000002.png")
    assert sheet.width > sheet.height > 100
    history = json.loads((output / "history.json").read_text())["history"]
    (figures,) = [entry for entry in history if "validation/psnr" in entry]
    assert figures["step"] == 2 and 0 < figures["validation/psnr"] < 60 and -1 <= figures["validation/ssim"] <= 1
    assert not (output / "candidate").exists()


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float16), ("cpu", torch.float32)])
def test_validation_makes_room_for_the_training_on_a_gpu(chain, tmp_path, monkeypatch, device, dtype):
    """In half precision there, and in a memory mode; played on the CPU."""
    placed, emptied = [], []

    def record(pipe, where):
        kinds = {name: next(getattr(pipe, name).parameters()).dtype for name in ("unet", "vae", "captioner")}
        placed.append((where, set(kinds.values())))
        pipe.to(torch.float32)

    monkeypatch.setattr(validation, "process_state", lambda: SimpleNamespace(device=torch.device(device)))
    monkeypatch.setattr(validation, "place", record)
    monkeypatch.setattr(validation, "empty_device_cache", emptied.append)
    monkeypatch.setattr(validation, "IMAGES", 1)
    figures = validate_bundle(chain.results["2"], chain.examples[:1], 1, tmp_path)
    assert figures["validation/psnr"] > 0
    assert placed == [(torch.device(device), {dtype})] and emptied == ["cuda"] * (device == "cuda")


# Phase 3


def test_phase_3_adapter_leaves_the_general_weights(chain):
    assert not changed(unet_state(chain.results["2"]), unet_state(chain.results["adapter"]))


def test_phase_3_in_full_changes_all_weights(chain):
    before, after = unet_state(chain.results["adapter"]), unet_state(chain.results["full"])
    assert len(changed(before, after)) > 0.9 * len(before)


def test_a_finished_phase_is_not_trained_again(chain, monkeypatch):
    monkeypatch.setattr(phases, "Loop", None)
    result = chain.results["2"]
    options = dict(cache=result.parent.parent / "cache", vlum=chain.vlum)
    assert train_phase(CONFIGS["2"], chain.examples, chain.results["1"], result.parent, **options) == result


# Condition dropout


@pytest.fixture(scope="module")
def sampled(chain):
    """Draws -> what phase 2 feeds for them."""
    parts = Parts.load(chain.results["1"])
    latents, captions = phases._fill_caches(
        CONFIGS["2"], parts, chain.examples[:2], chain.results["2"].parent.parent / "cache", chain.vlum
    )
    example = chain.examples[1]
    views = latents.load(example, 0)

    def sample(position, band=None):
        draw = Draw(position=position, epoch=0, index=0, seed=3)
        band = band or latents.band(example, draw)
        *fed, _, sees_photo = phases._sample(CONFIGS["2"], views, band, captions, example, draw)
        assert sees_photo == bool(fed[2][:4].any())
        return fed

    return sample, views


def test_each_subset_of_conditions_is_dropped_two_percent_of_the_time(sampled, chain):
    sample, views = sampled
    counts = collections.Counter()
    for position in range(4000):
        target, prompt, conditions = sample(position)
        assert torch.equal(target, views["infrared"])
        dropped = ""
        for letter, part, role in zip("VS", conditions.split(4), ("visible", "segmentation"), strict=True):
            if part.any():
                assert torch.equal(part, views[role])  # unscaled, as the encoder gives it
            else:
                dropped += letter
        assert prompt == ("" if (lost := prompt == "") else build_prompt(chain.examples[1].caption))
        counts[dropped + "T" * lost] += 1
    assert set(counts) == {"", *DROPPED_SUBSETS}
    assert all(0.012 < counts[subset] / 4000 < 0.028 for subset in DROPPED_SUBSETS)


def test_a_view_that_asks_for_another_band_keeps_the_prompt_that_says_so(sampled, chain):
    sample, _ = sampled
    fed = [sample(position, "NIR") for position in range(400)]
    assert {prompt for _, prompt, _ in fed} == {build_prompt(chain.examples[1].caption, "NIR")}
    assert 0.05 < sum(not conditions[:4].any() for *_, conditions in fed) / 400 < 0.12  # four of the seven subsets


def test_dropout_belongs_to_the_draw(sampled):
    sample, _ = sampled
    for position in range(100):
        (_, prompt, conditions), (_, prompt_again, conditions_again) = sample(position), sample(position)
        assert prompt == prompt_again and torch.equal(conditions, conditions_again)


# What goes wrong


def test_non_finite_loss_keeps_the_last_checkpoint(train, tmp_path, monkeypatch):
    calls = []

    class Exploding(DiffusionObjective):
        def __call__(self, *arguments, **options):
            calls.append(1)
            losses = super().__call__(*arguments, **options)
            return {"loss": losses["loss"] * (float("nan") if len(calls) == 2 else 1)}

    monkeypatch.setattr(phases, "DiffusionObjective", Exploding)
    with pytest.raises(TrainingError, match="phase 2: step 2 gave loss nan.*Last good checkpoint: step-0000001"):
        train("2", "1")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    bundle.check(folder)
    assert all(torch.isfinite(value).all() for value in unet_state(folder).values())
    assert not (tmp_path / "run" / "result").exists()


def test_full_disk_keeps_the_last_checkpoint(train, tmp_path, monkeypatch):
    save, written = UNet2DConditionModel.save_pretrained, []

    def full(self, folder, **options):
        written.append(folder)
        if len(written) == 2:
            (folder / "config.json").parent.mkdir()
            (folder / "config.json").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, folder, **options)

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        train("2", "1")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000001"]
    bundle.check(tmp_path / "run" / "checkpoints" / "step-0000001")
    monkeypatch.undo()
    bundle.check(train("2", "1"))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=2, targets=("to_q", "conv1"))])
def test_gradient_checkpointing_gives_the_same_gradients(lora, new_unet):
    config = PhaseConfig("3", LoopConfig(steps=1), style="dusk", lora=lora)
    sample, text = torch.randn(2, 12, 8, 8), torch.randn(2, 5, 32)

    def gradients(config):
        torch.manual_seed(0)
        unet = prepare_unet(config, new_unet(), 4, "here")
        assert unet.is_gradient_checkpointing == config.gradient_checkpointing
        unet(sample, torch.tensor([10, 900]), text).sample.square().mean().backward()
        return {name: parameter.grad for name, parameter in unet.named_parameters() if parameter.requires_grad}

    plain, checkpointed = gradients(config), gradients(replace(config, gradient_checkpointing=True))
    assert any(gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("precision", "channels_last"), [("no", True), ("bf16", False)])
def test_weights_lie_as_their_gradients_are_fast(precision, channels_last, new_unet):
    unet = prepare_unet(
        PhaseConfig("3", LoopConfig(steps=1, mixed_precision=precision), style="dusk"), new_unet(), 4, ""
    )
    assert unet.conv_in.weight.is_contiguous() is not channels_last


def test_missing_8bit_adam_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    for module in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    config = PhaseConfig("2", LoopConfig(steps=1, optimizer="adamw8bit"), validation_fraction=0.0)
    examples = read_examples(make_manifest_dataset(tmp_path / "data", pairs=2, infrared=0), split="train")
    with pytest.raises(ValueError, match="needs the package bitsandbytes .*pip install bitsandbytes"):
        train_phase(config, examples, tmp_path / "nowhere", tmp_path / "run", cache=tmp_path / "cache")


def test_start_of_another_phase_is_refused(train):
    with pytest.raises(ValueError, match="phase 3 needs a UNet of 12 input channels, .* has one of 4"):
        train("full", "base")
    with pytest.raises(ValueError, match="phase 1 needs a UNet of 4 input channels, .* has one of 12"):
        train("1", "2")


def test_adapter_with_other_maps_than_its_bundle_is_refused(train):
    with pytest.raises(ValueError, match="map_style must be that of .*'regions', got 'union'"):
        train("adapter", "2", map_style="union")


def test_nothing_to_train_on_is_refused(train):
    with pytest.raises(DataError, match=r"phase 2: no example of kinds \('crops',\)"):
        train("2", "1", kinds=("crops",))


def test_examples_are_chosen_and_weighted_by_source_and_kind(chain):
    weighted = replace(CONFIGS["2"], sources=("odd",), source_weights={"odd": 2.0, "odd/infrared": 0.5})
    by_kind = {example.kind: example for example in chain.examples if example.source == "odd"}
    assert weighted.fits(by_kind["pairs"]) and not weighted.fits(by_kind["infrared"])
    assert replace(CONFIGS["1"], sources=("odd",)).fits(by_kind["infrared"])
    assert not any(weighted.fits(example) for example in chain.examples if example.source == "even")
    assert weighted.weights([by_kind["pairs"], by_kind["infrared"]]) == [2.0, 0.5]
    assert CONFIGS["2"].weights(list(by_kind.values())) is None  # one permutation an epoch


# Packing


def test_a_run_goes_on_with_its_own_examples_alone(chain, train, tmp_path):
    output = tmp_path / "run"
    train("2", "1")
    shutil.rmtree(output / "result")
    (output / "history.json").unlink()  # as if it had been stopped
    options = dict(cache=tmp_path / "cache", vlum=chain.vlum)
    with pytest.raises(TrainingError, match="was begun with other examples"):
        train_phase(CONFIGS["2"], chain.examples[1:], chain.results["1"], output, **options)
    assert train_phase(CONFIGS["2"], chain.examples, chain.results["1"], output, **options).is_dir()


def test_a_style_trained_anew_on_several_bands_asks_for_none(chain, tmp_path):
    index = json.loads((chain.results["adapter"] / bundle.INDEX).read_text())
    index["bands"] = {"general": "LWIR", "dusk": "NIR"}
    (tmp_path / bundle.INDEX).write_text(json.dumps(index))
    phases._write_bundle_index(CONFIGS["adapter"], tmp_path, tmp_path, {"LWIR", "NIR"})
    assert json.loads((tmp_path / bundle.INDEX).read_text())["bands"] == {"general": "LWIR"}


def test_packed_bundle_is_in_half_precision_and_has_the_styles(chain, photo, tmp_path):
    styles = {"dusk": chain.results["adapter"], "twin": tmp_path / "twin"}
    adapter = chain.results["adapter"] / "styles" / "dusk" / bundle.ADAPTER
    twin = tmp_path / "twin" / "styles" / "twin" / bundle.ADAPTER
    twin.parent.mkdir(parents=True)
    # The same weights with a header in another order, as another process may write it.
    with safe_open(adapter, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    config = {**config, "target_modules": config["target_modules"][::-1]}
    save_file(load_file(adapter), twin, {"lora_adapter_metadata": json.dumps(config), "format": "pt"})
    index = json.loads((chain.results["adapter"] / bundle.INDEX).read_text())
    (tmp_path / "twin" / bundle.INDEX).write_text(json.dumps({**index, "bands": {"twin": "NIR"}}))
    packed = pack_bundle(chain.results["2"], styles, tmp_path / "packed", "small", {"steps": 3})
    one, other = ((packed / "styles" / style / bundle.ADAPTER).read_bytes() for style in ("dusk", "twin"))
    assert one == other and len(config["target_modules"]) > 1
    for path in packed.rglob("*.safetensors"):
        kinds = {value.dtype for value in load_file(path).values() if value.is_floating_point()}
        assert kinds == {torch.float16}, path
    pipe = DiffV2IRPipeline.from_pretrained(packed)
    assert (pipe.styles, pipe.config.name) == (["general", "dusk", "twin"], "small")
    assert pipe.config.bands == {"general": "LWIR", "dusk": "LWIR", "twin": "NIR"}
    assert (pipe.default_settings.steps, pipe.default_settings.sampler) == (3, "ddim")
    general = unet_state(chain.results["2"])
    assert all(torch.equal(pipe.unet.state_dict()[name], value.half().float()) for name, value in general.items())
    assert pipe(photo, pipe.default_settings.replace(seed=1, style="dusk")).image.size == photo.size
    for path in packed.rglob("*.json"):
        assert str(chain.results["2"].parent.parent) not in path.read_text(), path


def test_a_bundle_can_hold_base_and_phase_1(chain, photo, tmp_path):
    early = (chain.results["base"], chain.results["1"])
    packed = pack_bundle(chain.results["2"], {}, tmp_path / "packed", "small", {"steps": 1}, early)
    pipe = DiffV2IRPipeline.from_pretrained(packed)
    pictures = list(draw_phases(pipe, pipe.prepare(photo, caption="a tree"), pipe.default_settings))
    assert [picture.name for picture in pictures] == ["base", "phase 1", "phase 2"]
    for path in (packed / "phases").rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}, path


def test_phase_2_goes_on_from_a_packed_bundle(chain, tmp_path):
    packed = pack_bundle(chain.results["2"], {}, tmp_path / "packed", "small", {})
    parts = Parts.load(packed)
    assert {next(part.parameters()).dtype for part in (parts.vae, parts.text_encoder)} == {torch.float32}
    result = train_phase(CONFIGS["2"], chain.examples, packed, tmp_path / "run", cache=tmp_path / "cache")
    before, after = unet_state(packed), unet_state(result)
    assert after["conv_in.weight"].shape[1] == 12 and after["conv_in.weight"].dtype == torch.float32
    assert "conv_in.weight" in changed({name: value.float() for name, value in before.items()}, after)
    assert DiffV2IRPipeline.from_pretrained(result).styles == ["general"]
