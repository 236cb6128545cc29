"""The infrared picture with the photo's edges."""

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import draw_scene, make_manifest_dataset

from diffv2ir.data import read_examples
from diffv2ir.edges import brightness, colours, follow_colours, follow_edges
from diffv2ir.imaging import control_gain, to_tensor
from diffv2ir.training.cache import LatentCache, ViewConfig


def step_at(column: float, low: float, high: float, scale: int = 1) -> np.ndarray:
    levels = np.full((32 * scale, 48 * scale), low, dtype=np.float32)
    levels[:, round(column * scale) :] = high
    return levels


def test_an_edge_moves_to_where_the_photo_has_it():
    picture, photo = step_at(26, 0.25, 0.7), step_at(24, 0.9, 0.2)  # two pixels apart, and the other way round
    row = follow_edges(picture, photo, radius=8)[16]
    jumps = np.diff(row)
    assert np.abs(jumps).argmax() == 23 and jumps[23] > 0.25  # between columns 23 and 24


def test_what_the_photo_does_not_show_is_smoothed():
    row = follow_edges(step_at(24, 0.25, 0.7), np.full((32, 48), 0.5, np.float32), radius=8)[16]
    assert np.abs(np.diff(row)).max() < 0.05


def test_a_soft_picture_becomes_as_sharp_as_the_photo_and_as_large():
    soft = cv2.GaussianBlur(step_at(24, 0.3, 0.6), (0, 0), 3)
    photo = step_at(24.25, 0.8, 0.2, scale=4)
    followed = follow_edges(soft, photo, radius=12, blur=3)
    assert followed.shape == photo.shape and followed.dtype == np.float32
    row = followed[64]
    assert abs(row[96] - row[97]) > 0.8 * 0.3  # the whole step of the picture, between two pixels of the photo
    weaker = follow_edges(soft, photo, radius=12)[64]  # without the blur, the slope comes out too small
    assert abs(weaker[96] - weaker[97]) < abs(row[96] - row[97])


def test_an_edge_between_colours_of_one_brightness(disc):
    photo, true = disc
    soft = cv2.GaussianBlur(np.where(true, 0.7, 0.3).astype(np.float32), (0, 0), 3)
    gray = photo @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    assert np.ptp(gray) < 0.04
    by_colour, by_gray = (np.abs(follow_edges(soft, guide, 10, blur=3) - true).mean() for guide in (photo, gray))
    sharp = follow_edges(soft, photo, radius=10, blur=3)
    assert np.abs(np.diff(sharp[32])).max() > 0.3 and by_colour < by_gray
    assert np.abs(np.diff(follow_edges(soft, gray, radius=10, blur=3)[32])).max() < 0.2


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_gray_colours_are_brightness(seed, radius):
    photo = brightness(draw_scene(seed)[0])
    picture = cv2.GaussianBlur(1 - photo, (0, 0), 2)
    three = follow_edges(picture, np.stack([photo] * 3, axis=-1), radius, flat=3e-3)
    np.testing.assert_allclose(three, follow_edges(picture, photo, radius, flat=1e-3), atol=1e-3)


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_a_photo_follows_its_own_edges_and_a_flat_picture_stays(seed, radius):
    photo = brightness(draw_scene(seed)[0])
    np.testing.assert_allclose(follow_edges(photo, photo, radius, flat=1e-9), photo, atol=0.01)
    flat = np.full_like(photo, 0.3)
    np.testing.assert_allclose(follow_edges(flat, photo, radius), flat, atol=0.01)


def test_a_picture_of_the_pipeline_has_the_photos_edges_where_asked(pipe, conditioning):
    plain = pipe.default_settings.replace(steps=1, seed=0, resolution=64)
    without, followed = (pipe.generate(conditioning, plain.replace(edge_radius=radius)) for radius in (0, 6))
    assert followed.image.size == without.image.size == conditioning.size
    assert followed.levels.shape[::-1] == conditioning.size
    size = without.levels.shape
    radius = max(1, round(0.06 * min(size)))
    expected = follow_edges(without.levels, colours(conditioning.image), radius, blur=radius / 8, flat=2.5e-4)
    np.testing.assert_array_equal(followed.levels, expected)
    assert np.abs(np.asarray(followed.image) / 255 - expected).max() < 0.003


def test_gain_is_controlled_after_the_edges(pipe, conditioning):
    plain = pipe.default_settings.replace(steps=1, seed=0, resolution=64, edge_radius=6)
    without, stretched = (pipe.generate(conditioning, plain.replace(gain_control=share)) for share in (0, 0.5))
    np.testing.assert_array_equal(stretched.levels, control_gain(without.levels, 0.5))
    assert np.abs(np.asarray(stretched.image) / 255 - stretched.levels).max() < 0.003


@pytest.mark.parametrize(("radius", "follows"), [(0, False), (3, True)])
def test_views_of_a_pair(tmp_path, bundle_folder, radius, follows):
    vae = AutoencoderKL.from_pretrained(bundle_folder / "vae")
    examples = read_examples(make_manifest_dataset(tmp_path / "data", pairs=2, infrared=1), split="train")
    view = ViewConfig(resize=20, crop=16, variants=1, flip=False, edge_radius=radius)
    cache = LatentCache(tmp_path / "cache", vae, view, None)
    pair = next(e for e in examples if e.visible)
    views = cache._cutter.cut(cache.roles(pair), pair, 0)
    plain = LatentCache(tmp_path / "cache", vae, ViewConfig(resize=20, crop=16, variants=1, flip=False), None)
    before = plain._cutter.cut(plain.roles(pair), pair, 0)
    assert torch.equal(to_tensor(views["visible"]), to_tensor(before["visible"]))
    assert torch.equal(to_tensor(views["infrared"]), to_tensor(before["infrared"])) != follows
    alone = next(e for e in examples if not e.visible)
    assert set(cache._cutter.cut(cache.roles(alone), alone, 0)) == {"infrared"}
    assert (cache._path(pair, 0) == plain._path(pair, 0)) != follows


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="edge_radius must be at least 0, got -1"):
        ViewConfig(edge_radius=-1)


# Masks


@pytest.fixture
def disc():
    """A green disc on red of the same brightness (64, 64, 3), and its true mask."""
    rows, columns = np.mgrid[:64, :64]
    true = (rows - 32) ** 2 + (columns - 30) ** 2 < 18**2
    photo = np.where(true[..., None], (0.1, 0.6, 0.3), (0.8, 0.25, 0.3)).astype(np.float32)
    return photo, true


def blocks_of(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask of whole blocks: those that it fills by half."""
    share = cv2.resize(mask.astype(np.float32), None, fx=1 / size, fy=1 / size, interpolation=cv2.INTER_AREA)
    return np.kron(share > 0.5, np.ones((size, size))) > 0


def test_blocky_masks_get_the_outline_of_a_colour(disc):
    photo, true = disc
    blocky = blocks_of(true, 8)
    inside, outside = follow_colours([blocky, ~blocky], photo, radius=8)
    assert inside.dtype == bool and inside.shape == true.shape
    assert (blocky != true).sum() > 100 and (inside != true).sum() <= 10
    assert np.array_equal(inside, ~outside)


def test_masks_are_filtered_as_a_matrix_solver_would(disc):
    rng = np.random.default_rng(0)
    photo = cv2.GaussianBlur(rng.random((40, 48, 3), dtype=np.float32), (0, 0), 1.5)
    mask, radius = cv2.GaussianBlur(rng.random((40, 48), dtype=np.float32), (0, 0), 3) > 0.5, 5

    def mean(values):
        return cv2.blur(values, (11, 11), borderType=cv2.BORDER_REFLECT_101)

    level = mask.astype(np.float32)
    centre = mean(photo)
    spread = np.stack([[mean(photo[..., i] * photo[..., j]) - centre[..., i] * centre[..., j] for i in range(3)]
                       for j in range(3)])  # fmt: skip
    together = np.stack([mean(photo[..., i] * level) - centre[..., i] * mean(level) for i in range(3)], axis=-1)
    slopes = np.linalg.solve(np.moveaxis(spread, (0, 1), (2, 3)) + 1e-3 * np.eye(3), together[..., None])[..., 0]
    offset = mean(level) - (slopes * centre).sum(-1)
    expected = sum(mean(slopes[..., i]) * photo[..., i] for i in range(3)) + mean(offset) > 0.5
    assert (follow_colours([mask], photo, radius)[0] != expected).mean() < 0.002


def test_masks_of_a_photo_without_edges_stay_where_they_are():
    mask = np.zeros((32, 48), dtype=bool)
    mask[:, 24:] = True
    assert np.array_equal(follow_colours([mask], np.full((32, 48, 3), 0.5, np.float32), radius=6)[0], mask)


def test_no_mask_has_no_edges(disc):
    assert follow_colours([], disc[0], radius=4) == []
