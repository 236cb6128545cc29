"""Regions at several scales that teach the tiny SAM."""

import cv2
import numpy as np
import pytest
from make_data import draw_scene

from diffv2ir.training.regions import region_labels

COUNTS = (12, 6, 3)


@pytest.fixture(scope="module")
def labels():
    return region_labels(np.asarray(draw_scene(1, (96, 72))[0]), COUNTS)


def test_there_are_as_many_regions_as_asked_for(labels):
    assert labels.shape == (3, 72, 96) and labels.dtype == np.uint16
    assert [sorted(np.unique(one).tolist()) for one in labels] == [list(range(count)) for count in COUNTS]


def test_every_region_is_connected_and_lies_in_one_of_the_next_scale(labels):
    for fine, coarse in zip(labels, labels[1:], strict=False):
        for number in range(fine.max() + 1):
            assert cv2.connectedComponents((fine == number).astype(np.uint8), connectivity=8)[0] == 2
            assert len(np.unique(coarse[fine == number])) == 1


def test_a_small_thing_that_stands_out_outlives_a_slow_change():
    pixels = np.repeat(np.linspace(90, 150, 128).astype(np.uint8)[None, :, None], 3, axis=2).repeat(96, axis=0)
    pixels[40:60, 50:58] = (250, 40, 30)
    labels = region_labels(pixels, (2,))[0]
    thing = labels == labels[50, 54]
    assert thing.sum() == pytest.approx(160, abs=40) and not thing[50, 20] and not thing[50, 100]


def test_a_photo_with_fewer_regions_keeps_those_it_has():
    assert region_labels(np.full((20, 30, 3), 80, np.uint8), COUNTS).max() == 0


@pytest.mark.parametrize("counts", [(3, 6), (4, 0)])
def test_counts_that_do_not_fall_are_refused(counts):
    with pytest.raises(ValueError, match="counts must fall and be at least 1, got"):
        region_labels(np.zeros((8, 8, 3), np.uint8), counts)
