"""Views made in torch are those that Pillow makes, and no two draws have the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_bundle import make_vae
from make_data import draw_scene, make_manifest_dataset, make_start_folder
from PIL import Image, ImageEnhance

from diffv2ir.data import read_examples
from diffv2ir.edges import brightness, colours, follow_edges, follow_edges_of_batch, generated_window, gray_levels
from diffv2ir.imaging import open_image, to_tensor
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.cache import FLAT_INFRARED, ViewConfig, encode_mode
from diffv2ir.training.diffusion import NoiseConfig, PromptEncoder
from diffv2ir.training.fresh import FreshConfig, FreshViews, _shrunk, expose
from diffv2ir.training.images import resize_shorter
from diffv2ir.training.loop import Draw, LoopConfig, Sampler
from diffv2ir.training.phases import PhaseConfig, train_phase
from diffv2ir.training.pictures import PictureConfig
from diffv2ir.training.teacher import Member, Teacher, TeacherConfig, load_network, train_teacher

VIEW = ViewConfig(resize=72, crop=64, zoom=1.5, jitter=0.3)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    everything = read_examples(make_manifest_dataset(tmp_path_factory.mktemp("data")), split="train")
    pairs = [example for example in everything if example.kind == "pairs"]
    return [replace(example, band="NIR" if number % 2 else "LWIR") for number, example in enumerate(pairs)]


@pytest.fixture(scope="module")
def teacher_folder(examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    loop = LoopConfig(steps=40, batch_size=4, learning_rate=1e-2, warmup_steps=1, ema_decay=0.5)
    train_teacher(examples, folder, TeacherConfig(loop, replace(VIEW, variants=2), (Member(width=16), Member(width=8))))
    return folder


@pytest.fixture(scope="module")
def map_of(examples, tmp_path_factory):
    """Maps of eight flat colours."""
    folder, paths = tmp_path_factory.mktemp("maps"), {}
    for number, example in enumerate(examples):
        width, height = open_image(example.visible).size
        small = np.random.default_rng(number).integers(0, 2, (4, 4, 3)).astype(np.uint8) * 255
        paths[example.id] = folder / f"{number}.png"
        Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(paths[example.id])
    return lambda example: paths[example.id]


@pytest.fixture(scope="module")
def make(examples, teacher_folder, map_of):
    vae, teacher = make_vae().eval(), Teacher(teacher_folder)

    def views(view=VIEW, weights=None, network=None, pixels=False, **config):
        return FreshViews(examples, vae, view, map_of, teacher, FreshConfig(**config), weights, network, pixels)

    return views


def draws_of(positions, count, seed=0):
    return [Draw(position, 0, position % count, seed) for position in positions]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([(64, 64), (96, 64), (64, 128)]), st.sampled_from([1, 2]))
def test_edges_are_followed_as_opencv_does_it(seed, size, coarser):
    photo, infrared = draw_scene(seed, size)
    small = infrared.resize([side // coarser for side in size], Image.Resampling.BOX)
    expected = follow_edges(brightness(small), brightness(photo), 4, 0.5)
    pictures, photos = (torch.from_numpy(brightness(image))[None, None] for image in (small, photo))
    followed = follow_edges_of_batch(pictures, photos, 4, 0.5)[0, 0].numpy()
    np.testing.assert_allclose(followed, expected, atol=2e-3)
    window = generated_window(20, pictures.shape)
    expected = follow_edges(brightness(small), colours(photo), *window)
    followed = follow_edges_of_batch(pictures, to_tensor(photo)[None] / 2 + 0.5, *window)[0, 0].numpy()
    np.testing.assert_allclose(followed, expected, atol=2e-3)


def test_edges_of_bright_photos_are_the_same_in_half_precision():
    photo, infrared = draw_scene(0, (64, 64))
    photos = 1 - (to_tensor(photo)[None] / 2 + 0.5) / 20  # a sky: what it varies by is less than bfloat16 tells apart
    pictures = torch.from_numpy(brightness(infrared))[None, None]
    window = generated_window(8, pictures.shape)
    expected = follow_edges_of_batch(pictures, photos, *window)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(follow_edges_of_batch(pictures, photos, *window), expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.tuples(*[st.floats(0.7, 1.4)] * 3))
def test_photos_are_exposed_as_pillow_does_it(seed, factors):
    photo, _ = draw_scene(seed, (48, 40))
    gamma, contrast, colour = factors
    image = photo.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)
    expected = ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(contrast)).enhance(colour)
    batch = (to_tensor(photo)[None] + 1) / 2
    exposed = expose(batch, *(torch.full((1, 1, 1, 1), factor) for factor in factors))
    assert (exposed[0] * 255 - (to_tensor(expected) + 1) * 127.5).abs().max() < 4  # each step of Pillow's rounds
    assert torch.equal(expose(batch, *torch.ones(3, 1, 1, 1, 1)).round(decimals=5), batch.round(decimals=5))
    assert (gray_levels(batch)[0, 0].numpy() - brightness(photo)).max() < 0.01


def test_the_teacher_answers_a_batch_as_it_answers_photo_by_photo(teacher_folder):
    teacher = Teacher(teacher_folder)
    photos = [draw_scene(seed, (96, 64))[0] for seed in range(4)]
    bands = ["LWIR", "NIR", "NIR", "LWIR"]
    batch = torch.stack([(to_tensor(photo) + 1) / 2 for photo in photos])
    answers = teacher.pictures(batch, bands)
    assert answers.shape == (4, 1, 64, 96) and teacher.bands == ("LWIR", "NIR")
    alone = torch.cat([teacher.pictures(photo[None], [band]) for photo, band in zip(batch, bands, strict=True)])
    torch.testing.assert_close(answers, alone, atol=1e-4, rtol=0)
    other = teacher.pictures(batch, ["NIR", "LWIR", "LWIR", "NIR"])
    assert float((answers - other).abs().mean(dim=(1, 2, 3)).min()) > 1e-3


def test_a_view_is_a_window_of_photo_and_map(examples, make, map_of):
    """Without zoom, exposure and partner it is what Pillow cuts at that place."""
    view = replace(VIEW, zoom=1.0, jitter=0.0)
    fresh = make(view)
    draws = draws_of(range(12), len(examples))
    pictures = fresh.pictures(draws)
    assert pictures["visible"].shape == pictures["segmentation"].shape == (12, 3, 64, 64)
    flips = 0
    for draw, photo, plan in zip(draws, pictures["visible"], pictures["segmentation"], strict=True):
        example = examples[draw.index]
        whole = (to_tensor(resize_shorter(open_image(example.visible), view.resize)) + 1) / 2
        candidates = {
            (mirrored, top, left): float((crop - photo).abs().mean())
            for mirrored, picture in ((False, whole), (True, whole.flip(-1)))
            for top in range(whole.shape[1] - 63)
            for left in range(whole.shape[2] - 63)
            for crop in [picture[:, top : top + 64, left : left + 64]]
        }
        best = min(candidates, key=candidates.get)
        assert candidates[best] < 0.02
        flips += best[0]
        mirrored, top, left = best
        regions = to_tensor(resize_shorter(open_image(map_of(example)), view.resize, Image.Resampling.NEAREST))
        regions = (regions.flip(-1) if mirrored else regions)[:, top : top + 64, left : left + 64]
        assert ((regions + 1) / 2 - plan).abs().mean() < 0.08  # of a border, one pixel at most
        assert set(plan.unique().tolist()) <= {0.0, 1.0}
    assert 0 < flips < 12


def test_every_draw_has_its_own_view_and_always_the_same(examples, make):
    fresh = make(mix=0.5)
    draws = draws_of([0, len(examples), 2 * len(examples)], len(examples))  # three times the first photo
    once, again = fresh.pictures(draws)["visible"], fresh.pictures(draws)["visible"]
    assert torch.equal(once, again)
    assert not torch.equal(once[0], once[1]) and not torch.equal(once[1], once[2])
    alone = torch.cat([fresh.pictures([draw])["visible"] for draw in draws])
    torch.testing.assert_close(alone, once, atol=1e-5, rtol=0)
    assert 0 <= once.min() and once.max() <= 1


def test_latents_are_those_of_the_pictures_and_the_target_is_the_teachers(examples, make):
    fresh = make(mix=0.7, other_band=0.5, network=load_network())
    draws = draws_of(range(6), len(examples))
    batch = fresh.batch([examples[draw.index] for draw in draws], draws)
    pictures = fresh.pictures(draws)
    asked = [fresh.band(examples[draw.index], draw) for draw in draws]
    assert set(asked) == {"LWIR", "NIR"}
    infrared = fresh.teacher.pictures(pictures.pop("plain"), asked).expand(-1, 3, -1, -1)
    for role, images in {**pictures, "infrared": infrared}.items():
        latents = encode_mode(fresh.vae, 2 * images - 1)
        torch.testing.assert_close(torch.stack([views[role] for views in batch]), latents, atol=1e-4, rtol=1e-4)
    assert batch[0]["seen"].shape == (320, 2, 2)
    assert set(make().batch(examples[:1], draws[:1])[0]) == {"visible", "segmentation", "infrared"}


def test_another_exposure_is_for_the_unet_alone(examples, make):
    """What the teacher and the network see, and so the target, is the photo as it was taken."""
    draws = draws_of(range(6), len(examples))
    exposed, plain = (
        make(replace(VIEW, jitter=jitter), mix=0.5, network=load_network()).batch(
            [examples[draw.index] for draw in draws], draws
        )
        for jitter in (0.3, 0.0)
    )
    for one, other in zip(exposed, plain, strict=True):
        assert not torch.allclose(one["visible"], other["visible"], atol=1e-3)
        for role in ("infrared", "segmentation", "seen"):
            torch.testing.assert_close(one[role], other[role], atol=1e-4, rtol=1e-4)


def test_views_are_as_sharp_as_the_pipeline_makes_photos(examples, make):
    whole = ViewConfig(resize=32, crop=32, flip=False)
    fresh = make(whole)
    draws = draws_of(range(len(examples)), len(examples))
    views = _shrunk(fresh.pictures(draws)["visible"], 32)
    for view, draw in zip(views, draws, strict=True):
        photo = resize_shorter(open_image(examples[draw.index].visible), 32, Image.Resampling.BICUBIC)
        start = round(fresh._random(draw, 11, 3)[2] * (photo.width - 32))  # photos are wider than high
        expected = to_tensor(photo.crop((start, 0, start + 32, 32))) / 2 + 0.5
        slopes, wanted = (float((image[:, :, 1:] - image[:, :, :-1]).abs().mean()) for image in (view, expected))
        assert 0.96 < slopes / wanted < 1.06


def test_the_teacher_sees_more_than_the_unet(examples, make, teacher_folder):
    """Teacher and network see the same windows at the teacher's own size; latents have the size of the crop."""
    small = replace(VIEW, resize=36, crop=32)
    fresh = make(small, network=load_network())
    assert fresh.teacher.side == 64
    draws = draws_of(range(6), len(examples))
    pictures, same = fresh.pictures(draws), make().pictures(draws)
    assert pictures["segmentation"].shape == (6, 3, 32, 32)
    # The windows of a view twice as large, but for what the canvases round.
    assert pictures["visible"].shape == same["visible"].shape
    assert float((pictures["visible"] - same["visible"]).abs().mean()) < 0.02
    bands = [fresh.band(examples[draw.index], draw) for draw in draws]
    target = fresh.teacher.pictures(pictures["plain"], bands)
    halves = {"visible": pictures["visible"], "infrared": target.expand(-1, 3, -1, -1)}
    batch = fresh.batch([examples[draw.index] for draw in draws], draws)
    for role, images in halves.items():
        shown = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
        latents = encode_mode(fresh.vae, 2 * shown - 1)
        torch.testing.assert_close(torch.stack([views[role] for views in batch]), latents, atol=1e-4, rtol=1e-4)
    assert batch[0]["seen"].shape == (320, 1, 1)


@pytest.mark.parametrize("weights", [None, [4.0, 1.0, 2.0]])
def test_a_view_is_used_about_as_often_as_asked(examples, make, monkeypatch, weights):
    """And what is kept changes nothing: a training that goes on later makes the same views."""
    few = examples[:3]
    config = FreshConfig(mix=0.5, other_band=0.5, uses=4)
    fresh = FreshViews(few, make().vae, VIEW, None, make().teacher, config, weights)
    made = []
    make_views = FreshViews._made
    monkeypatch.setattr(FreshViews, "_made", lambda self, *of: made.extend(of[1]) or make_views(self, *of))
    sampler = Sampler(3, 0, weights)
    batches = [sampler.draws(step, 8) for step in range(60)]
    views = [fresh.batch([few[draw.index] for draw in draws], draws) for draws in batches]
    assert 60 * 8 / 4 * 0.7 < len(made) < 60 * 8 / 4 * 1.3
    later = FreshViews(few, fresh.vae, VIEW, None, fresh.teacher, config, weights)
    again = later.batch([few[draw.index] for draw in batches[-1]], batches[-1])
    for one, other in zip(views[-1], again, strict=True):
        for role, latent in one.items():
            torch.testing.assert_close(other[role], latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_shares_of_mixed_views_and_of_other_bands(examples, make, share):
    draws = draws_of(range(200), len(examples))
    fresh = make(mix=share, other_band=share)
    others = [fresh.band(examples[draw.index], draw) != examples[draw.index].band for draw in draws]
    plain, mixed = make().pictures(draws[:60])["visible"], fresh.pictures(draws[:60])["visible"]
    changed = (plain - mixed).abs().amax(dim=(1, 2, 3)) > 0
    assert abs(np.mean(others) - share) < (0.12 if 0 < share < 1 else 1e-9)
    assert abs(float(changed.float().mean()) - share) < 0.2


def test_a_mixed_view_is_a_rectangle_or_a_mean_with_whole_regions(examples, make):
    draws = draws_of(range(80), len(examples))
    plain, mixed = make(), make(mix=1.0)
    before, after = plain.pictures(draws), mixed.pictures(draws)
    changed = (before["visible"] - after["visible"]).abs().amax(dim=(1, 2, 3), keepdim=False) > 0
    areas = ((before["visible"] - after["visible"]).abs().amax(dim=1) > 1e-3).float().mean(dim=(1, 2))
    assert changed.float().mean() > 0.9
    assert 20 < int((areas > 0.9).sum()) < 60  # means of two; the others are rectangles, mostly smaller
    assert set(after["segmentation"].unique().tolist()) <= {0.0, 1.0}
    # Of a mean, the map is the view's own.
    means = [number for number in range(80) if areas[number] > 0.9]
    assert torch.equal(before["segmentation"][means], after["segmentation"][means])


def test_partners_come_by_their_weights(examples, make):
    """With one possible partner, white, every mean of two is brighter than the view was, by less than half the way."""
    weights = [0.0] * len(examples)
    weights[2] = 1.0
    fresh = make(replace(VIEW, jitter=0.0), mix=1.0, weights=weights)
    fresh._photos.pictures[2] = 255
    draws = draws_of(range(40), len(examples))
    before = make(replace(VIEW, jitter=0.0)).pictures(draws)["visible"]
    kept = [number for number, draw in enumerate(draws) if draw.index != 2]
    after = fresh.pictures(draws)["visible"]
    assert bool((after[kept] >= before[kept] - 1e-6).all()) and float((after[kept] - before[kept]).mean()) > 0.05
    way, dark = (after[kept] - before[kept]) / (1.001 - before[kept]), before[kept] < 0.8
    least = torch.where(dark, way, 1.0).flatten(1).amin(dim=1)  # 0 beside a rectangle
    most = torch.where(dark, way, 0.0).flatten(1).amax(dim=1)
    means = least > 1e-3
    assert means.sum() > 5 and float(most[means].max()) < 0.51


def test_real_views_have_what_the_camera_saw(examples, make):
    """The same window of photo and camera's picture; of the rest the target is the teacher's."""
    view = replace(VIEW, jitter=0.0, edge_radius=5)
    fresh = make(replace(view, edge_radius=0), real=0.5, mix=0.5)
    fresh._infrared = fresh._photos  # a camera that sees the photo, in three channels
    draws = draws_of(range(60), len(examples))
    pictures = fresh.pictures(draws)
    real = [fresh._is_real(draw) for draw in draws]
    assert 15 < sum(real) < 45
    torch.testing.assert_close(pictures["picture"][real], pictures["visible"][real])
    fresh = make(view, real=0.5, mix=0.5, other_band=1.0, pixels=True)
    pictures = fresh.pictures(draws)
    assert pictures["picture"].shape == pictures["infrared"].shape == (60, 1, 64, 64)
    views = fresh.batch([examples[draw.index] for draw in draws], draws)
    for place, (draw, is_real, made) in enumerate(zip(draws, real, views, strict=True)):
        own = examples[draw.index].band
        band = fresh.band(examples[draw.index], draw)
        assert (band == own) == is_real
        target = pictures["infrared"][place : place + 1]
        if not is_real:
            target = fresh.teacher.pictures(pictures["visible"][place : place + 1], [band])
        latents = encode_mode(fresh.vae, 2 * target.expand(-1, 3, -1, -1) - 1)[0]
        torch.testing.assert_close(made["infrared"], latents, atol=1e-4, rtol=1e-4)
        assert ({"photo", "picture"} <= set(made)) == is_real
        if is_real:
            assert torch.equal(made["photo"], pictures["visible"][place])
            assert torch.equal(made["picture"], pictures["picture"][place])
    plain = make(replace(view, edge_radius=0), real=1.0).pictures(draws[:1])
    assert torch.equal(plain["picture"], plain["infrared"])
    followed = make(view, real=1.0).pictures(draws[:1])
    expected = follow_edges(*(brightness_of(followed[role]) for role in ("picture", "visible")), 5, flat=FLAT_INFRARED)
    np.testing.assert_allclose(followed["infrared"][0, 0].numpy(), expected.clip(0, 1), atol=5e-3)


def brightness_of(pictures):
    """Gray levels (H, W) of the first of a batch."""
    return (gray_levels(pictures[:1]) if pictures.shape[1] == 3 else pictures[:1])[0, 0].numpy()


def test_real_views_are_pasted_from_their_own_band(examples, make):
    fresh = make(real=1.0, mix=1.0)
    for number, example in enumerate(examples):
        fresh._infrared.pictures[number] = 255 * (example.band == "NIR")
        fresh._photos.pictures[number] = 255 * (example.band == "NIR")
    plain = make(real=1.0)
    draws = draws_of(range(40), len(examples))
    for draw, picture, photo in zip(
        draws, *(fresh.pictures(draws)[role] for role in ("picture", "visible")), strict=True
    ):
        wanted = float(examples[draw.index].band == "NIR")
        assert float((picture - wanted).abs().max()) < 1e-5 and float((photo - wanted).abs().max()) < 1e-5
    # Rectangles alone: there is always something left.
    fresh = make(real=1.0, mix=1.0)
    same = (fresh.pictures(draws)["picture"] == plain.pictures(draws)["picture"]).float().mean(dim=(1, 2, 3))
    assert 20 < int((same < 0.999).sum()) and int((same > 0.2).sum()) > 30


def test_phase_2_with_fresh_views(examples, teacher_folder, bundle_folder, tmp_path, monkeypatch):
    asked = []
    encode = PromptEncoder.__call__
    monkeypatch.setattr(PromptEncoder, "__call__", lambda self, prompts: asked.extend(prompts) or encode(self, prompts))
    loop = LoopConfig(steps=4, batch_size=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
    view = ViewConfig(resize=36, crop=32, zoom=1.2)
    config = PhaseConfig(
        "2", loop, view=view, map_style="union", fresh=FreshConfig(mix=0.5, other_band=0.5, seeing=0.1), dropout=0.0
    )
    start = make_start_folder(bundle_folder, tmp_path / "start")
    options = {"cache": tmp_path / "cache", "vlum": bundle_folder, "teacher": teacher_folder}
    results = [train_phase(config, examples, start, tmp_path / name, **options) for name in ("one", "two")]
    one, two = ((result / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for result in results)
    assert one == two
    assert {prompt.rsplit(" into ")[1] for prompt in asked} == {"infrared", "near infrared"}
    assert not (tmp_path / "cache" / "latents").exists()
    some = FreshConfig(mix=0.5, real=0.6, uses=2)
    noise = NoiseConfig(last_step_share=0.7)
    shown = replace(config, fresh=some, picture=PictureConfig(), noise=noise, loop=replace(loop, log_every=1))
    train_phase(shown, examples, start, tmp_path / "shown", **options)
    figures = json.loads((tmp_path / "shown" / "history.json").read_text())["history"]
    assert any(step.get("picture", 0) > 0 for step in figures)
    history = json.loads((tmp_path / "one" / "history.json").read_text())
    assert history["config"]["fresh"]["mix"] == 0.5 and history["history"][-1]["seeing"] > 0
    assert DiffV2IRPipeline.from_pretrained(results[0]).styles == ["general"]
    with pytest.raises(ValueError, match="multiple of the autoencoder's"):
        train_phase(replace(config, view=ViewConfig(resize=36, crop=31)), examples, start, tmp_path / "odd", **options)
