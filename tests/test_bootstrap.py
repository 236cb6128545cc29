"""Intervals of means, and two methods on the same images."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffv2ir.bootstrap import compare, mean_interval, set_interval

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(VALUES)
def test_an_interval_lies_within_the_values_and_is_repeated(values):
    low, high = mean_interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert mean_interval(values) == (low, high)


def test_an_interval_is_that_of_the_normal_distribution_for_many_values():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(
        values.mean() + half, abs=0.03
    )


def test_intervals_cover_the_truth_nineteen_times_in_twenty():
    generator = np.random.default_rng(2)
    intervals = [mean_interval(generator.normal(0, 1, 40)) for _ in range(300)]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_a_comparison_is_paired():
    scene = np.random.default_rng(3).normal(15, 4, 50)  # far more spread between images than between methods
    result = compare(scene + 0.5, scene)
    assert result.difference == pytest.approx(0.5) and result.interval == pytest.approx((0.5, 0.5))
    assert result.win_rate == 1 and result.count == 50
    assert compare(scene, scene).win_rate == 0.5
    assert compare([1.0, 3.0, 2.0, 2.0], [2.0, 1.0, 2.0, 1.0]).win_rate == 0.625


def test_equal_images_have_an_infinite_score_and_no_difference():
    result = compare([math.inf, 12.0], [math.inf, 11.0])
    assert result.difference == 0.5 and result.win_rate == 0.75


@pytest.mark.parametrize("values", [[], [[1.0]]])
def test_no_values_are_refused(values):
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval(values)


def test_other_counts_are_refused():
    with pytest.raises(ValueError, match="two values for every image, got 2 and 1"):
        compare([1, 2], [1])


def test_smaller_can_be_better():
    assert compare([1.0, 3.0, 2.0], [2.0, 1.0, 2.0], larger_is_better=False).win_rate == 0.5
    result = compare([1.0, 1.0], [2.0, 3.0], larger_is_better=False)
    assert result.win_rate == 1 and result.difference == -1.5


def test_a_comparison_is_json():
    record = compare([math.inf, 2.0], [1.0, 1.0]).to_dict()
    assert record["difference"] is None and record["win_rate"] == 1 and record["count"] == 2
    assert compare([2.0], [1.0]).to_dict()["interval"] == [1.0, 1.0]


def test_intervals_of_distances_between_sets_cover_that_of_sets_this_size():
    """The distance of 30 images is biased; the interval is for the distance of 30 images, not for that of all."""
    generator = np.random.default_rng(5)

    def distance(images):
        return float((images.mean(0) ** 2).sum())

    draws = generator.normal(0.4, 1, size=(400, 30, 4))
    expected = np.mean([distance(images) for images in draws])
    assert expected > 1.15 * 4 * 0.4**2
    intervals = [set_interval(lambda rows, own=own: distance(own[rows]), 30, distance(own)) for own in draws[:60]]
    assert np.mean([low <= expected <= high for low, high in intervals]) >= 0.85


def test_resamples_without_a_distance_are_left_out():
    def distance(rows):
        return float(rows.sum()) if len(set(rows)) > 1 else math.nan

    assert set_interval(distance, 2, 5.0) == (5.0, 5.0)  # only {0, 1} has one
