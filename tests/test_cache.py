"""Captions, maps and latents on disk: what makes a new entry, and what each entry holds."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.configuration_utils import FrozenDict
from make_data import draw_scene, make_manifest_dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipProcessor

from diffv2ir.data import read_examples
from diffv2ir.files import write_file_atomically
from diffv2ir.imaging import open_image, to_tensor
from diffv2ir.lines import append_pairs, read_pairs
from diffv2ir.pipeline import latent_stride
from diffv2ir.training import cache as cache_module
from diffv2ir.training import hashes
from diffv2ir.training.cache import (
    CaptionCache,
    LatentCache,
    MapCache,
    Share,
    ViewConfig,
    Views,
    encode_mode,
    file_hash,
)
from diffv2ir.training.hashes import HashIndex
from diffv2ir.training.images import resize_shorter
from diffv2ir.vlum import SamSegmenter, segmentation_map

VIEW = ViewConfig(resize=20, crop=16, variants=2)


def square_scene(folder, seed=9, side=16):
    path = folder / f"square-{seed}.png"
    draw_scene(seed, (side, side))[0].save(path)
    return path


@pytest.fixture
def examples(tmp_path):
    file_hash.cache_clear()  # as in a new process: tests change files
    return read_examples(make_manifest_dataset(tmp_path / "data", pairs=3, infrared=1), split="train")


@pytest.fixture(scope="module")
def vae(bundle_folder):
    return AutoencoderKL.from_pretrained(bundle_folder / "vae").eval()


@pytest.fixture
def segmenter(bundle_folder):
    return SamSegmenter.from_pretrained(bundle_folder / "segmenter").eval()


def entries(folder):
    return {path.name for path in folder.rglob("*") if path.is_file()}


def added(folder, *latent_caches, examples):
    """How many files filling the caches adds."""
    before = entries(folder)
    for latents in latent_caches:
        latents.fill(examples)
    return len(entries(folder) - before)


# Hashes


def images_of(examples):
    return [file for example in examples for file in (example.visible, example.infrared) if file]


def test_files_are_hashed_once_and_again_when_they_change(examples, tmp_path, monkeypatch):
    files = images_of(examples)
    wanted = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    HashIndex(tmp_path / "c").fill(files)
    read = []
    monkeypatch.setattr(hashes, "_content_hash", lambda file: read.append(file) or "new")
    for _ in range(2):  # as in new processes
        monkeypatch.setattr(hashes, "_indexed", {})
        file_hash.cache_clear()
        HashIndex(tmp_path / "c").fill(files)
        assert list(map(file_hash, files)) == wanted and not read
    draw_scene(50)[0].save(files[1])
    file_hash.cache_clear()
    HashIndex(tmp_path / "c").fill(files)
    assert read == [files[1]] and file_hash(files[1]) == "new"


def test_processes_share_the_hashing(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_indexed", {})
    files = images_of(examples)
    for number in (0, 1):
        HashIndex(tmp_path).fill(files, Share(number, 2))
    made = [read_pairs(tmp_path / f"hashes-{number}-of-2.jsonl") for number in (0, 1)]
    assert all(made) and not made[0].keys() & made[1].keys() and sum(map(len, made)) == len(files)
    HashIndex(tmp_path / "another").fill(files)
    assert read_pairs(tmp_path / "another" / "hashes.jsonl") == made[0] | made[1]


def test_more_files_than_any_limit_are_hashed_once():
    assert file_hash.cache_parameters()["maxsize"] is None


def test_lines_that_were_cut_off_are_left_out(tmp_path):
    path = tmp_path / "deep" / "pairs.jsonl"
    append_pairs(path, {"a": "one", "b": "zwölf\n"})
    path.write_bytes(path.read_bytes() + b'["c", "thr')
    append_pairs(path, {"a": "two"})
    assert read_pairs(path) == {"a": "two", "b": "zwölf\n"} and read_pairs(tmp_path / "none") == {}


def test_two_may_make_the_same_file(tmp_path):
    path = tmp_path / "a.bin"

    def slowly(partial):
        partial.write_bytes(b"ent")
        write_file_atomically(path, lambda other: other.write_bytes(b"entry"), shared=True)
        with partial.open("ab") as file:
            file.write(b"ry")

    write_file_atomically(path, slowly, shared=True)
    assert path.read_bytes() == b"entry" and list(tmp_path.iterdir()) == [path]


# Latents


def test_latents_are_made_once(examples, vae, tmp_path, monkeypatch):
    assert added(tmp_path / "c", LatentCache(tmp_path / "c", vae, VIEW, None), examples=examples) == 2 * len(examples)
    monkeypatch.setattr(cache_module, "encode_mode", None)  # would be called, were anything missing
    LatentCache(tmp_path / "c", vae, VIEW, None).fill(examples)


@pytest.mark.parametrize("edge_radius", [0, 2])
def test_only_what_is_wanted_is_encoded(examples, vae, tmp_path, edge_radius):
    view = dataclasses.replace(VIEW, edge_radius=edge_radius)
    everything, alone = LatentCache(tmp_path, vae, view, None), LatentCache(tmp_path, vae, view, None, 0, ("infrared",))
    alone.fill(examples)
    everything.fill(examples)
    for example in examples:
        [(role, latent)] = alone.load(example, 1).items()
        assert role == "infrared" and torch.equal(latent, everything.load(example, 1)[role])


def test_mirror_images_in_turn_are_not_those_of_all_examples_at_once(vae, tmp_path):
    """Nor does an example see one of its two views twice in a row."""
    view = dataclasses.replace(VIEW, flip="in_turn", zoom=1.0)
    examples = read_examples(make_manifest_dataset(tmp_path / "data", pairs=8, infrared=0), split="train")
    latents, first = LatentCache(tmp_path, vae, view, None), []
    latents.fill(examples)
    stored = [[load_file(latents._path(example, variant)) for variant in (0, 1)] for example in examples]
    for example, variants in zip(examples, stored, strict=True):
        shown = [latents.load(example, epoch)["visible"] for epoch in range(3)]
        parts = [[_contains(whole["visible"], part) for whole in variants].index(True) for part in shown]
        assert parts in ([0, 1, 0], [1, 0, 1])
        first.append(parts[0])
    assert set(first) == {0, 1}


def _contains(whole, part):
    """Whether a crop is cut from latents."""
    windows = whole.float().unfold(1, part.shape[1], 1).unfold(2, part.shape[2], 1)  # [C, y, x, h, w]
    return bool((windows == part[:, None, None]).all(dim=(0, 3, 4)).any())


def test_maps_made_for_the_data_are_used_in_their_style_alone(examples, segmenter, tmp_path, caplog):
    made = dataclasses.replace(examples[0], segmentation=examples[0].visible, map_style="regions")
    came = dataclasses.replace(made, map_style="")
    assert MapCache(tmp_path, segmenter, "regions").path(made) == made.segmentation
    union = MapCache(tmp_path, segmenter, "union")
    assert union.path(came) == made.segmentation != union.path(made)
    with caplog.at_level("INFO"):
        union.fill([made, came])
    assert "1 maps of the data are of another style than 'union'" in caplog.text
    drawn = segmentation_map(segmenter.masks(open_image(made.visible)), (96, 72), "union")
    assert Image.open(union.path(made)).tobytes() == drawn.tobytes()


@pytest.mark.parametrize("change", [{"resize": 24}, {"crop": 12}, {"flip": False}, {"zoom": 1.5}, {"jitter": 0.2}])
def test_latents_depend_on_the_view(examples, vae, tmp_path, change):
    LatentCache(tmp_path, vae, VIEW, None).fill(examples)
    other = LatentCache(tmp_path, vae, dataclasses.replace(VIEW, **change), None)
    assert added(tmp_path / "latents", other, examples=examples) == 2 * len(examples)


def test_latents_depend_on_seed_weights_and_content(examples, vae, tmp_path):
    folder = tmp_path / "latents"
    LatentCache(tmp_path, vae, VIEW, None).fill(examples)
    assert added(folder, LatentCache(tmp_path, vae, VIEW, None, seed=1), examples=examples) == 2 * len(examples)
    changed = AutoencoderKL.from_config(vae.config).eval()
    changed.load_state_dict(vae.state_dict())
    changed.encoder.conv_out.bias.data[0] += 1e-3
    assert added(folder, LatentCache(tmp_path, changed, VIEW, None), examples=examples) == 2 * len(examples)
    for role in ("visible", "infrared"):
        draw_scene(50)[0].save(getattr(examples[1], role))
        file_hash.cache_clear()
        assert added(folder, LatentCache(tmp_path, vae, VIEW, None), examples=examples) == 2, role


def test_latents_depend_on_the_map(examples, vae, segmenter, tmp_path):
    def with_maps(style):
        maps = MapCache(tmp_path, segmenter, style)
        maps.fill(examples)
        return LatentCache(tmp_path, vae, VIEW, maps)

    with_maps("regions").fill(examples)
    pairs = sum(example.visible is not None for example in examples)
    assert added(tmp_path / "latents", with_maps("union"), examples=examples) == 2 * pairs
    own = tmp_path / "own.png"
    given = [dataclasses.replace(examples[0], segmentation=own)]
    for colour in ("red", "blue"):  # another map under the same name
        Image.new("RGB", (96, 72), colour).save(own)
        file_hash.cache_clear()
        assert added(tmp_path / "latents", with_maps("regions"), examples=given) == 2, colour


@pytest.mark.parametrize("zoom", [1.0, 2.0])
def test_visible_infrared_and_map_have_the_same_crop_and_flip(examples, vae, segmenter, tmp_path, zoom):
    view = dataclasses.replace(VIEW, resize=36, variants=8, zoom=zoom)
    same = dataclasses.replace(examples[0], infrared=examples[0].visible, segmentation=examples[0].visible)
    latents = LatentCache(tmp_path, vae, view, MapCache(tmp_path, segmenter, "regions"))
    latents.fill([same])
    views = [latents.load(same, epoch) for epoch in range(8)]
    for entry in views:
        assert set(entry) == {"visible", "infrared", "segmentation"}
        torch.testing.assert_close(entry["visible"], entry["infrared"], rtol=0, atol=2e-3)
    distances = [(a["visible"] - b["visible"]).abs().max() for n, a in enumerate(views) for b in views[:n]]
    assert min(distances) > 1e-2  # while no two views are the same


@pytest.mark.parametrize("zoom", [1.0, 2.0])
def test_maps_have_the_view_of_their_photo_without_new_colours(examples, vae, tmp_path, zoom):
    latents = LatentCache(tmp_path, vae, ViewConfig(resize=72, crop=64, zoom=zoom, variants=8), None)
    smooth = Image.linear_gradient("L").rotate(30, Image.Resampling.BICUBIC).crop((64, 64, 192, 192)).convert("RGB")
    steps = smooth.point([64 * (value // 64) for value in range(256)] * 3)
    for variant in range(8):
        photo = np.asarray(latents._cutter._cut(smooth, examples[0], variant, "visible"), dtype=int)
        plan = np.asarray(latents._cutter._cut(smooth, examples[0], variant, "segmentation"), dtype=int)
        assert np.abs(photo - plan).max() <= 8
        colours = latents._cutter._cut(steps, examples[0], variant, "segmentation").getcolors()
        assert {colour for _, colour in colours} <= {(v, v, v) for v in (0, 64, 128, 192)}


def test_only_the_visible_photo_is_exposed_differently(examples, vae, tmp_path):
    latents = LatentCache(tmp_path, vae, ViewConfig(resize=16, crop=16, flip=False, jitter=0.3, variants=8), None)
    square = draw_scene(3, (16, 16))[0]
    for role in ("infrared", "segmentation"):
        assert latents._cutter._cut(square, examples[0], 1, role).tobytes() == square.tobytes()
    views = {latents._cutter._cut(square, examples[0], variant, "visible").tobytes() for variant in range(8)}
    assert len(views) == 8 and square.tobytes() not in views


def test_zoomed_views_show_less_of_the_scene(examples, vae, tmp_path):
    ramp = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    spans = []
    for zoom in (1.0, 2.0):
        latents = LatentCache(tmp_path, vae, ViewConfig(resize=64, crop=64, zoom=zoom, variants=20), None)
        sizes = [latents._cutter._cut(ramp, examples[0], variant, "infrared").size for variant in range(20)]
        spans.append([64 / min(size) for size in sizes])
    assert set(spans[0]) == {1.0}
    assert max(spans[1]) <= 1.0 and 0.5 <= min(spans[1]) < 0.65 and len(set(spans[1])) > 10


def test_views_flip_about_half_of_the_time(examples, vae, tmp_path):
    latents = LatentCache(tmp_path, vae, ViewConfig(resize=16, crop=16, variants=40), None)
    square = draw_scene(3, (16, 16))[0]
    mirrored = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    views = [latents._cutter._cut(square, examples[0], variant, "visible") for variant in range(40)]
    assert all(view.tobytes() in (square.tobytes(), mirrored.tobytes()) for view in views)
    assert 12 <= sum(view.tobytes() == mirrored.tobytes() for view in views) <= 28


def test_epochs_take_turns_over_the_variants(examples, vae, tmp_path):
    example = dataclasses.replace(examples[0], visible=square_scene(tmp_path), infrared=square_scene(tmp_path))
    latents = LatentCache(tmp_path, vae, ViewConfig(resize=16, crop=16, jitter=0.3, variants=2), None)
    latents.fill([example])
    first, second, third = (latents.load(example, epoch)["visible"] for epoch in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)


def test_every_epoch_draws_the_place_of_the_crop(examples, vae, tmp_path):
    latents = LatentCache(tmp_path, vae, ViewConfig(resize=24, crop=16, flip=False, variants=1), None)
    latents.fill(examples)
    stride = latent_stride(vae)
    example = next(e for e in examples if latents._path(e, 0).is_file())
    stored = load_file(latents._path(example, 0))
    height, width = stored["infrared"].shape[1:]
    assert (width * stride, height * stride) == (32, 24)  # of 96 x 72 pixels
    side, places = 16 // stride, set()
    for epoch in range(200):
        found = latents.load(example, epoch)["infrared"]
        assert found.shape[1:] == (side, side)
        windows = stored["infrared"].float().unfold(1, side, 1).unfold(2, side, 1)  # [C, tops, lefts, side, side]
        same = (windows == found[:, None, None]).flatten(3).all(-1).all(0)
        assert same.sum() == 1
        places.add(tuple(same.nonzero()[0].tolist()))
    assert len(places) > 0.9 * (height - side + 1) * (width - side + 1)


def test_of_a_panorama_a_part_is_kept(examples, vae, tmp_path):
    latents = LatentCache(tmp_path, vae, ViewConfig(resize=16, crop=16, variants=4), None)
    wide = Image.linear_gradient("L").rotate(90).resize((1600, 16)).convert("RGB")
    views = [latents._cutter._cut(wide, examples[0], variant, "visible") for variant in range(4)]
    assert {view.size for view in views} == {(32, 16)} and len({view.tobytes() for view in views}) == 4


def test_latents_are_the_unscaled_modes_of_the_view(examples, vae, tmp_path):
    view = ViewConfig(resize=16, crop=16, flip=False, variants=1)
    square = square_scene(tmp_path)
    example = dataclasses.replace(examples[0], visible=square, infrared=square)
    latents = LatentCache(tmp_path, vae, view, None)
    latents.fill([example])
    with torch.no_grad():
        wanted = vae.encode(to_tensor(Image.open(square))[None]).latent_dist.mode()[0]
    assert vae.config.scaling_factor != 1
    torch.testing.assert_close(latents.load(example, 0)["visible"], wanted, rtol=2e-3, atol=2e-3)


def test_infrared_alone_has_one_latent(examples, vae, segmenter, tmp_path):
    alone = next(example for example in examples if example.visible is None)
    latents = LatentCache(tmp_path, vae, VIEW, MapCache(tmp_path, segmenter, "regions"))
    latents.fill([alone])
    assert set(latents.load(alone, 0)) == {"infrared"}


def test_a_killed_write_leaves_nothing_that_is_read(examples, vae, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def dies(entry, path):
        path.write_bytes(b"half of a file")
        raise Killed

    latents = LatentCache(tmp_path, vae, VIEW, None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache_module, "save_file", dies)
        latents.fill(examples)
    assert [name.startswith(".") for name in entries(tmp_path / "latents")] == [True]
    latents.fill(examples)
    assert all("visible" in latents.load(example, 1) for example in examples if example.visible)


def test_tiny_autoencoders_have_a_mode_too():
    small = dict(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4))
    tiny = AutoencoderTiny(**small, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    images = torch.zeros(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(encode_mode(tiny, images), tiny.encode(images).latents)


def test_a_crop_is_a_whole_number_of_latents(vae, tmp_path):
    with pytest.raises(ValueError, match=r"multiple of the autoencoder's \d+ pixels, got 13"):
        LatentCache(tmp_path, vae, dataclasses.replace(VIEW, crop=13), None)


def test_every_second_view_is_a_mirror_image_in_turn(examples):
    views = Views(dataclasses.replace(VIEW, resize=72, crop=72, flip="in_turn", variants=4), seed=0)
    for example in (example for example in examples if example.visible):
        whole = {"visible": example.visible}
        cuts = [np.asarray(views.cut(whole, example, number)["visible"]) for number in range(4)]
        assert all(np.array_equal(cut, cuts[0][:, :: -1 if number % 2 else 1]) for number, cut in enumerate(cuts))
    with pytest.raises(ValueError, match="flip must be true, false or 'in_turn', got 'maybe'"):
        dataclasses.replace(VIEW, flip="maybe")


@pytest.mark.parametrize("change", [{"crop": 21}, {"crop": 0}, {"variants": 0}, {"zoom": 0.9}, {"jitter": -0.1}])
def test_impossible_views_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(VIEW, **change)


# Maps


def test_map_depends_on_content_weights_settings_and_style(examples, segmenter, tmp_path):
    example = examples[0]
    paths = [MapCache(tmp_path, segmenter, style).path(example) for style in ("regions", "union")]
    segmenter.register_to_config(points_per_side=3)
    paths.append(MapCache(tmp_path, segmenter, "regions").path(example))
    next(segmenter.parameters()).data += 1e-3
    paths.append(MapCache(tmp_path, segmenter, "regions").path(example))
    draw_scene(50)[0].save(example.visible)
    file_hash.cache_clear()
    paths.append(MapCache(tmp_path, segmenter, "regions").path(example))
    assert len(set(paths)) == 5


def test_settings_that_are_off_leave_a_map_where_it_was(examples, segmenter, tmp_path):
    """A segmenter that was saved before there were `edge_radius` and `region_scale` has no such settings."""
    off = MapCache(tmp_path, segmenter, "regions").path(examples[0])
    earlier = {key: value for key, value in segmenter.config.items() if key not in ("edge_radius", "region_scale")}
    segmenter.register_to_config(edge_radius=8)
    assert MapCache(tmp_path, segmenter, "regions").path(examples[0]) != off
    segmenter._internal_dict = FrozenDict(earlier)
    assert MapCache(tmp_path, segmenter, "regions").path(examples[0]) == off


def test_map_does_not_depend_on_the_folder_of_the_segmenter(examples, bundle_folder, tmp_path):
    shutil.copytree(bundle_folder / "segmenter", tmp_path / "elsewhere")
    folders = (bundle_folder / "segmenter", tmp_path / "elsewhere")
    paths = [MapCache(tmp_path, SamSegmenter.from_pretrained(f), "union").path(examples[0]) for f in folders]
    assert paths[0] == paths[1]


def test_maps_are_drawn_once_and_given_maps_are_used(examples, segmenter, tmp_path, monkeypatch):
    maps = MapCache(tmp_path, segmenter, "regions")
    maps.fill(examples)
    assert open_image(maps.path(examples[0])).size == open_image(examples[0].visible).size
    monkeypatch.setattr(SamSegmenter, "masks", None)
    MapCache(tmp_path, segmenter, "regions").fill(examples)
    own = dataclasses.replace(examples[0], segmentation=examples[0].infrared)
    assert maps.path(own) == own.segmentation


# Captions


@pytest.fixture
def blip(bundle_folder):
    model = BlipForConditionalGeneration.from_pretrained(bundle_folder / "captioner").eval()
    return model, BlipProcessor.from_pretrained(bundle_folder / "captioner_processor")


def test_captions_of_the_dataset_come_first_and_others_are_made_once(examples, blip, tmp_path, monkeypatch):
    asked = []

    def counting(model, processor, images):
        asked.extend(images)
        return [f"a picture {number}" for number, _ in enumerate(images)]

    monkeypatch.setattr(cache_module, "caption_images", counting)
    captions = CaptionCache(tmp_path, *blip)
    captions.fill(examples)
    assert len(asked) == 1  # the first pair alone has no caption
    assert captions.caption(examples[0]) == "a picture 0"
    assert captions.caption(examples[1]) == examples[1].caption
    again = CaptionCache(tmp_path, *blip)
    again.fill(examples)
    assert len(asked) == 1 and again.caption(examples[0]) == "a picture 0"
    assert read_pairs(tmp_path / "captions.jsonl") == again.known


def test_captions_of_earlier_versions_are_read(examples, blip, tmp_path, monkeypatch):
    CaptionCache(tmp_path, *blip, always=True).fill(examples)
    made = read_pairs(tmp_path / "captions.jsonl")
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "captions-0-of-2.json").write_text(json.dumps(made))
    monkeypatch.setattr(cache_module, "caption_images", None)  # would be called, were one missing
    CaptionCache(tmp_path, *blip, always=True).fill(examples)


def test_a_batch_of_captions_is_added_to_the_others(examples, blip, tmp_path, monkeypatch):
    """At 500,000 of them, writing all after every batch would take longer than making them."""
    pairs = [example for example in examples if example.visible]
    written = []
    monkeypatch.setattr(cache_module, "append_pairs", lambda path, pairs: written.append(len(pairs)))
    CaptionCache(tmp_path, *blip, always=True).fill(pairs, batch_size=1)
    assert written == [1] * len(pairs)


def test_all_photos_are_captioned_as_the_pipeline_will_where_asked(examples, blip, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "caption_images", lambda *arguments: ["by the model"] * len(arguments[2]))
    captions = CaptionCache(tmp_path, *blip, always=True)
    captions.fill(examples)
    pairs = [example for example in examples if example.visible]
    assert examples[1].caption and {captions.caption(example) for example in pairs} == {"by the model"}


def test_captions_by_models_that_have_not_seen_a_photo_come_before_the_model_itself(
    examples, blip, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache_module, "caption_images", lambda *arguments: ["by the model"] * len(arguments[2]))
    first, second = [example for example in examples if example.visible][:2]
    captions = CaptionCache(tmp_path, *blip, always=True, unseen={file_hash(first.visible): "unseen"})
    captions.fill([first, second])
    assert [captions.caption(example) for example in (first, second)] == ["unseen", "by the model"]
    others = CaptionCache(tmp_path, *blip, unseen={file_hash(e.visible): "unseen" for e in (first, second)})
    assert first.caption is None and others.caption(first) == "unseen"
    assert second.caption and others.caption(second) == second.caption  # the data set's own come first


def test_captions_depend_on_weights_and_content(examples, blip, tmp_path):
    def known():
        captions = CaptionCache(tmp_path, *blip)
        captions.fill(examples[:1])
        return len(captions.known)

    assert known() == 1
    next(blip[0].parameters()).data += 1e-3
    assert known() == 2
    draw_scene(50)[0].save(examples[0].visible)
    file_hash.cache_clear()
    assert known() == 3


# Shares of several processes


def test_every_entry_is_of_one_share():
    names = [f"entry {number}" for number in range(1200)]
    sizes = [[Share(index, 3).has(name) for name in names] for index in range(3)]
    assert all(sum(own) == 1 for own in zip(*sizes, strict=True))
    assert all(340 < sum(share) < 460 for share in sizes)
    assert all(Share().has(name) for name in names)


def test_shares_make_together_what_one_process_makes(examples, vae, segmenter, blip, tmp_path):
    view = dataclasses.replace(VIEW, variants=8)

    def fill(folder, *shares):
        for share in shares:
            MapCache(folder, segmenter, "regions").fill(examples, share=share)
            captions = CaptionCache(folder, *blip, always=True)
            captions.fill(examples, share=share)
        for share in shares:
            LatentCache(folder, vae, view, MapCache(folder, segmenter, "regions")).fill(examples, share=share)
        captions.read()
        return captions.known, {name for name in entries(folder) if not name.startswith("captions")}

    alone, together = fill(tmp_path / "one", Share()), fill(tmp_path / "two", Share(1, 2), Share(0, 2))
    assert alone == together
    assert len(alone[0]) == 2 and len(alone[1]) == 2 + 8 * len(examples)


def test_captions_of_another_number_of_processes_are_kept(examples, blip, tmp_path, monkeypatch):
    for share in (Share(0, 2), Share(1, 2)):
        CaptionCache(tmp_path, *blip, always=True).fill(examples, share=share)
    monkeypatch.setattr(cache_module, "caption_images", None)  # would be called, were anything missing
    for share in (Share(), Share(0, 3), Share(1, 3), Share(2, 3)):
        captions = CaptionCache(tmp_path, *blip, always=True)
        captions.fill(examples, share=share)
        assert len(captions.known) == 2


# Images


@pytest.mark.parametrize("size, wanted", [((30, 20), (15, 10)), ((7, 90), (10, 129)), ((10, 10), (10, 10))])
def test_shorter_side_becomes_the_size(size, wanted):
    assert resize_shorter(Image.new("RGB", size), 10).size == wanted
