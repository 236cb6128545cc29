"""From photo to infrared picture, with every component real and tiny."""

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from diffv2ir import __version__
from diffv2ir.imaging import ImageError
from diffv2ir.metadata import restore
from diffv2ir.pipeline import DiffV2IRPipeline, Output
from diffv2ir.settings import SAMPLERS, GenerationSettings

QUICK = GenerationSettings(steps=2, resolution=64, sampler="ddim", seed=7)


def pixels(output: Output) -> np.ndarray:
    return np.asarray(output.image)


def same(one: Output, other: Output) -> bool:
    return np.array_equal(pixels(one), pixels(other))


@pytest.fixture
def calls(pipe, monkeypatch):
    """How often each component was asked."""
    counts = {"caption": 0, "segmentation": 0, "encode": 0, "text": 0}

    def counted(owner, method, name):
        original = getattr(owner, method)

        def call(*arguments, **options):
            counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, method, call)

    counted(pipe.captioner, "generate", "caption")
    counted(type(pipe.segmenter), "masks", "segmentation")
    counted(pipe.vae, "encode", "encode")
    counted(pipe.text_encoder, "forward", "text")
    return counts


# Understanding a photo


def test_prepare_asks_each_component_and_generate_none(pipe, photo, calls):
    pipe.prepare(photo)  # the empty text is the same for every photo: once per pipeline
    calls.update(dict.fromkeys(calls, 0))
    prepared = pipe.prepare(photo)
    assert calls == {"caption": 1, "segmentation": 1, "encode": 2, "text": 1}
    pipe.generate(prepared, QUICK)
    pipe.generate(prepared, QUICK.replace(text_scale=2, seed=8))
    assert calls == {"caption": 1, "segmentation": 1, "encode": 2, "text": 1}
    pipe.generate(prepared, QUICK.replace(resolution=96))  # only the latents change
    assert calls == {"caption": 1, "segmentation": 1, "encode": 4, "text": 1}


def test_another_band_costs_a_prompt_and_is_the_same_as_if_prepared_for_it(pipe, photo, calls, monkeypatch):
    asked = []

    def encode(text):  # the tiny text encoder reads the first words alone
        asked.append(text)
        return torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))

    def picture(conditioning, **changes):
        return pipe.generate(conditioning, QUICK.replace(text_scale=3, **changes)).image.tobytes()

    monkeypatch.setattr(pipe, "encode_text", encode)
    prepared = pipe.prepare(photo, caption="a tree")
    thermal = picture(prepared)
    calls.update(dict.fromkeys(calls, 0))
    asked.clear()
    near = picture(prepared, band="NIR")
    assert asked == ["turn the visible image of a tree into near infrared"] and not any(calls.values())
    assert near != thermal == picture(prepared, band="LWIR")
    assert picture(dataclasses.replace(prepared, prompt_embeds=encode(asked[0]))) == near
    # The style's own band, where the settings say none; and no text, no band.
    monkeypatch.setitem(pipe.config.bands, "night", "NIR")
    styled = picture(prepared, style="night")
    assert styled == picture(prepared, style="night", band="NIR") != picture(prepared, style="night", band="LWIR")
    silent = pipe.prepare(photo, caption="")
    assert picture(silent) == picture(silent, band="NIR")


def test_prepared_values(pipe, photo):
    prepared = pipe.prepare(photo)
    assert prepared.image.size == prepared.size == prepared.segmentation.size == photo.size
    assert prepared.prompt.startswith("turn the visible image of") == bool(prepared.caption)
    assert prepared.prompt_embeds.shape == prepared.null_embeds.shape == (1, 16, 32)
    # 90 x 70 at a shorter side of 64: 80 x 64 pixels, halved twice by the VAE.
    assert prepared.visible_latents.shape == prepared.segmentation_latents.shape == (1, 4, 16, 20)
    assert prepared.resolution == 64
    assert set(prepared.timings) == {"caption", "segmentation", "text", "encode"}


def test_given_caption_is_used(pipe, photo, calls):
    prepared = pipe.prepare(photo, caption="  two   cars\n at night ")
    assert calls["caption"] == 0
    assert prepared.caption == "two cars at night"
    assert prepared.prompt == "turn the visible image of two cars at night into infrared"
    assert torch.equal(prepared.prompt_embeds, pipe.encode_text(prepared.prompt))
    assert torch.equal(prepared.null_embeds, pipe.encode_text(""))
    with pytest.raises(ValueError, match="caption must be a text or None, got int"):
        pipe.prepare(photo, caption=3)


def test_empty_caption_switches_the_text_off(pipe, photo, calls):
    prepared = pipe.prepare(photo, caption=" ")
    assert calls["caption"] == 0 and prepared.caption == prepared.prompt == ""
    one = pipe.generate(prepared, QUICK.replace(text_scale=9))
    # Without text the branches with and without it are one, whose weight is s_S.
    assert same(one, pipe.generate(prepared, QUICK.replace(text_scale=0)))
    assert one.evaluations == 2 * 2


def test_segmentation_off(pipe, photo, calls):
    prepared = pipe.prepare(photo, caption="a car", segmentation=False)
    assert calls["segmentation"] == 0 and prepared.segmentation is None
    assert not prepared.segmentation_latents.any()
    one = pipe.generate(prepared, QUICK.replace(segmentation_scale=4))
    assert one.segmentation is None
    other = pipe.generate(prepared, QUICK.replace(segmentation_scale=1))
    assert np.abs(pixels(one).astype(int) - pixels(other).astype(int)).max() <= 1


def test_given_segmentation_is_used(pipe, photo, calls):
    drawn = Image.new("RGB", (45, 35), "white")
    drawn.paste((0, 0, 0), (0, 0, 20, 20))
    prepared = pipe.prepare(photo, caption="a car", segmentation=drawn)
    assert calls["segmentation"] == 0
    assert np.array_equal(np.asarray(prepared.segmentation), np.asarray(drawn))
    other = pipe.prepare(photo, caption="a car", segmentation=np.zeros((35, 45), np.uint8))
    assert not torch.equal(prepared.segmentation_latents, other.segmentation_latents)
    assert not same(pipe.generate(prepared, QUICK), pipe.generate(other, QUICK))


def test_map_of_another_aspect_ratio_is_refused(pipe, photo):
    for size in ((70, 90), (90, 60), (100, 70)):
        with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}.*90x70"):
            pipe.prepare(photo, caption="a", segmentation=Image.new("RGB", size))
    pipe.prepare(photo, caption="a", segmentation=Image.new("RGB", (91, 70)))
    with pytest.raises(ValueError, match="got True"):
        pipe.prepare(photo, caption="a", segmentation=True)


def test_wrong_resolution_is_refused(pipe, photo):
    for resolution in (63, 2049, 80.5, "64"):
        with pytest.raises(ValueError, match="resolution must be"):
            pipe.prepare(photo, caption="", segmentation=False, resolution=resolution)


# Generating


def test_output(pipe, conditioning, photo):
    output = pipe.generate(conditioning, QUICK)
    assert (output.image.mode, output.image.size) == ("L", photo.size)
    assert pixels(output).std() > 1
    assert output.caption == conditioning.caption and output.segmentation is conditioning.segmentation
    assert output.settings == QUICK and output.seed == 7 and output.record.bundle == "mini"
    assert output.steps_done == 2 and not output.cancelled
    assert set(output.timings) == {"caption", "segmentation", "text", "encode", "denoise", "decode"}
    assert all(seconds >= 0 for seconds in output.timings.values())


@pytest.mark.parametrize(
    ("scales", "branches"), [((1.5, 1.5, 7.5), 3), ((1, 1, 1), 1), ((0, 0, 0), 1), ((2, 3, 4), 4), ((1, 1, 7.5), 2)]
)
def test_the_unet_evaluates_only_what_counts(pipe, conditioning, monkeypatch, scales, branches):
    monkeypatch.setenv("DIFFV2IR_BRANCHES", "together")
    names = ("visible_scale", "segmentation_scale", "text_scale")
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    output = pipe.generate(conditioning, QUICK.replace(**dict(zip(names, scales, strict=True))))
    hook.remove()
    assert rows == [branches] * 2 and output.evaluations == branches * 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_its_picture_alone_and_in_a_batch(pipe, conditioning, photo, sampler):
    settings = QUICK.replace(sampler=sampler)
    other = pipe.prepare(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), caption="", segmentation=False)
    batch = pipe.generate_batch([conditioning, other, conditioning], settings, seeds=[7, 7, 8])
    assert same(batch[0], pipe.generate(conditioning, settings))
    assert same(batch[1], pipe.generate(other, settings))
    assert same(batch[2], pipe.generate(conditioning, settings.replace(seed=8)))
    assert not same(batch[0], batch[2])
    assert [output.seed for output in batch] == [output.settings.seed for output in batch] == [7, 7, 8]


def test_evaluations_shared_by_a_batch_give_the_same_pictures(pipe, conditioning, photo, monkeypatch):
    """As on a GPU, where all pictures go through the UNet together."""
    other = pipe.prepare(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), caption="a tree")
    alone = pipe.generate_batch([conditioning, other], QUICK, seeds=[7, 8])
    monkeypatch.setattr("diffv2ir.pipeline.DiffV2IRPipeline._share_evaluations", stacked)
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    shared = pipe.generate_batch([conditioning, other], QUICK, seeds=[7, 8])
    hook.remove()
    assert sum(rows) >= 2 * 3 * 2 and min(rows) >= 2
    for one, another in zip(alone, shared, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(another).astype(int)).max() <= 1


def stacked(self, branches):
    from diffv2ir.guidance import stack_pictures

    return [stack_pictures(branches)]


def test_without_a_seed_each_picture_draws_its_own(pipe, conditioning):
    settings = QUICK.replace(seed=None)
    outputs = pipe.generate_batch([conditioning] * 2, settings)
    assert outputs[0].seed != outputs[1].seed and not same(*outputs)
    assert same(outputs[0], pipe.generate(conditioning, outputs[0].settings))
    torch.manual_seed(0)
    first = pipe.generate(conditioning, settings.replace(steps=1))
    torch.manual_seed(0)
    assert pipe.generate(conditioning, settings.replace(steps=1)).seed != first.seed


def test_generating_leaves_the_global_generator_alone(pipe, photo):
    before = torch.get_rng_state()
    pipe(photo, QUICK.replace(sampler="euler_ancestral"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"visible_scale": 3},
        {"segmentation_scale": 4},
        {"text_scale": 1.5},
        {"steps": 3},
        {"sampler": "unipc", "steps": 4},
        {"resolution": 96},
        {"style": "night"},
    ],
)
def test_every_setting_counts(pipe, conditioning, change):
    assert not same(pipe.generate(conditioning, QUICK), pipe.generate(conditioning, QUICK.replace(**change)))


def test_defaults_come_from_the_bundle(pipe, conditioning):
    expected = GenerationSettings(steps=4, resolution=64, sampler="dpmpp_2m", text_scale=3.0)
    assert pipe.default_settings == expected
    output = pipe.generate(conditioning)
    assert output.settings == expected.replace(seed=output.seed)


def test_callback_sees_every_step(pipe, conditioning):
    seen = []

    def callback(step, total, estimate):
        assert estimate.latents.shape == (1, 4, 16, 20)
        seen.append((step, total, estimate()))

    output = pipe.generate(conditioning, QUICK.replace(steps=3), callback)
    assert [(step, total) for step, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(picture.mode == "L" and picture.size == (80, 64) for *_, picture in seen)
    assert same(output, pipe.generate(conditioning, QUICK.replace(steps=3)))
    # The last estimate is the picture, before it gets the size of the photo.
    final = seen[-1][2].resize(output.image.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(final, int) - pixels(output).astype(int)).max() <= 1


def test_callback_cancels(pipe, conditioning):
    settings = QUICK.replace(steps=5)
    estimates = []

    def stop_at_two(step, total, estimate):
        estimates.append(estimate())
        return step < 2

    output = pipe.generate(conditioning, settings, stop_at_two)
    assert (len(estimates), output.steps_done, output.cancelled, output.evaluations) == (2, 2, True, 6)
    assert np.array_equal(np.asarray(estimates[-1].resize(output.image.size, Image.Resampling.BICUBIC)), pixels(output))
    # None, what a function without "return" gives, goes on; and stopping at the last step is no cancelling.
    assert not pipe.generate(conditioning, settings, lambda *_: None).cancelled
    assert not pipe.generate(conditioning, QUICK, lambda step, total, estimate: step < total).cancelled


def test_an_error_in_the_callback_is_passed_on(pipe, conditioning):
    with pytest.raises(ZeroDivisionError):
        pipe.generate(conditioning, QUICK, lambda *_: 1 / 0)


@pytest.mark.parametrize("size", [(33, 77), (64, 64), (7, 5), (1, 1), (300, 20), (61, 128)])
def test_result_has_the_size_of_the_photo(pipe, size):
    output = pipe(Image.new("RGB", size, "teal"), QUICK.replace(steps=1), caption="a", segmentation=None)
    assert output.image.size == size and output.image.mode == "L" and output.segmentation.size == size


def test_rotated_photo_comes_out_upright(pipe, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    output = pipe(tmp_path / "turned.png", QUICK, caption="a car")
    assert output.image.size == photo.size
    assert same(output, pipe(photo, QUICK, caption="a car"))


def test_kinds_of_photos_agree(pipe, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    expected = pipe(photo, QUICK, caption="a")
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png"), np.asarray(photo)):
        assert same(pipe(source, QUICK, caption="a"), expected)


def test_wrong_requests(pipe, conditioning, photo):
    with pytest.raises(ValueError, match="nothing to generate"):
        pipe.generate_batch([])
    with pytest.raises(ValueError, match="settings must be GenerationSettings, got dict"):
        pipe.generate(conditioning, {"steps": 3})
    with pytest.raises(ValueError, match="expected 1 seeds, got 2"):
        pipe.generate_batch([conditioning], QUICK, seeds=[1, 2])
    with pytest.raises(ValueError, match="seed must be"):
        pipe.generate_batch([conditioning], QUICK, seeds=[-1])
    tall = dataclasses.replace(conditioning, size=(70, 90))
    with pytest.raises(ValueError, match="one working size"):
        pipe.generate_batch([conditioning, tall], QUICK)


def test_a_picture_that_is_not_finite_is_refused(pipe, conditioning):
    latents = torch.full((1, 4, 8, 8), float("nan"))
    with pytest.raises(FloatingPointError, match="not finite; load the bundle in float32"):
        pipe.decode(latents)


# Styles


def weights(pipe):
    return {key: value.clone() for key, value in pipe.unet.state_dict().items()}


def test_styles_change_the_weights_and_back(pipe, conditioning):
    general = weights(pipe)
    plain = pipe.generate(conditioning, QUICK)
    styled = pipe.generate(conditioning, QUICK.replace(style="night"))
    assert pipe.style == "night" and not same(plain, styled)
    changed = {key for key, value in weights(pipe).items() if not torch.equal(value, general[key])}
    assert changed and all("to_q" in key or "conv1" in key for key in changed)
    assert same(pipe.generate(conditioning, QUICK), plain)
    assert pipe.style == "general"
    assert weights(pipe).keys() == general.keys()
    assert all(torch.equal(value, general[key]) for key, value in weights(pipe).items())
    assert same(pipe.generate(conditioning, QUICK.replace(style="night")), styled)


def test_unknown_style(pipe, conditioning):
    with pytest.raises(ValueError, match="style must be one of general, night, got 'noon'"):
        pipe.generate(conditioning, QUICK.replace(style="noon"))


def test_a_broken_style_leaves_the_general_one(pipe, conditioning, bundle_folder, tmp_path, monkeypatch):
    plain = pipe.generate(conditioning, QUICK)
    folder = tmp_path / "styles" / "night"
    folder.mkdir(parents=True)
    name = "pytorch_lora_weights.safetensors"
    (folder / name).write_bytes((bundle_folder / "styles" / "night" / name).read_bytes()[:-40])
    monkeypatch.setattr(pipe, "folder", tmp_path)
    with pytest.raises(ValueError, match="style 'night'"):
        pipe.generate(conditioning, QUICK.replace(style="night"))
    assert pipe.style == "general" and same(pipe.generate(conditioning, QUICK), plain)
    monkeypatch.setattr(pipe, "folder", None)
    with pytest.raises(ValueError, match="not loaded from a bundle"):
        pipe.set_style("night")


# Saving


def test_saved_bundle_gives_the_same_pictures(pipe, conditioning, photo, tmp_path):
    pipe.set_style("night")
    pipe.save_pretrained(tmp_path / "copy")
    loaded = DiffV2IRPipeline.from_pretrained(tmp_path / "copy")
    assert loaded.default_settings == pipe.default_settings and loaded.styles == ["general", "night"]
    assert loaded.config.map_style == "regions" and loaded.config.name == "mini"
    again = loaded.prepare(photo, caption=conditioning.caption)
    assert np.array_equal(np.asarray(again.segmentation), np.asarray(conditioning.segmentation))
    assert loaded.prepare(photo, segmentation=False).caption == pipe.prepare(photo, segmentation=False).caption
    for style in ("general", "night"):
        settings = QUICK.replace(style=style)
        assert same(loaded.generate(again, settings), pipe.generate(conditioning, settings))


def test_metadata_repeats_the_picture(pipe, photo, tmp_path):
    settings = GenerationSettings(
        steps=3, visible_scale=1.7, segmentation_scale=0.3, text_scale=4, resolution=80, style="night"
    )
    output = pipe(photo, settings)
    output.save(tmp_path / "ir.png")
    with Image.open(tmp_path / "ir.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), pixels(output))
        caption = image.text["Description"]
        assert image.text["Software"] == f"DiffV2IR {__version__} (mini)"
    assert caption == output.caption
    settings = restore(tmp_path / "ir.png").settings
    assert settings == output.settings and settings.seed == output.seed
    assert same(pipe(photo, settings, caption=caption), output)


def test_tiny_autoencoder(pipe, photo, tmp_path):
    """The other kind of VAE a bundle may have."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.7,
    ).eval()
    other = DiffV2IRPipeline(**{**pipe.components, "vae": tiny}, defaults=pipe.config.defaults, map_style="union")
    assert other.size_multiple == 4
    output = other(photo, QUICK, caption="a car")
    assert output.image.size == photo.size
    other.save_pretrained(tmp_path)
    assert same(DiffV2IRPipeline.from_pretrained(tmp_path)(photo, QUICK, caption="a car"), output)


def test_components_that_do_not_fit_are_refused(pipe, new_unet):
    with pytest.raises(ValueError, match="12 input and 4 output channels .*got 8 and 4"):
        DiffV2IRPipeline(**{**pipe.components, "unet": new_unet(8)})
