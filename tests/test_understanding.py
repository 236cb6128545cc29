"""The benchmark of captions and maps, on answers that are known."""

from statistics import fmean

import numpy as np
import pytest
from PIL import Image

from benchmarks.understanding import caption_figures, first_mentioned, map_figures, share_near
from diffv2ir.training.captioner import plain_caption


def test_the_main_thing_is_what_a_person_names_first():
    assert first_mentioned("a truck under palm trees on a road") == "cars"
    assert first_mentioned("trees and a truck") == "trees"
    assert first_mentioned("an unlit void") is None


def shares(captions: list[str], truths: list[str]) -> dict[str, float]:
    figures = caption_figures(captions, truths)
    return {name.removeprefix("caption: "): fmean(hits) for name, hits in figures.items()}


def test_caption_figures():
    truths = ["a car at night", "trees in daylight", "a lake under clouds", "a person on a nighttime street"]
    assert shares([plain_caption(truth) for truth in truths], truths) == {"day or night": 1, "the main thing": 1}
    wrong = ["cars in daylight", "grass in daylight", "water in daylight", "people at night"]
    assert shares(wrong, truths) == {"day or night": 0.75, "the main thing": 0.75}


def test_a_photo_in_which_a_person_names_nothing_known_counts_as_missed():
    assert shares(["cars in daylight"], ["a blur in daylight"])["the main thing"] == 0


def halves(side: int = 64, at: int = 32) -> np.ndarray:
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[:, at:] = (255, 120, 0)
    return pixels


@pytest.mark.parametrize(("at", "agreement"), [(32, 1.0), (34, 1.0), (48, 0.0)])
def test_boundaries_agree_within_two_pixels(at, agreement):
    figures = map_figures(Image.fromarray(halves()), Image.fromarray(halves(at=at)))
    assert figures["regions"] == 2
    assert figures["recall"] == pytest.approx(agreement) and figures["precision"] == pytest.approx(agreement)


def test_regions_of_one_colour_that_do_not_touch_are_several():
    drawn = halves()
    drawn[:, :10] = drawn[0, -1]
    drawn[0, 20] = (1, 2, 3)  # a speck
    assert map_figures(Image.fromarray(halves()), Image.fromarray(drawn))["regions"] == 3


def test_no_boundary_agrees_with_nothing():
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    assert share_near(empty, full) == 0.0 and share_near(full, empty) == 0.0
