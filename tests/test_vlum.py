"""Captions, masks, segmentation maps and the prompt."""

import numpy as np
import pytest
import torch
from make_data import draw_scene
from PIL import Image
from segment_anything import sam_model_registry
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipProcessor

from diffv2ir.vlum import (
    SamSegmenter,
    build_prompt,
    caption_images,
    segment,
    segmentation_colour,
    segmentation_map,
)
from diffv2ir.vlum import segment as segment_module
from diffv2ir.vlum.prompt import known_band


@pytest.fixture(scope="module")
def blip(bundle_folder):
    model = BlipForConditionalGeneration.from_pretrained(bundle_folder / "captioner").eval()
    return model, BlipProcessor.from_pretrained(bundle_folder / "captioner_processor")


@pytest.fixture(scope="module")
def segmenter(bundle_folder):
    model = SamSegmenter.from_pretrained(bundle_folder / "segmenter").eval()
    model.register_to_config(box_nms_thresh=1.0)  # untrained masks all have nearly the same box: keep them all
    return model


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(number)[0] for number in range(2)]


# Captions


def test_captions_are_deterministic_and_do_not_depend_on_the_seed(blip, scenes):
    captions = caption_images(*blip, scenes, seed=0)
    assert len(captions) == 2 and all(captions)
    assert caption_images(*blip, scenes, seed=1) == captions


def test_sampled_captions_repeat_with_their_seed(blip, scenes):
    by_seed = [caption_images(*blip, scenes, sample=True, seed=seed) for seed in range(4)]
    assert caption_images(*blip, scenes, sample=True, seed=2) == by_seed[2]
    assert len({tuple(captions) for captions in by_seed}) > 1


def test_points_are_in_single_precision_where_the_device_knows_no_other(bundle_folder, monkeypatch):
    segmenter = SamSegmenter.from_pretrained(bundle_folder / "segmenter")
    image, kinds = Image.new("RGB", (60, 40), "red"), []
    usual = segmenter.masks(image)
    as_tensor = torch.as_tensor

    def recorded(values, *arguments, **options):
        if "device" in options and np.shape(values)[-1:] == (2,):  # to the device
            kinds.append(np.asarray(values).dtype)
        return as_tensor(values, *arguments, **options)

    generator_class = segment_module.SamAutomaticMaskGenerator

    def on_mps(*arguments, **options):
        generator = generator_class(*arguments, **options)
        segment_module._in_single_precision(generator)
        return generator

    monkeypatch.setattr(segment_module, "SamAutomaticMaskGenerator", on_mps)
    monkeypatch.setattr(torch, "as_tensor", recorded)
    masks = segmenter.masks(image)
    assert kinds and set(kinds) == {np.dtype(np.float32)}
    assert len(masks) == len(usual)


def test_sampled_captions_go_on_after_the_opening_of_the_released_code(blip, scenes, monkeypatch, tmp_path):
    model, processor = blip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "street", "car", "tree", "sky", "picture", "of"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    knowing = BlipProcessor(processor.image_processor, BertTokenizer.from_pretrained(tmp_path))
    asked = []
    monkeypatch.setattr(model, "generate", lambda generate=model.generate, **how: asked.append(how) or generate(**how))
    with_opening = caption_images(model, knowing, scenes, sample=True)
    without = caption_images(model, processor, scenes, sample=True)
    drawn = [(how["do_sample"], how["top_p"], how["repetition_penalty"]) for how in asked]
    assert drawn == [(True, 0.9, 1.1)] * 2
    assert asked[0]["input_ids"].tolist() == [[2, 5, 10, 11, 3]] * 2 and "input_ids" not in asked[1]
    assert [(how["min_new_tokens"], how["max_new_tokens"]) for how in asked] == [(1, 16), (5, 20)]
    assert all(not caption.startswith("a picture of") for caption in with_opening)
    assert max(len(caption.split()) for caption in with_opening) <= 16 < 20 >= max(len(c.split()) for c in without)


@pytest.mark.parametrize("sample", [False, True])
def test_captions_leave_the_global_generator_alone(blip, scenes, sample):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    caption_images(*blip, scenes, sample=sample)
    assert torch.equal(torch.get_rng_state(), before)


def test_caption_length_is_limited(blip, scenes):
    assert all(len(caption.split()) > 1 for caption in caption_images(*blip, scenes))
    assert all(len(caption.split()) == 1 for caption in caption_images(*blip, scenes, max_tokens=2))


def test_no_image_has_no_caption(blip):
    assert caption_images(*blip, []) == []


# Prompt


def test_prompt_is_the_instruction_of_the_paper():
    assert build_prompt("a street at night") == "turn the visible image of a street at night into infrared"


def test_prompt_says_the_band():
    assert build_prompt("a tree", "NIR") == "turn the visible image of a tree into near infrared"
    assert build_prompt("a tree", "LWIR") == build_prompt("a tree") and build_prompt(" ", "NIR") == ""
    assert [known_band(band) for band in ("LWIR", "NIR", "MWIR", "")] == ["LWIR", "NIR", "LWIR", "LWIR"]


def test_prompt_collapses_white_space():
    assert build_prompt("  a\tstreet \n at  night ") == build_prompt("a street at night")


@pytest.mark.parametrize("caption", ["", "  \n"])
def test_prompt_of_an_empty_caption_is_the_null_text(caption):
    assert build_prompt(caption) == ""


# Masks


@pytest.mark.parametrize("size, shape", [((96, 72), (48, 64)), ((30, 120), (64, 16)), ((64, 64), (64, 64))])
def test_masks_are_sorted_and_have_the_shape_of_the_image(segmenter, size, shape):
    masks = segmenter.masks(draw_scene(0, size)[0])
    assert len(masks) > 1
    assert all(mask.shape == shape and mask.dtype == bool for mask in masks)
    areas = [int(mask.sum()) for mask in masks]
    assert areas == sorted(areas, reverse=True) and len(set(areas)) > 1


def found_masks(monkeypatch, *masks):
    """Let the mask generator find these, best first."""
    records = [
        {"segmentation": mask, "area": int(mask.sum()), "predicted_iou": 1 - 0.1 * n} for n, mask in enumerate(masks)
    ]
    monkeypatch.setattr(segment.SamAutomaticMaskGenerator, "generate", lambda self, pixels: list(records))


def test_masks_follow_the_photo_if_asked_to(bundle_folder, monkeypatch):
    segmenter = SamSegmenter.from_pretrained(bundle_folder / "segmenter").eval()
    pixels = np.full((64, 64, 3), 40, dtype=np.uint8)
    pixels[:, 29:] = (200, 150, 90)
    coarse, other, speck = np.zeros((3, 64, 64), dtype=bool)
    coarse[:, 32:] = True
    coarse[10, 10] = True
    other[:, 30:] = True  # becomes the same as `coarse`
    speck[50:52, 50:52] = True
    found_masks(monkeypatch, coarse, other, speck)
    assert segmenter.config.edge_radius == 0  # off unless asked for
    assert [int(mask.sum()) for mask in segmenter.masks(Image.fromarray(pixels))] == [2176, 2049, 4]
    segmenter.register_to_config(edge_radius=8, min_mask_region_area=20)
    (followed,) = segmenter.masks(Image.fromarray(pixels))
    expected = np.zeros((64, 64), dtype=bool)
    expected[:, 29:] = True
    assert np.array_equal(followed, expected)


def test_masks_are_whole_regions_of_the_photo_if_asked_to(bundle_folder, monkeypatch):
    segmenter = SamSegmenter.from_pretrained(bundle_folder / "segmenter").eval()
    pixels = np.full((64, 64, 3), 40, dtype=np.uint8)
    pixels[:, 29:] = (200, 150, 90)
    part = np.zeros((64, 64), dtype=bool)
    part[:40, 32:] = True  # most of the right side
    found_masks(monkeypatch, part)
    segmenter.register_to_config(edge_radius=8, region_scale=100.0, min_mask_region_area=20)
    (whole,) = segmenter.masks(Image.fromarray(pixels))
    assert whole[:, 30:].all() and not whole[:, :28].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_radius": -1}, "edge_radius must be at least 0, got -1"),
        ({"region_scale": 100.0}, "region_scale 100.0 needs an edge_radius above 0"),
    ],
)
def test_outlines_that_cannot_be_are_refused(segmenter, options, message):
    settings = {key: value for key, value in segmenter.config.items() if key[0] != "_"}
    with pytest.raises(ValueError, match=message):
        SamSegmenter(**settings | options)


def test_segmenter_is_the_same_after_saving_and_loading(segmenter, scenes, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = SamSegmenter.from_pretrained(tmp_path).eval()
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: v for k, v in segmenter.config.items() if k[0] != "_"
    }
    assert torch.equal(loaded.sam.pixel_mean, torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1))
    for ours, theirs in zip(segmenter.masks(scenes[0]), loaded.masks(scenes[0]), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", sorted(segment.OFFICIAL_SIZES))
def test_layout_is_that_of_the_official_checkpoints(size):
    with torch.device("meta"):
        ours = SamSegmenter(**segment.OFFICIAL_SIZES[size]).sam.state_dict()
        official = sam_model_registry[size]().state_dict()
    shapes = {name: tuple(value.shape) for name, value in ours.items() if not name.startswith("pixel_")}
    assert shapes == {name: tuple(value.shape) for name, value in official.items()}


@pytest.fixture
def small_official(monkeypatch, tmp_path):
    """An official checkpoint whose image encoder is small, and the segmenter it was taken from."""
    small = dict(embed_dim=8, depth=1, num_heads=2, global_attn_indexes=(0,))
    monkeypatch.setitem(segment.OFFICIAL_SIZES, "vit_b", small)
    torch.manual_seed(0)
    source = SamSegmenter(**small)
    state = {name: value for name, value in source.sam.state_dict().items() if not name.startswith("pixel_")}
    torch.save(state, tmp_path / "sam.pth")
    return source, state, tmp_path / "sam.pth"


def test_official_checkpoint_is_loaded_with_options(small_official):
    source, _, path = small_official
    loaded = SamSegmenter.from_checkpoint(path, "vit_b", points_per_side=8)
    assert loaded.config.points_per_side == 8 and not loaded.training
    ours, theirs = loaded.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_wrong_checkpoints_are_refused_by_name(small_official, tmp_path):
    _, state, path = small_official
    name = next(iter(state))
    wrong = {"missing.pth": {k: v for k, v in state.items() if k != name}, "list.pth": [1, 2]}
    for file, content in wrong.items():
        torch.save(content, tmp_path / file)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    for file in [*wrong, "text.pth"]:
        with pytest.raises(ValueError, match=f"{file} is not an official SAM vit_b checkpoint"):
            SamSegmenter.from_checkpoint(tmp_path / file)
    with pytest.raises(ValueError, match="size must be one of .*'vit_b'.*got 'vit_x'"):
        SamSegmenter.from_checkpoint(path, "vit_x")


# Maps


@pytest.fixture
def nested():
    """A large, a middle and a small mask, each inside the one before."""
    masks = [np.zeros((12, 16), dtype=bool) for _ in range(3)]
    masks[0][:, :12] = masks[1][2:10, 2:10] = masks[2][4:6, 4:6] = True
    return masks


def test_union_map_is_white_on_black_only(nested):
    drawn = segmentation_map(nested, (33, 25), "union")
    assert drawn.size == (33, 25) and drawn.mode == "RGB"
    assert {colour for _, colour in drawn.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    same_size = np.asarray(segmentation_map(nested, (16, 12), "union"))
    assert np.array_equal(same_size[..., 0] == 255, nested[0])


def test_regions_map_has_larger_masks_below(nested):
    drawn = segmentation_map(nested, (16, 12), "regions")
    assert [drawn.getpixel(place) for place in ((0, 0), (2, 2), (4, 4), (15, 0))] == [
        segmentation_colour(0),
        segmentation_colour(1),
        segmentation_colour(2),
        (0, 0, 0),
    ]
    assert np.array_equal(np.asarray(drawn), np.asarray(segmentation_map(nested, (16, 12), "regions")))


def test_region_colours_are_distinct_and_never_black():
    colours = [segmentation_colour(number) for number in range(100)]
    assert len(set(colours)) == 100
    assert all(max(colour) >= 100 and all(0 <= channel <= 255 for channel in colour) for colour in colours)


@pytest.mark.parametrize("style", ["union", "regions"])
def test_no_mask_gives_a_black_map(style):
    assert segmentation_map([], (5, 4), style).getcolors() == [(20, (0, 0, 0))]


def test_unknown_map_style_is_refused(nested):
    with pytest.raises(ValueError, match="style must be one of .*'union', 'regions'.*got 'edges'"):
        segmentation_map(nested, (16, 12), "edges")


def test_map_of_an_image(segmenter, scenes):
    drawn = segmentation_map(segmenter.masks(scenes[0]), scenes[0].size, "regions")
    assert isinstance(drawn, Image.Image) and drawn.size == scenes[0].size
    assert len(drawn.getcolors(10_000)) > 1
