"""One photo through the phases: which a bundle holds, and what each of them draws."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from diffv2ir import phases
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import SAMPLERS, GenerationSettings

SETTINGS = GenerationSettings(steps=2, resolution=64, sampler="ddim", seed=3, text_scale=2.0)


@pytest.fixture(scope="module")
def grown(grown_folder):
    return DiffV2IRPipeline.from_pretrained(grown_folder)


def drawn(pipe, conditioning, settings=SETTINGS, callback=None):
    return {p.name: np.asarray(p.image) for p in phases.draw_phases(pipe, conditioning, settings, callback)}


def test_a_bundle_always_holds_phases_two_and_three(pipe, conditioning):
    assert phases.held_phases(pipe) == ["phase 2", "phase 3, night"]
    pictures = drawn(pipe, conditioning)
    for name, style in (("phase 2", "general"), ("phase 3, night", "night")):
        alone = pipe.generate(conditioning, SETTINGS.replace(style=style)).image
        assert np.array_equal(pictures[name], np.asarray(alone))


def test_all_phases_in_order_each_its_own_picture(grown, conditioning):
    pictures = drawn(grown, conditioning)
    assert list(pictures) == phases.held_phases(grown) == ["base", "phase 1", "phase 2", "phase 3, night"]
    assert {picture.shape for picture in pictures.values()} == {(70, 90)}
    assert len({picture.tobytes() for picture in pictures.values()}) == 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_repaints_and_repeats_itself(grown, conditioning, sampler, monkeypatch):
    monkeypatch.setattr(phases, "_LEAST_STEPS", 5)
    settings = SETTINGS.replace(sampler=sampler)
    one, other = drawn(grown, conditioning, settings), drawn(grown, conditioning, settings)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_base_that_predicts_the_truth_gives_the_photo_back(grown, conditioning, monkeypatch):
    """With a UNet that knows the clean latents, whatever noise is added is taken away again."""
    clean = conditioning.visible_latents * grown.vae.config.scaling_factor

    def truth(unet, latents, timestep, texts, scale):
        alpha = grown.scheduler.alphas_cumprod[int(timestep)]
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean  # v-prediction

    monkeypatch.setattr(phases, "_guided", truth)
    wanted = np.asarray(grown.decode(clean).resize(conditioning.size), dtype=int)
    pictures = drawn(grown, conditioning)
    assert np.abs(pictures["base"].astype(int) - wanted).max() <= 1


def test_text_guidance_is_that_of_the_equation(new_unet):
    unet = new_unet(in_channels=4)
    latents, texts = torch.randn(1, 4, 8, 8), (torch.randn(1, 16, 32), torch.randn(1, 16, 32))
    with torch.no_grad():
        text, null = (unet(latents, torch.tensor(500), embeds).sample for embeds in texts)
        for scale in (0.0, 1.0, 7.5):
            guided = phases._guided(unet, latents, torch.tensor(500), texts, scale)
            torch.testing.assert_close(guided, null + scale * (text - null))


@pytest.mark.parametrize("stop", [(0, 1), (1, 3), (2, 1), (3, 2)])
def test_it_ends_where_it_is_told_and_keeps_what_is_finished(grown, conditioning, stop):
    pictures = drawn(grown, conditioning, callback=lambda done, step, steps: (done, step) != stop or step == steps)
    expected = stop[0] + (stop == (3, 2))  # the last step of a picture finishes it
    assert len(pictures) == expected


def test_a_base_of_another_shape_is_refused(bundle_folder, new_unet, conditioning, tmp_path):
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    new_unet(in_channels=8).save_pretrained(tmp_path / "bundle" / "phases" / "base")
    pipe = DiffV2IRPipeline.from_pretrained(tmp_path / "bundle")
    assert phases.held_phases(pipe)[0] == "base" and "phase 1" not in phases.held_phases(pipe)
    with pytest.raises(ValueError, match="needs 4 input channels and texts of width 32, got 8 and 32"):
        drawn(pipe, conditioning)
    assert isinstance(pipe.unet, UNet2DConditionModel)
