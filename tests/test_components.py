"""The components of the tiny bundle: each is trained a few steps, stopped, resumed, saved and loaded."""

import collections
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from make_data import draw_scene, make_manifest_dataset
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer

from diffv2ir.data import read_examples
from diffv2ir.training import cache as cache_module
from diffv2ir.training import captioner as captioner_module
from diffv2ir.training import segmenter as segmenter_module
from diffv2ir.training.autoencoder import (
    AutoencoderConfig,
    latent_std,
    reconstruction_loss,
    structure_latents,
    train_autoencoder,
)
from diffv2ir.training.cache import file_hash
from diffv2ir.training.captioner import CaptionerConfig, build_processor, plain_caption, train_captioner
from diffv2ir.training.captioner import _augment as augment
from diffv2ir.training.loop import LoopConfig
from diffv2ir.training.segmenter import SegmenterConfig, segmentation_losses, train_segmenter
from diffv2ir.training.text import TextConfig, contrastive_loss, train_text, train_tokenizer
from diffv2ir.vlum import SamSegmenter, caption_images

SMALL_SAM = dict(
    image_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, window_size=2, global_attn_indexes=(0,),
    prompt_dim=16, mask_in_chans=4, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=16, points_per_side=2,
)  # fmt: skip

Component = collections.namedtuple("Component", "train config options folders")


def loop(steps):
    return LoopConfig(
        steps=steps, batch_size=4, learning_rate=5e-3, warmup_steps=1, schedule="constant", ema_decay=0.5,
        weight_decay=0.0, checkpoint_every=2, log_every=1,
    )  # fmt: skip


COMPONENTS = {
    "autoencoder": Component(
        train_autoencoder,
        AutoencoderConfig,
        dict(encoder_width=8, width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), crop=16, statistics_images=2),
        ["vae"],
    ),
    "text": Component(
        train_text,
        TextConfig,
        dict(vocabulary=600, hidden_size=16, layers=1, heads=2, vision_size=16, vision_patch=8),
        ["text_encoder", "tokenizer"],
    ),
    "captioner": Component(
        train_captioner,
        CaptionerConfig,
        dict(hidden_size=16, vision_layers=1, text_layers=1, heads=2, image_size=32),
        ["captioner", "captioner_processor"],
    ),
    "captioner that learns to see": Component(
        train_captioner,
        CaptionerConfig,
        dict(hidden_size=16, vision_layers=1, text_layers=1, heads=2, image_size=32, seeing=1.0),
        ["captioner", "captioner_processor"],
    ),
    "segmenter": Component(
        train_segmenter, SegmenterConfig, dict(model=SMALL_SAM, regions=(12, 6, 3), points_per_image=3),
        ["segmenter"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    data = make_manifest_dataset(tmp_path_factory.mktemp("components") / "data", pairs=6, infrared=2)
    return read_examples(data, split="train")


def train(name, examples, output, steps):
    component = COMPONENTS[name]
    return component.train(examples, output, component.config(loop=loop(steps), **component.options))


def weights(folder):
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("name", COMPONENTS)
def test_training_resumes_and_leaves_a_component(name, examples, tmp_path, monkeypatch):
    whole = train(name, examples, tmp_path / "whole", 3)
    assert whole == tmp_path / "whole" / COMPONENTS[name].folders[0]
    for folder in COMPONENTS[name].folders:
        assert any((tmp_path / "whole" / folder).iterdir())
        assert any((tmp_path / "whole" / "checkpoints" / "step-0000002" / folder).iterdir())

    halves = tmp_path / "halves"  # as if it had been killed after the checkpoint of step 2
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-0000002", halves / "checkpoints" / "step-0000002")
    resumed = weights(train(name, examples, halves, 3))
    assert all(torch.equal(resumed[key], value) for key, value in weights(whole).items())

    stamp = max(path.stat().st_mtime_ns for path in whole.iterdir())
    assert train(name, examples, tmp_path / "whole", 3) == whole  # finished: nothing is done
    assert max(path.stat().st_mtime_ns for path in whole.iterdir()) == stamp


@pytest.mark.parametrize("name, steps", [("autoencoder", 24), ("text", 16), ("captioner", 16), ("segmenter", 16)])
def test_loss_falls(name, steps, examples, tmp_path):
    train(name, examples, tmp_path, steps)
    history = json.loads((tmp_path / "history.json").read_text())["history"]
    losses = [entry["loss"] for entry in history]
    assert len(losses) == steps
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


# What the folders hold


def test_autoencoder_loads_with_a_scaling_factor_of_unit_variance(examples, tmp_path):
    vae = AutoencoderTiny.from_pretrained(train("autoencoder", examples, tmp_path, 2)).eval()
    assert vae.config.scaling_factor * latent_std(vae, examples, 2) == pytest.approx(1, rel=1e-2)
    with torch.no_grad():
        assert vae(torch.zeros(1, 3, 16, 16)).sample.shape == (1, 3, 16, 16)


def test_text_encoder_and_tokenizer_load_and_fit(examples, tmp_path):
    encoder = CLIPTextModel.from_pretrained(train("text", examples, tmp_path, 2)).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokens = tokenizer("a scene with discs", padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert tokens.shape[1] == encoder.config.max_position_embeddings and tokens.max() < encoder.config.vocab_size
    with torch.no_grad():
        one, other = (
            encoder(tokens)[0],
            encoder(tokenizer("night", padding="max_length", return_tensors="pt").input_ids)[0],
        )
    assert torch.isfinite(one).all() and not torch.equal(one, other)


def test_captioner_and_processor_load_and_speak(examples, tmp_path):
    model = BlipForConditionalGeneration.from_pretrained(train("captioner", examples, tmp_path, 2)).eval()
    processor = BlipProcessor.from_pretrained(tmp_path / "captioner_processor")
    images = [draw_scene(0)[0]]
    (caption,) = caption_images(model, processor, images)
    assert caption_images(model, processor, images) == [caption] and "[" not in caption


def test_the_vision_tower_learns_what_the_imagenet_network_sees(examples, tmp_path):
    name = "captioner that learns to see"
    folder = train(name, examples, tmp_path, 30)
    seeing = [entry["seeing"] for entry in json.loads((tmp_path / "history.json").read_text())["history"]]
    assert np.mean(seeing[-4:]) < 0.8 * np.mean(seeing[:4])
    plain = weights(train("captioner", examples, tmp_path / "plain", 1))
    assert weights(folder).keys() == plain.keys()  # the head stays behind
    with pytest.raises(ValueError, match="seeing must be at least 0, got -1"):
        CaptionerConfig(loop=loop(1), seeing=-1)


def test_captions_of_unseen_scenes_are_by_models_that_have_not_seen_them(examples, tmp_path, monkeypatch):
    seen = {}

    def recording(chosen, output, config, processor):
        seen[output.name] = {(example.source, example.scene) for example in chosen}, config.loop.steps
        return run(chosen, output, config, processor)

    run = captioner_module._train
    monkeypatch.setattr(captioner_module, "_train", recording)
    monkeypatch.setattr(cache_module, "caption_images", lambda model, _, images: [names[model]] * len(images))
    names = collections.defaultdict(lambda: f"fold{len(names)}")  # in the order of their use
    options = COMPONENTS["captioner"].options | {"folds": 2}
    config = CaptionerConfig(loop=loop(4), **options)
    train_captioner(examples, tmp_path, config)
    captioned = [example for example in examples if example.visible and example.caption]
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert set(captions) == {file_hash(example.visible) for example in captioned}
    for example in captioned:
        assert (example.source, example.scene) not in seen[captions[file_hash(example.visible)]][0]
    assert {name: steps for name, (_, steps) in seen.items()} == {tmp_path.name: 4, "fold0": 2, "fold1": 2}
    monkeypatch.setattr(captioner_module, "_train", None)  # finished: nothing is done
    train_captioner(examples, tmp_path, config)


def test_one_fold_is_refused():
    with pytest.raises(ValueError, match="folds must be 0 or at least 2, got 1"):
        CaptionerConfig(loop=loop(1), folds=1)


def test_segmenter_loads_and_gives_masks(examples, tmp_path):
    # So little trained, it is sure of none: all are taken.
    all_of_them = dict(pred_iou_thresh=-100.0, stability_score_thresh=-100.0)
    segmenter = SamSegmenter.from_pretrained(train("segmenter", examples, tmp_path, 2), **all_of_them).eval()
    masks = segmenter.masks(draw_scene(0)[0])
    assert len(masks) > 0 and all(mask.shape == (48, 64) for mask in masks)


# Losses and what they are fed


def test_tokenizer_knows_every_text():
    tokenizer = train_tokenizer(["a red car", "a bus at night"], 600)
    for text in ("a red car", "Ünïcode ☃ {}", "zebra 7 (what?)"):
        tokens = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in tokens[1:-1]
        decoded = tokenizer.decode(tokens, skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.lower().replace(" ", "")
    assert len(tokenizer("car").input_ids) < len(tokenizer("xqz").input_ids)
    # A resumed training makes its tokenizer anew.
    assert train_tokenizer(["a red car", "a bus at night"], 600).get_vocab() == tokenizer.get_vocab()


def test_equal_captions_are_all_positives():
    captions = ["a", "b", "a"]
    same = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert contrastive_loss(50 * same, captions) == pytest.approx(np.log(2) * 2 / 3, abs=1e-4)  # the least there is
    assert contrastive_loss(50 * torch.eye(3), captions) > 10


def test_pictures_are_seen_both_ways_round():
    config = CaptionerConfig(loop=loop(1), smallest_crop=1.0)
    picture = np.zeros((8, 12, 3), dtype=np.uint8)
    picture[:, :6] = 255
    images = [augment(picture, config, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert {image.getpixel((0, 0)) for image in images} == {(0, 0, 0), (255, 255, 255)}


def test_photos_are_seen_in_other_exposures():
    config = CaptionerConfig(loop=loop(1), smallest_crop=1.0, jitter=0.5)
    picture = np.full((8, 12, 3), 128, dtype=np.uint8)
    images = [augment(picture, config, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1)]
    levels = [image.getpixel((0, 0))[0] for image in images]
    assert levels[0] == levels[2] != levels[1] and 128 not in levels


def test_captioner_vocabulary_is_that_of_the_captions():
    tokenizer = build_processor(["a red car, at night", "a tree"], 32).tokenizer
    assert tokenizer.tokenize("a red tree at night") == ["a", "red", "tree", "at", "night"]
    assert tokenizer.tokenize("cat")[0] == "c" and tokenizer.unk_token not in tokenizer.tokenize("cat")


@pytest.mark.parametrize(
    "caption, wanted",
    [
        ("Cars and a bus on a wet road at night", "a street and cars at night"),
        ("two people walking under palm trees at dusk", "people and trees at dusk"),
        ("a lawn before houses under a blue sky with white clouds", "buildings, grass and the sky in daylight"),
        ("a desk with a lamp in an office", "lamps indoors"),
        ("a carpet", "an object in daylight"),
    ],
)
def test_plain_captions_name_things_in_one_order_and_the_time(caption, wanted):
    assert plain_caption(caption) == wanted


def test_segmentation_losses_are_least_for_the_true_masks():
    truth = torch.zeros(1, 2, 3, 8, 8)
    truth[..., :4, :] = 1
    perfect = segmentation_losses((truth - 0.5) * 40, torch.ones(1, 2, 3), truth)
    wrong = segmentation_losses((0.5 - truth) * 40, torch.ones(1, 2, 3), truth)
    assert perfect["loss"] < 1e-3 and perfect["iou"] == 1
    assert wrong["loss"] > 5 and wrong["iou"] == 0
    modest = segmentation_losses((truth - 0.5) * 40, torch.zeros(1, 2, 3), truth)
    assert modest["loss"] - perfect["loss"] == pytest.approx(1, abs=1e-3)  # the estimate of the IoU is off by one


def test_prompts_lie_inside_their_masks():
    image = np.full((6, 10, 3), 200, dtype=np.uint8)
    labels = np.stack([np.arange(60).reshape(6, 10) // size for size in (2, 10, 30)]).astype(np.uint16)
    generator = torch.Generator().manual_seed(0)
    pixels, points, masks = segmenter_module._draw_prompts(image, labels, 20, 16, generator)
    assert (pixels.shape, points.shape, masks.shape) == ((3, 16, 16), (20, 2), (20, 3, 16, 16))
    assert not masks[:, :, 6:].any() and not masks[:, :, :, 10:].any()  # nothing of the padding
    for (x, y), mask in zip(points, masks, strict=True):
        assert mask[:, int(y), int(x)].all()
        assert [int(m.sum()) for m in mask] == [2, 10, 30]


def test_prompts_start_by_looking_at_their_own_place():
    torch.manual_seed(0)
    segmenter = SamSegmenter(**{**SMALL_SAM, "image_size": 128, "prompt_dim": 64})
    segmenter_module._look_where_the_prompt_is(segmenter)
    sam = segmenter.sam
    attention = sam.mask_decoder.transformer.final_attn_token_to_image
    places = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T  # [8 * 8, 64]
    products = attention.q_proj(places) @ attention.k_proj(places).T
    assert torch.equal(products.argmax(1), torch.arange(64))


def test_every_second_prompt_lies_in_any_of_the_finest_regions():
    labels = np.zeros((1, 100, 100), dtype=np.uint16)
    labels[0, :2, :2] = 1  # 1 pixel in 2,500
    generator = torch.Generator().manual_seed(0)
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    masks = segmenter_module._draw_prompts(image, labels, 400, 100, generator)[2]
    small = (masks[:, 0].sum((1, 2)) == 4).sum()
    assert 60 <= small <= 140  # about half of every second one


def test_images_of_equal_names_have_their_own_teachers(tmp_path):
    paths = [tmp_path / name / "same.png" for name in "ab"]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        draw_scene(number, (32, 24))[0].save(path)
    for _ in range(2):  # made, then read
        _, labels = segmenter_module._teach(paths, tmp_path / "teacher", (8,), 32)
        assert not np.array_equal(labels[0], labels[1])
    shutil.copy(paths[0], paths[1])  # another picture under the same name
    file_hash.cache_clear()
    _, labels = segmenter_module._teach(paths, tmp_path / "teacher", (8,), 32)
    assert np.array_equal(labels[0], labels[1])
    assert segmenter_module._teach(paths, tmp_path / "teacher", (8,), 16)[1][0].shape[1:] == (12, 16)


def test_edges_count_in_the_reconstruction_loss():
    target = torch.zeros(1, 3, 4, 4)
    flat, striped = torch.full_like(target, 0.5), torch.full_like(target, 0.5)
    striped[..., ::2] = -0.5
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(flat, target) == pytest.approx(0.5)
    assert reconstruction_loss(striped, target) == pytest.approx(0.5 + 0.5 * 1.0)


def test_colour_counts_more_than_brightness_in_the_reconstruction_loss():
    target = torch.zeros(1, 3, 4, 4)
    red = torch.tensor([0.6, 0.0, 0.0])[None, :, None, None].expand_as(target)
    chroma = (0.4**2 + 0.2**2 + 0.2**2) / 3
    assert reconstruction_loss(red, target) == pytest.approx(0.2 + 6 * chroma)


def test_structure_latents_are_brightness_spread_and_two_colours():
    generator = torch.Generator().manual_seed(0)
    image = 2 * torch.rand(1, 3, 32, 24, generator=generator) - 1
    latents = structure_latents(image)
    assert latents.shape == (1, 4, 8, 6)
    turned = structure_latents(image.flip(-1).mT)
    torch.testing.assert_close(turned, latents.flip(-1).mT)  # a mirrored or turned scene has mirrored, turned latents
    square = image[0, :, 4:8, 8:12].mean(dim=0)
    wanted = [2 * float(square.mean()), 4 * float(square.std(correction=0))]
    assert latents[0, :2, 1, 2].tolist() == pytest.approx(wanted, abs=1e-5)

    def of_colour(*levels):
        return structure_latents(torch.tensor(levels)[None, :, None, None].expand(1, 3, 4, 4)).flatten().tolist()

    assert of_colour(0.5, 0.5, 0.5) == pytest.approx([1.0, 0, 0, 0], abs=1e-3)
    assert of_colour(0.6, 0.0, -0.6) == pytest.approx([0, 0, np.arcsinh(4.8), 0], abs=1e-3)
    assert of_colour(-0.2, 0.4, -0.2) == pytest.approx([0, 0, 0, np.arcsinh(4.8)], abs=1e-3)


def test_latents_come_near_the_structure(examples, tmp_path):
    train("autoencoder", examples, tmp_path, 60)
    history = json.loads((tmp_path / "history.json").read_text())["history"]
    assert np.mean([row["structure"] for row in history[-5:]]) < 0.7 * np.mean([r["structure"] for r in history[:5]])
