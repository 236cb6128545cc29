"""What the paper's released code does otherwise than the paper says and a setting covers; the preset has them all."""

import json
import math
import shutil

import pytest
import torch
from diffusers import DDPMScheduler

from diffv2ir.cli import build_parser, settings_from
from diffv2ir.grid import plan
from diffv2ir.guidance import branch_weights, make_branches
from diffv2ir.imaging import MAX_ASPECT, working_size
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import PRESETS, GenerationSettings
from diffv2ir.ui.controls import Controls
from diffv2ir.ui.model import BundleFacts
from diffv2ir.ui.session import Session

SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCALES = dict(visible_scale=1.5, segmentation_scale=3.0, text_scale=7.5)


# The sampling loop as published, on the UNet itself: k-diffusion's CompVisDenoiser and sample_euler_ancestral


def published_sigmas(steps):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    log_sigmas = ((1 - kept) / kept).sqrt().log()
    timesteps = torch.linspace(999, 0, steps, dtype=torch.float64)
    low, share = timesteps.floor().long(), timesteps.frac()
    sigmas = ((1 - share) * log_sigmas[low] + share * log_sigmas[timesteps.ceil().long()]).exp()
    return timesteps.float(), torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)]).float()


@torch.no_grad()
def published_sampling(unet, conditioning, steps, seed, order, scales):
    visible, drawn = conditioning.visible_latents, conditioning.segmentation_latents
    nothing, text, null = torch.zeros_like(visible), conditioning.prompt_embeds, conditioning.null_embeds
    generator = torch.Generator().manual_seed(seed)
    timesteps, sigmas = published_sigmas(steps)
    x = torch.randn(visible.shape, generator=generator) * sigmas[0]
    for t, sigma, following in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):

        def denoised(first, second, words, x=x, t=t, sigma=sigma):
            sample = torch.cat([x / (sigma**2 + 1) ** 0.5, first, second], dim=1)
            return x - sigma * unet(sample, t, encoder_hidden_states=words).sample

        s_v, s_s, s_t = scales.values()
        alone = denoised(visible, nothing, null) if order == "vst" else denoised(nothing, drawn, null)
        one, other = (s_v, s_s) if order == "vst" else (s_s, s_v)
        without, both = denoised(nothing, nothing, null), denoised(visible, drawn, null)
        estimate = without + one * (alone - without) + other * (both - alone)
        estimate = estimate + s_t * (denoised(visible, drawn, text) - both)
        up = min(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = x + (x - estimate) / sigma * (down - sigma)
        noise = torch.randn(x.shape, generator=generator)
        x = x + noise * up
    return x


@pytest.fixture(scope="module")
def epsilon_pipe(_loaded):
    scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False, prediction_type="epsilon", timestep_spacing="linspace")
    return DiffV2IRPipeline(**{**_loaded.components, "scheduler": scheduler})


@pytest.mark.parametrize("order", ["vst", "svt"])
@pytest.mark.parametrize("steps", [7, 10])
def test_a_whole_trajectory_is_that_of_the_published_loop(epsilon_pipe, conditioning, steps, order):
    settings = GenerationSettings(steps=steps, seed=3, resolution=conditioning.resolution, branch_order=order, **SCALES)
    reached = []
    epsilon_pipe.generate(conditioning, settings, lambda step, total, estimate: reached.append(estimate.latents))
    expected = published_sampling(epsilon_pipe.unet, conditioning, steps, 3, order, SCALES)
    torch.testing.assert_close(reached[-1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    other = published_sampling(epsilon_pipe.unet, conditioning, steps, 3, "svt" if order == "vst" else "vst", SCALES)
    assert (other - expected).abs().max() > 0.01 * expected.abs().max()


# Order of the branches


def test_orders_agree_where_both_images_weigh_the_same():
    assert branch_weights(1.5, 1.5, 7.5, "svt") == branch_weights(1.5, 1.5, 7.5, "vst")
    assert branch_weights(1.5, 3, 7.5, "svt") == (1 - 3, 3 - 1.5, 1.5 - 7.5, 7.5)


@pytest.mark.parametrize("order", ["vst", "svt"])
@pytest.mark.parametrize("has_map", [True, False])
@pytest.mark.parametrize("has_text", [True, False])
def test_a_condition_that_is_off_only_adds_up_weights(order, has_map, has_text):
    """The sum over all four predictions, with those taken as equal that are, is the sum over the branches."""
    visible, drawn, words, null = torch.full((1, 4, 1, 1), 2.0), torch.full((1, 4, 1, 1), 3.0), torch.ones(1), None
    weights = branch_weights(1.5, 2, 7.5, order)
    branches = make_branches(weights, visible, drawn if has_map else None, words if has_text else None, null, order)
    summed = {}
    for branch in branches:
        v, s = float(branch.image_latents[0, 0]), float(branch.image_latents[0, 4])
        summed[v, s, branch.text_embeds is words] = branch.weight
    s, t = 3.0 * has_map, has_text
    alone = (2.0, 0.0) if order == "vst" else (0.0, s)
    expected = {}
    for key, weight in zip([(0.0, 0.0, False), (*alone, False), (2.0, s, False), (2.0, s, t)], weights, strict=True):
        expected[key] = expected.get(key, 0) + weight
    assert summed == {key: weight for key, weight in expected.items() if weight}


@pytest.mark.parametrize(("order", "evaluations"), [("vst", 3), ("svt", 4)])
def test_evaluations_follow_the_order(order, evaluations, epsilon_pipe, conditioning):
    settings = GenerationSettings(
        steps=1, visible_scale=2, segmentation_scale=2.5, text_scale=2.5, branch_order=order, resolution=64, seed=1
    )
    assert settings.evaluations == evaluations
    assert epsilon_pipe.generate(conditioning, settings).evaluations == evaluations
    assert plan(settings, [("seed", "1")]).evaluations == evaluations


def test_the_order_is_an_axis_of_a_grid():
    grid = plan(GenerationSettings(seed=1), [("branch_order", "vst, svt")])
    assert [cell.settings.branch_order for cell in grid.cells] == ["vst", "svt"]
    assert grid.axes[0].legends == ["order vst", "order svt"]


# Resolution


def published_size(width, height, resolution):
    factor = resolution / max(width, height)
    factor = math.ceil(min(width, height) * factor / 64) * 64 / min(width, height)
    return int((width * factor) // 64) * 64, int((height * factor) // 64) * 64


@pytest.mark.parametrize(
    "size",
    [(640, 480), (1280, 720), (1920, 1080), (640, 512), (500, 333), (720, 1280), (512, 512), (1000, 400), (90, 70)],
)
@pytest.mark.parametrize("resolution", [256, 512, 768])
def test_working_size_is_that_of_the_published_code(size, resolution):
    assert working_size(size, resolution, 64, "longer") == published_size(*size, resolution)


def test_longer_rule_follows_the_model_and_bounds_memory():
    assert working_size((1280, 720), 512, 64, "longer") == (512, 320)
    assert working_size((1280, 720), 512, 64) == (896, 512)
    assert working_size((640, 480), 512, 128, "longer") == (512, 384)
    assert working_size((20000, 1), 512, 64, "longer") == (MAX_ASPECT * 512, 64)
    assert working_size((1, 20000), 64, 64, "longer") == (64, 192)


def test_another_rule_encodes_anew(pipe, photo):
    wide = photo.resize((256, 90))
    prepared = pipe.prepare(wide, caption="a", segmentation=False, resolution=128)
    settings = pipe.default_settings.replace(seed=1, steps=1, resolution=128, resolution_rule="longer")
    direct = pipe.prepare(wide, caption="a", segmentation=False, resolution=128, resolution_rule="longer")
    assert prepared.visible_latents.shape[2:] == (32, 92) and direct.visible_latents.shape[2:] == (16, 32)
    assert pipe.generate(prepared, settings).levels.shape == (64, 128)
    assert pipe.generate(prepared, settings).image.tobytes() == pipe.generate(direct, settings).image.tobytes()
    assert pipe.generate(direct).levels.shape == (64, 128)


# Captions


def test_a_sampled_caption_follows_the_seed(pipe, photo):
    def caption(**how):
        return pipe.prepare(photo, segmentation=False, **how).caption

    sampled = [caption(captioning="sampled", caption_seed=seed) for seed in range(4)]
    assert len(set(sampled)) > 1 and caption(captioning="sampled", caption_seed=2) == sampled[2]
    assert caption() == caption(captioning="greedy", caption_seed=3)
    with pytest.raises(ValueError, match="captioning must be one of greedy, sampled, got 'beam'"):
        caption(captioning="beam")


def test_all_of_a_call_follows_the_settings(pipe, photo):
    settings = pipe.default_settings.replace(steps=1, seed=2, captioning="sampled")
    expected = pipe.prepare(photo, captioning="sampled", caption_seed=2).caption
    assert pipe(photo, settings).caption == expected
    assert settings.preparation["caption_seed"] == 2 and settings.replace(seed=None).preparation["caption_seed"] == 0


def test_a_session_samples_anew_only_where_it_must(pipe, photo, monkeypatch):
    calls = []
    monkeypatch.setattr(pipe, "prepare", lambda *a, p=pipe.prepare, **k: calls.append(k) or p(*a, **k))
    session, settings = Session(), pipe.default_settings.replace(captioning="sampled", seed=1)
    first = session.understand(pipe, photo, **settings.preparation)
    assert session.understand(pipe, photo, **settings.preparation) is first
    other = settings.replace(seed=2).preparation
    assert session.condition(pipe, photo, first.caption, True, **other) is first  # given, so not asked for again
    assert len(calls) == 1
    assert session.understand(pipe, photo, **other) is not first
    assert [call["caption_seed"] for call in calls] == [1, 2]


# Maps


def test_the_map_is_drawn_as_asked(pipe, photo):
    def drawn(**how):
        return pipe.prepare(photo, caption="", **how).segmentation.tobytes()

    assert drawn() == drawn(map_style="auto") == drawn(map_style="regions") != drawn(map_style="union")
    assert pipe(photo, pipe.default_settings.replace(steps=1, map_style="union")).segmentation.tobytes() == drawn(
        map_style="union"
    )
    with pytest.raises(ValueError, match="map_style must be one of auto, union, regions, got 'stripes'"):
        drawn(map_style="stripes")


def test_a_session_has_a_map_of_each_style(pipe, photo):
    session, settings = Session(), pipe.default_settings.replace(captioning="sampled", seed=1)
    first = session.understand(pipe, photo, **settings.preparation)
    union = settings.replace(map_style="union", seed=2).preparation
    for caption in (first.caption, "another"):
        other = session.condition(pipe, photo, caption, True, **union)
        assert other.caption == caption and other.segmentation.tobytes() != first.segmentation.tobytes()
        assert session.condition(pipe, photo, caption, True, **union) is other
    again = session.condition(pipe, photo, "another", True, **settings.preparation)
    assert again.segmentation.tobytes() == first.segmentation.tobytes()


# All together


def test_preset_sets_what_the_released_code_does():
    settings = GenerationSettings().replace(**PRESETS["paper-code"])
    assert (settings.branch_order, settings.resolution_rule, settings.captioning) == ("svt", "longer", "sampled")
    assert (settings.map_style, GenerationSettings().map_style) == ("union", "auto")
    assert (settings.steps, settings.sampler, settings.resolution) == (100, "euler_ancestral", 512)
    default = GenerationSettings()
    assert (default.branch_order, default.resolution_rule, default.captioning) == ("vst", "shorter", "greedy")


def test_defaults_of_older_bundles_still_load(bundle_folder, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(bundle_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("branch_order", "resolution_rule", "captioning", "map_style"):
        del index["defaults"][name]
    (folder / "model_index.json").write_text(json.dumps(index))
    settings = BundleFacts.read(folder).defaults
    assert settings == DiffV2IRPipeline.from_pretrained(folder).default_settings
    assert settings.branch_order == "vst" and settings.steps == 4


def test_command_line_and_page_offer_them(pipe, bundle_folder):
    import gradio as gr

    options = ["translate", "x", "--out", "y", "--preset", "paper-code", "--captioning", "greedy"]
    settings = settings_from(build_parser().parse_args(options), pipe)
    assert (settings.branch_order, settings.captioning) == ("svt", "greedy")
    controls = Controls(BundleFacts.read(bundle_folder))
    with gr.Blocks():
        controls.build()
    shown = controls.show(settings)
    data = {name: shown.get(component) for name, component in controls.fields.items()}
    assert controls.read({**data, "seed": 1, "style": "general"}) == settings.replace(seed=1)
    chosen = dict(zip(controls.fields, controls._apply_preset("paper-code"), strict=True))
    back = dict(zip(controls.fields, controls._apply_preset("bundle"), strict=True))
    assert chosen["branch_order"] == "svt" and back["branch_order"] == "vst" and back["resolution"] == 64
