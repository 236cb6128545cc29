"""Edges and people: what the numbers say of pictures whose answer is known."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffv2ir.tasks import PEOPLE, contrast, edge_f1, edges, person_measures, person_regions


def shifted(by: int, low: int = 60, high: int = 180) -> Image.Image:
    """A bright square on a dark ground, moved to the right by some pixels."""
    array = np.full((128, 128), low, np.uint8)
    array[40:90, 40 + by : 90 + by] = high
    return Image.fromarray(array)


def test_edges_are_where_levels_change():
    found = edges(shifted(0))
    ys, xs = np.nonzero(found)
    assert 150 < len(xs) < 260  # four sides of 50 px, one pixel wide
    assert xs.min() >= 37 and xs.max() <= 92 and ys.min() >= 37 and ys.max() <= 92
    assert not edges(Image.new("L", (64, 64), 9)).any()
    noise = np.random.default_rng(0).integers(99, 102, (64, 64)).astype(np.uint8)
    assert not edges(Image.fromarray(noise)).any()


def test_edges_do_not_depend_on_contrast_or_its_sign():
    wanted = edges(shifted(0))
    for other in (shifted(0, 20, 60), shifted(0, 180, 60)):
        assert edge_f1(edges(other), wanted) == 1


def test_edge_f1_has_a_tolerance():
    scores = [edge_f1(edges(shifted(by)), edges(shifted(0))) for by in (0, 2, 4, 12)]
    assert scores[0] == scores[1] == 1
    assert 0.4 < scores[3] <= scores[2] < 0.8  # the sides that moved are lost, the others are not


def test_edge_f1_is_the_harmonic_mean():
    wanted, found = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    wanted[3, 3], wanted[15, 15] = True, True
    found[3, 5], found[5, 5] = True, True  # 2 px away, and 2.8
    assert edge_f1(found, wanted) == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))
    found[5, 5] = False
    assert edge_f1(found, wanted) == pytest.approx(2 * 1 * 0.5 / 1.5)
    empty = np.zeros((20, 20), bool)
    assert edge_f1(empty, wanted) == edge_f1(wanted, empty) == 0 and edge_f1(empty, empty) == 1


def test_blur_costs_edges_that_pixel_metrics_forgive():
    generator = np.random.default_rng(1)
    fine = generator.integers(0, 2, (32, 32)).astype(np.uint8).repeat(8, 0).repeat(8, 1) * 120 + 60
    picture = Image.fromarray(fine)
    assert edge_f1(edges(picture.filter(ImageFilter.GaussianBlur(9))), edges(picture)) < 0.8


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a person in daylight", True),
        ("Two people on a crossing", True),
        ("a cyclist at night", True),
        ("a manhole by a personal car", False),
        ("", False),
    ],
)
def test_captions_name_people(caption, named):
    assert bool(PEOPLE.search(caption)) == named
    assert (person_regions(shifted(0), "crops", caption) is not None) == named


def test_a_crop_is_split_in_columns():
    inside, outside = person_regions(Image.new("L", (100, 50)), "crops", "a person")
    assert inside.shape == outside.shape == (50, 100)
    assert np.flatnonzero(inside[0]).tolist() == list(range(30, 70))
    assert np.flatnonzero(outside[7]).tolist() == [*range(10), *range(90, 100)]


def test_the_hottest_region_of_a_frame():
    """The hotter of two spots; a few hot pixels are no person."""
    array = np.full((256, 256), 50, np.uint8)
    array[20:40, 20:40], array[100:130, 100:120] = 200, 240
    array[200:203, 200:203] = 255
    real = Image.fromarray(array)
    inside, outside = person_regions(real, "pairs", "a man")
    ys, xs = np.nonzero(inside)
    assert 97 <= ys.min() and ys.max() <= 132 and 97 <= xs.min() and xs.max() <= 122
    assert not (inside & outside).any() and 130 < contrast(real, (inside, outside)) <= 190
    assert person_regions(Image.new("L", (256, 256)), "pairs", "a man") is None


def test_person_measures():
    regions = person_regions(shifted(0), "pairs", "a woman")
    real = contrast(shifted(0), regions)
    assert real > 80
    same = person_measures(shifted(0), shifted(0), regions)
    assert same == {"person_contrast": real, "person_brighter": 1, "person_sign": 1, "person_error": 0}
    cold = person_measures(shifted(0, 180, 60), shifted(0), regions)
    assert (cold["person_contrast"], cold["person_brighter"], cold["person_sign"]) == (pytest.approx(-real), 0, 0)
    assert cold["person_error"] == pytest.approx(2 * real)
    flat = person_measures(Image.new("L", (128, 128), 90), shifted(0), regions)
    assert (flat["person_contrast"], flat["person_brighter"], flat["person_sign"]) == (0, 0, 0)
    assert all(map(math.isnan, person_measures(shifted(0), shifted(0), None).values()))


def test_no_sign_is_asked_where_the_real_one_is_undecided():
    regions = person_regions(shifted(0), "pairs", "a woman")
    values = person_measures(shifted(0), shifted(0, 100, 103), regions)
    assert math.isnan(values["person_sign"]) and values["person_brighter"] == 1
