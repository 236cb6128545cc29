"""Eq. 2 as a weighted sum of branches, on the real UNet."""

import json
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffv2ir import guidance
from diffv2ir.guidance import BranchPlan, branch_weights, guided_prediction, make_branches, stack_pictures

scales = st.floats(0, 30) | st.sampled_from([0.0, 1.0, 1.5, 7.5])


@pytest.fixture(scope="module")
def unet(new_unet):
    return new_unet()


@pytest.fixture(scope="module")
def conditions():
    """For two pictures: latents, visible and segmentation latents, text and null embeddings."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 4, 4)] * 3 + [(2, 5, 32)] * 2
    return [torch.randn(shape, generator=generator) for shape in shapes]


TIMESTEP = torch.tensor(500)


@contextmanager
def counted_rows(unet):
    """The batch size of every call of the UNet."""
    rows = []
    hook = unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()


@torch.no_grad()
def equation_2(unet, conditions, visible_scale, segmentation_scale, text_scale):
    """The paper's Eq. 2 as it is printed."""
    latents, visible, segmentation, text, null = conditions

    def epsilon(c_visible, c_segmentation, c_text):
        sample = torch.cat([latents, c_visible, c_segmentation], dim=1)
        return unet(sample, TIMESTEP, encoder_hidden_states=c_text).sample

    zero = torch.zeros_like(visible)
    nothing = epsilon(zero, zero, null)
    with_visible = epsilon(visible, zero, null)
    with_segmentation = epsilon(visible, segmentation, null)
    with_text = epsilon(visible, segmentation, text)
    return (
        nothing
        + visible_scale * (with_visible - nothing)
        + segmentation_scale * (with_segmentation - with_visible)
        + text_scale * (with_text - with_segmentation)
    )


@torch.no_grad()
def guided(unet, conditions, weights, together=True, segmentation=True, text=True):
    latents, visible, drawn, prompt, null = conditions
    branches = make_branches(weights, visible, drawn if segmentation else None, prompt if text else None, null)
    return guided_prediction(unet, latents, TIMESTEP, branches, together)


def assert_close(value, expected, scale=1.0):
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("scales", [(1.5, 1.5, 7.5), (0, 0, 0), (1, 1, 1), (4, 4, 4), (0, 1.5, 7.5), (3, 2, 0)])
def test_weighted_sum_is_equation_2(unet, conditions, scales):
    expected = equation_2(unet, conditions, *scales)
    for together in (True, False):
        assert_close(guided(unet, conditions, branch_weights(*scales), together), expected)


@settings(max_examples=10, deadline=None)
@given(scales, scales, scales)
def test_weighted_sum_is_equation_2_for_any_scales(unet, conditions, visible, segmentation, text):
    value = guided(unet, conditions, branch_weights(visible, segmentation, text))
    # A sum of terms of size s is exact to a rounding of s.
    assert_close(value, equation_2(unet, conditions, visible, segmentation, text), max(visible, segmentation, text))


@given(scales, scales, scales)
def test_weights_add_up_to_one(visible, segmentation, text):
    assert sum(branch_weights(visible, segmentation, text)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("scales", "evaluations"),
    [
        ((1.5, 1.5, 7.5), 3),
        ((1, 1, 1), 1),
        ((0, 0, 0), 1),
        ((2, 3, 4), 4),
        ((0.5, 3, 7.5), 4),
        ((3, 3, 3), 2),
        ((1, 1, 7.5), 2),
        ((1.5, 0, 0), 2),
    ],
)
def test_branches_of_weight_zero_are_not_evaluated(unet, conditions, scales, evaluations):
    pictures = len(conditions[0])
    for together, calls in ((True, 1), (False, evaluations)):
        with counted_rows(unet) as rows:
            guided(unet, conditions, branch_weights(*scales), together)
        assert sum(rows) == evaluations * pictures
        assert len(rows) == calls


def test_conditions_switched_off(unet, conditions):
    latents, visible, segmentation, text, null = conditions
    weights = branch_weights(1.5, 2, 7.5)
    zero = torch.zeros_like(segmentation)
    without_map = [latents, visible, zero, text, null]
    without_text = [latents, visible, segmentation, null, null]
    neither = [latents, visible, zero, null, null]
    for switches, same_as, evaluations in (
        ({"segmentation": False}, without_map, 3),
        ({"text": False}, without_text, 3),
        ({"segmentation": False, "text": False}, neither, 2),
    ):
        with counted_rows(unet) as rows:
            value = guided(unet, conditions, weights, **switches)
        assert sum(rows) == evaluations * len(latents)
        assert_close(value, equation_2(unet, same_as, 1.5, 2, 7.5), 7.5)


def test_pictures_are_stacked_by_branch(unet, conditions):
    weights = branch_weights(1.5, 2, 7.5)
    latents, *parts = conditions
    branches = [make_branches(weights, *(part[i : i + 1] for part in parts)) for i in range(2)]
    with torch.no_grad():
        value = guided_prediction(unet, latents, TIMESTEP, stack_pictures(branches))
    assert_close(value, guided(unet, conditions, weights))


def test_prediction_is_float32_of_a_half_precision_unet(new_unet, conditions):
    half = new_unet().to(torch.bfloat16)
    latents, *parts = conditions
    parts = [part.to(torch.bfloat16) for part in parts]
    value = guided(half, [latents, *parts], branch_weights(1.5, 1.5, 7.5))
    assert value.dtype == torch.float32


@pytest.fixture
def branches(conditions):
    return make_branches(branch_weights(1.5, 2, 7.5), *conditions[1:])


@pytest.fixture
def measured(monkeypatch):
    """Counts the measurements, each of which finds `answer`."""

    class Measured:
        calls, answer = 0, False

    def measure(*arguments):
        Measured.calls += 1
        return Measured.answer

    monkeypatch.setattr(guidance, "_measure", measure)
    return Measured


def test_plan_is_measured_once_and_kept_in_a_file(unet, conditions, branches, measured, tmp_path):
    path = tmp_path / "folder" / "branches.json"
    plan = BranchPlan(path)
    assert plan.together(unet, conditions[0], TIMESTEP, branches) is False
    measured.answer = True  # would be found now, but the first answer stands
    assert plan.together(unet, conditions[0], TIMESTEP, branches) is False
    assert BranchPlan(path).together(unet, conditions[0], TIMESTEP, branches) is False
    assert measured.calls == 1
    assert list(json.loads(path.read_text()).values()) == [False]
    assert BranchPlan(path).together(unet, conditions[0], TIMESTEP, branches[:2]) is True  # another shape
    assert len(json.loads(path.read_text())) == 2


def test_plan_does_not_depend_on_the_number_of_pictures(unet, conditions, branches, measured, tmp_path):
    plan = BranchPlan(tmp_path / "branches.json")
    plan.together(unet, conditions[0], TIMESTEP, branches)
    plan.together(unet, conditions[0][:1], TIMESTEP, branches)
    assert measured.calls == 1


def test_plan_by_environment(unet, conditions, branches, measured, tmp_path, monkeypatch):
    plan = BranchPlan(tmp_path / "branches.json")
    for wish, answer in (("together", True), ("separate", False)):
        monkeypatch.setenv("DIFFV2IR_BRANCHES", wish)
        assert plan.together(unet, conditions[0], TIMESTEP, branches) is answer
    monkeypatch.setenv("DIFFV2IR_BRANCHES", "both")
    with pytest.raises(ValueError, match="'together' or 'separate', got 'both'"):
        plan.together(unet, conditions[0], TIMESTEP, branches)
    assert measured.calls == 0 and not plan.path.exists()


def test_plan_needs_no_measurement_of_one_branch(unet, conditions, branches, measured, tmp_path):
    assert BranchPlan(tmp_path / "branches.json").together(unet, conditions[0], TIMESTEP, branches[:1])
    assert measured.calls == 0


def test_plan_survives_a_damaged_file_and_a_place_that_cannot_be_written(
    unet, conditions, branches, measured, tmp_path, caplog
):
    damaged = tmp_path / "branches.json"
    damaged.write_text("[half an ans")
    assert BranchPlan(damaged).together(unet, conditions[0], TIMESTEP, branches) is False
    assert list(json.loads(damaged.read_text()).values()) == [False]
    (tmp_path / "file").write_text("")
    plan = BranchPlan(tmp_path / "file" / "branches.json")
    assert plan.together(unet, conditions[0], TIMESTEP, branches) is False
    assert "cannot be written" in caplog.text
    assert plan.together(unet, conditions[0], TIMESTEP, branches) is False
    assert measured.calls == 2


def test_measuring_evaluates_both_ways(unet, conditions, branches, tmp_path):
    with counted_rows(unet) as rows, torch.no_grad():
        BranchPlan(tmp_path / "branches.json").together(unet, conditions[0], TIMESTEP, branches)
    assert {len(branches) * 2, 2} <= set(rows)
