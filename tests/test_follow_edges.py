"""The infrared picture with the photo's edges."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import draw_scene, make_manifest_dataset
from PIL import Image

from diffv2ir.data import read_examples
from diffv2ir.training.cache import LatentCache, ViewConfig
from diffv2ir.training.images import follow_edges, to_tensor


def step_at(column: int, low: int, high: int) -> Image.Image:
    pixels = np.full((32, 48), low, dtype=np.uint8)
    pixels[:, column:] = high
    return Image.fromarray(pixels).convert("RGB")


def row(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))[16].astype(int)


def test_an_edge_moves_to_where_the_photo_has_it():
    infrared, visible = step_at(26, 60, 180), step_at(24, 220, 40)  # two pixels apart, and the other way round
    followed = row(follow_edges(infrared, visible, radius=8))
    jumps = np.abs(np.diff(followed))
    assert jumps.argmax() == 23  # between columns 23 and 24
    assert jumps.max() > 60 and followed[23] < followed[24]


def test_what_the_photo_does_not_show_is_smoothed():
    infrared, visible = step_at(24, 60, 180), step_at(48, 128, 128)
    assert np.abs(np.diff(row(follow_edges(infrared, visible, radius=8)))).max() < 12


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_a_photo_follows_its_own_edges_and_a_flat_picture_stays(seed, radius):
    visible, _ = draw_scene(seed)
    gray = visible.convert("L").convert("RGB")
    assert np.abs(row(follow_edges(gray, gray, radius, epsilon=1e-9)) - row(gray)).max() <= 1
    flat = Image.new("RGB", visible.size, (77, 77, 77))
    assert np.abs(row(follow_edges(flat, visible, radius)) - 77).max() <= 1


@pytest.mark.parametrize(("radius", "follows"), [(0, False), (3, True)])
def test_views_of_a_pair(tmp_path, bundle_folder, radius, follows):
    vae = AutoencoderKL.from_pretrained(bundle_folder / "vae")
    examples = read_examples(make_manifest_dataset(tmp_path / "data", pairs=2, infrared=1), split="train")
    view = ViewConfig(resize=20, crop=16, variants=1, flip=False, edge_radius=radius)
    cache = LatentCache(tmp_path / "cache", vae, view, None)
    pair = next(e for e in examples if e.visible)
    views = cache._views(pair, 0)
    plain = LatentCache(tmp_path / "cache", vae, ViewConfig(resize=20, crop=16, variants=1, flip=False), None)
    before = plain._views(pair, 0)
    assert torch.equal(to_tensor(views["visible"]), to_tensor(before["visible"]))
    assert torch.equal(to_tensor(views["infrared"]), to_tensor(before["infrared"])) != follows
    alone = next(e for e in examples if not e.visible)
    assert set(cache._views(alone, 0)) == {"infrared"}
    assert (cache._path(pair, 0) == plain._path(pair, 0)) != follows


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="edge_radius must be at least 0, got -1"):
        ViewConfig(edge_radius=-1)
