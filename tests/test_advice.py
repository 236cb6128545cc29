"""Advice on scales, phrases that change heat, and what a run costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffv2ir.advice import ADVICE
from diffv2ir.guidance import branch_weights
from diffv2ir.settings import GenerationSettings
from diffv2ir.vlum.prompt import HEAT_PHRASES, with_phrase

scales = st.floats(0, 20, allow_nan=False)


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice.fault)
def test_advice_moves_its_scale_and_nothing_else(advice):
    before = GenerationSettings(
        visible_scale=4.0, segmentation_scale=4.0, text_scale=4.0, edge_radius=4.0, gain_control=0.5
    )
    after, value = advice.apply(before), getattr(before, advice.setting)
    step = 0.25 if advice.setting == "gain_control" else 1.0
    assert getattr(after, advice.setting) == value + advice.direction * step
    assert after.replace(**{advice.setting: value}) == before


def test_advice_stops_at_the_largest_value():
    softer = next(advice for advice in ADVICE if advice.setting == "edge_radius" and advice.direction > 0)
    assert softer.apply(GenerationSettings(edge_radius=24.0)).edge_radius == 25.0
    brighter = next(advice for advice in ADVICE if advice.setting == "gain_control" and advice.direction > 0)
    assert brighter.apply(GenerationSettings(gain_control=0.9)).gain_control == 1.0


@given(st.sampled_from(ADVICE), scales)
def test_advice_never_leaves_the_range(advice, value):
    limit = GenerationSettings.__dataclass_fields__[advice.setting].metadata["limit"] or 20.0
    value *= 0.9 * limit / 20.0  # not so near to the limit that there is nowhere to go
    before = GenerationSettings(**{advice.setting: value})
    after = getattr(advice.apply(before), advice.setting)
    assert after >= 0
    assert (after - value) * advice.direction > 0 or value < 0.01


@given(scales, scales, scales, st.integers(1, 100))
def test_evaluations_are_the_branches_of_eq_2(visible, segmentation, text, steps):
    settings = GenerationSettings(visible_scale=visible, segmentation_scale=segmentation, text_scale=text, steps=steps)
    branches = sum(weight != 0 for weight in branch_weights(visible, segmentation, text))
    assert settings.evaluations == steps * branches


def test_evaluations_of_known_settings():
    assert GenerationSettings().evaluations == 300  # 1.5 / 1.5 / 7.5: the weight of (V) is zero
    assert GenerationSettings(steps=8, visible_scale=1, segmentation_scale=1, text_scale=1).evaluations == 8


def test_a_phrase_takes_the_place_of_another():
    assert with_phrase("a car on a road by day", "at night") == "a car on a road at night"
    assert with_phrase("a car, in winter.", "after rain") == "a car after rain"
    assert with_phrase("", "at night") == "at night"
    assert with_phrase("a car with wet tyres.", "in daylight", ("in daylight", "with wet tyres")) == "a car in daylight"
    assert with_phrase("a nightstand in a dark room", "by day") == "a nightstand in a dark room by day"
    assert with_phrase("a dayroom in the dark house", "by day") == "a dayroom in the dark house by day"


@pytest.mark.parametrize(
    "said",
    [
        "in daylight", "at night", "at dusk", "indoors", "outdoors", "in the daytime", "during the day",
        "at Night-time", "in bright sun", "on a sunny day", "on a cold winter morning", "in summer", "in the dark",
        "by daylight, at noon",
    ],
)  # fmt: skip
def test_a_phrase_does_not_stand_beside_its_opposite(said):
    """Whatever the captioner said of hour, season and light."""
    assert with_phrase(f"a street, cars and trees {said}", "at night") == "a street, cars and trees at night"
    assert with_phrase(f"{said}, a street", "in hot sun") == "a street in hot sun"


@given(st.text(alphabet="abc ,.", max_size=30), st.lists(st.sampled_from(HEAT_PHRASES), min_size=1, max_size=4))
def test_one_phrase_is_left(caption, phrases):
    for phrase in phrases:
        caption = with_phrase(caption, phrase)
    assert sum(caption.count(known) for known in HEAT_PHRASES) == 1
    assert caption.endswith(phrases[-1])
