"""Ranges, kinds and conversions of the generation settings."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffv2ir.settings import MAX_SEED, PRESETS, SAMPLERS, GenerationSettings

SCALES = ("visible_scale", "segmentation_scale", "text_scale")
WHOLE = ("steps", "resolution", "seed")

scales = st.floats(0, allow_nan=False, allow_infinity=False)
valid = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 500),
        **{name: scales for name in SCALES},
        "seed": st.none() | st.integers(0, MAX_SEED),
        "sampler": st.sampled_from(SAMPLERS),
        "resolution": st.integers(64, 2048),
        "style": st.text("abcXYZ019", min_size=1),
    },
)


def test_a_seed_is_drawn_where_there_is_none():
    settings = GenerationSettings(steps=7)
    drawn = {settings.with_seed().seed for _ in range(5)}
    assert len(drawn) > 1 and all(0 <= seed <= MAX_SEED for seed in drawn)
    assert settings.with_seed().steps == 7
    assert settings.replace(seed=0).with_seed() == settings.replace(seed=0)


def test_defaults_are_the_papers():
    settings = GenerationSettings()
    assert (settings.steps, settings.sampler, settings.seed) == (100, "euler_ancestral", None)
    assert (settings.visible_scale, settings.segmentation_scale, settings.text_scale) == (1.5, 1.5, 7.5)


@given(valid)
def test_json_round_trip(values):
    settings = GenerationSettings.from_dict(values)
    assert GenerationSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert all(settings.to_dict()[name] == value for name, value in values.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 501),
        ("steps", 2.5),
        ("steps", "20"),
        ("steps", None),
        ("resolution", 63),
        ("resolution", 2049),
        ("resolution", None),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 0.5),
        ("sampler", "heun"),
        ("sampler", None),
        ("style", ""),
        ("style", "../secrets"),
        ("style", "night\n"),
        ("style", None),
        *((name, -0.1) for name in SCALES),
        *((name, None) for name in SCALES),
        *((name, "1.5") for name in SCALES),
        *((name, value) for name in (*SCALES, *WHOLE) for value in (math.nan, math.inf, -math.inf, True, 10**400)),
    ],
)
def test_refusal_names_field_and_value(name, value):
    with pytest.raises(ValueError) as error:
        GenerationSettings(**{name: value})
    assert name in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_floats_become_integers(name):
    value = getattr(GenerationSettings(**{name: 128.0}), name)
    assert value == 128 and type(value) is int


@pytest.mark.parametrize("name", SCALES)
def test_integers_become_floats(name):
    value = getattr(GenerationSettings(**{name: 2}), name)
    assert value == 2 and type(value) is float


def test_limits_are_inside():
    assert MAX_SEED == 2**31 - 1
    for changes in ({"seed": 0}, {"seed": MAX_SEED}, {"steps": 1}, {"steps": 500}, {"text_scale": 0}):
        GenerationSettings(**changes)


def test_unknown_settings_are_refused_by_name():
    for make in (GenerationSettings.from_dict, lambda values: GenerationSettings().replace(**values)):
        with pytest.raises(ValueError, match="unknown settings: cfg, guidance .*known: steps, visible_scale"):
            make({"cfg": 7, "steps": 3, "guidance": 1})
    with pytest.raises(ValueError, match="unknown settings: 3, cfg"):
        GenerationSettings.from_dict({3: 1, "cfg": 7})


def test_replace_keeps_the_rest():
    settings = GenerationSettings(steps=7, seed=3)
    changed = settings.replace(text_scale=2)
    assert changed == GenerationSettings(steps=7, seed=3, text_scale=2.0)
    assert settings.text_scale == 7.5


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    changed = GenerationSettings(sampler="unipc", steps=99).with_preset(preset)
    assert all(getattr(changed, name) == value for name, value in PRESETS[preset].items())


def test_paper_preset_is_the_default():
    assert GenerationSettings(text_scale=1, sampler="ddim", steps=3).with_preset("paper") == GenerationSettings()


@pytest.mark.parametrize(("steps", "saves"), [(9, False), (10, False), (11, True)])
def test_a_preset_that_saves_nothing_changes_nothing(steps, saves):
    """Fewer steps than the preset's may be what the bundle is best at: more of them would be slower and worse."""
    own = GenerationSettings(sampler="unipc", steps=steps)
    assert (own.with_preset("fast") != own) is saves
    # Steps alone do not say what a picture costs.
    alone = own.replace(steps=12, visible_scale=1, segmentation_scale=1, text_scale=1)
    assert alone.with_preset("fast").evaluations == 10


def test_every_help_is_a_sentence_of_its_own():
    """For who reads neither the paper nor the code: no name of a field, and an equation with what it is of."""
    fields = GenerationSettings.__dataclass_fields__
    for name, field in fields.items():
        words = field.metadata["help"]
        assert words[0].isupper() and words.endswith("."), name
        assert not any(other in words for other in fields if "_" in other), name
        assert words.count("Eq. 2") == words.count("Eq. 2 of the paper)"), name


def test_sliders_cover_accepted_values_only():
    for name, field in GenerationSettings.__dataclass_fields__.items():
        assert field.metadata["label"] and field.metadata["help"]
        if "minimum" in field.metadata:
            for end in ("minimum", "maximum"):
                GenerationSettings(**{name: field.metadata[end]})
        for choice in field.metadata.get("choices", ()):
            GenerationSettings(**{name: choice})
