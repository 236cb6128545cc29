"""The objective of the phases: dropout bands, noise levels, targets."""

import collections

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from diffv2ir.training.diffusion import (
    DROPPED_SUBSETS,
    DiffusionObjective,
    NoiseConfig,
    PromptEncoder,
    build_unet,
    draw_timestep,
    dropped_conditions,
)
from diffv2ir.training.loop import Draw


@given(st.floats(0, 1, exclude_max=True))
@example(0.12)
def test_dropout_bands_are_seven_of_two_percent(uniform):
    dropped = dropped_conditions(uniform)
    band = int(uniform / 0.02)
    assert dropped == (DROPPED_SUBSETS[band] if band < 7 else "")


def test_dropout_frequencies():
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(20_000, generator=generator).tolist()
    counts = collections.Counter(dropped_conditions(u) for u in uniforms)
    assert set(counts) == {"", "V", "S", "T", "VS", "VT", "ST", "VST"}
    assert all(0.016 < counts[subset] / 20_000 < 0.024 for subset in DROPPED_SUBSETS)
    assert dropped_conditions(0.0, band=0.0) == ""


def test_some_bands_can_be_wider():
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(20_000, generator=generator).tolist()
    extra = {"S": 0.1, "ST": 0.2}
    counts = collections.Counter(dropped_conditions(u, 0.02, extra) for u in uniforms)
    for subset in DROPPED_SUBSETS:
        assert abs(counts[subset] / 20_000 - 0.02 - extra.get(subset, 0)) < 0.01
    assert dropped_conditions(0.3, 0.0, {"VST": 0.31}) == "VST"
    assert dropped_conditions(0.32, 0.0, {"VST": 0.31}) == ""


def test_high_noise_share():
    generator = torch.Generator().manual_seed(0)
    config = NoiseConfig(high_noise_share=0.6, high_noise_from=600)
    drawn = torch.tensor([draw_timestep(config, 1000, generator) for _ in range(5000)])
    assert drawn.min() >= 0 and drawn.max() == 999
    assert abs((drawn >= 600).float().mean() - (0.6 + 0.4 * 0.4)) < 0.03


def test_last_step_share():
    generator = torch.Generator().manual_seed(0)
    config = NoiseConfig(last_step_share=0.5, high_noise_share=0.3, high_noise_from=600)
    drawn = torch.tensor([draw_timestep(config, 1000, generator) for _ in range(5000)])
    assert abs((drawn == 999).float().mean() - 0.5) < 0.03
    assert abs((drawn < 600).float().mean() - 0.2 * 0.6) < 0.03
    with pytest.raises(ValueError, match="shares of one whole"):
        NoiseConfig(last_step_share=0.6, high_noise_share=0.6)


@pytest.mark.parametrize(("levels", "expected"), [(None, 2), (1, 1), (0, 0), (3, 3)])
def test_attention_in_the_lowest_resolutions(levels, expected):
    unet = build_unet(
        (8, 16, 16), 1, 8, 2, attention_levels=levels, norm_num_groups=4, in_channels=4, out_channels=4, sample_size=8
    )
    down, up = (
        ["CrossAttn" in type(block).__name__ for block in blocks] for blocks in (unet.down_blocks, unet.up_blocks)
    )
    assert down == [False] * (3 - expected) + [True] * expected
    assert up == down[::-1]


def test_too_many_attention_levels_are_refused():
    with pytest.raises(ValueError, match="attention_levels must be from 0 to 2, got 3"):
        build_unet((8, 16), 1, 8, 2, attention_levels=3, norm_num_groups=4, in_channels=4, out_channels=4)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet((8, 16), 1, 8, 2, norm_num_groups=4, in_channels=12, out_channels=4, sample_size=8)


@pytest.fixture
def encoder(pipe, monkeypatch):
    """A `PromptEncoder`, and the sizes of the batches that its text encoder was given."""
    batches, forward = [], pipe.text_encoder.forward
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda tokens: (batches.append(len(tokens)), forward(tokens))[1])
    return PromptEncoder(pipe.tokenizer, pipe.text_encoder), batches


def test_prompts_are_encoded_once_and_on_a_cpu_alone(encoder):
    encode, batches = encoder
    embeddings = encode(["a car", "", "a car"])
    assert embeddings.dtype == torch.float32 and torch.equal(embeddings[0], embeddings[2])
    assert torch.equal(encode(["", "a car"]), embeddings[:2].flip(0)) and batches == [1, 1]
    ids = encode.tokenizer("a car", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(encode.text_encoder(ids).last_hidden_state[0], embeddings[0])


def test_on_an_accelerator_prompts_are_encoded_together_and_kept_in_half_precision(encoder, monkeypatch):
    encode, batches = encoder
    exact = encode(["a car", "a tree", ""])
    batches.clear()
    monkeypatch.setattr(PromptEncoder, "_on_accelerator", True)
    encode = PromptEncoder(encode.tokenizer, encode.text_encoder)
    embeddings = encode(["a car", "a tree", "a car", ""])
    assert batches == [3] and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings[[0, 1, 3]], exact, rtol=1e-3, atol=1e-3)
    encode(["a sky", "a car"])
    assert batches == [3, 1]
    assert {(kept.dtype, kept.untyped_storage().nbytes()) for kept in encode._known.values()} == {
        (torch.float16, 2 * exact[0].numel())
    }


def test_embeddings_are_kept_up_to_a_size(encoder):
    encode, batches = encoder
    one = encode(["a"]).nbytes
    encode.limit = 2 * one
    for prompt in ("b", "a", "c"):  # "b" is the one that was asked for longest ago
        encode([prompt])
    batches.clear()
    encode(["a", "c"])
    assert batches == [] and encode._size == 2 * one
    assert encode(["b", "d", "e"]).shape[0] == 3 and batches == [1, 1, 1] and len(encode._known) == 2


class OnePrompt:
    def __call__(self, prompts):
        return torch.ones(len(prompts), 3, 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_is_zero_for_the_exact_prediction_and_targets_are_scaled(prediction, monkeypatch):
    scheduler = DDPMScheduler(prediction_type=prediction, rescale_betas_zero_snr=prediction == "v_prediction")
    objective = DiffusionObjective(scheduler, OnePrompt(), 0.5, NoiseConfig())
    targets, conditions = torch.randn(3, 4, 8, 8), torch.randn(3, 8, 8, 8)
    draws = [Draw(position=i, epoch=0, index=i, seed=1) for i in range(3)]
    seen = {}

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, sample, timesteps, embeddings):
            noisy, given = sample[:, :4], sample[:, 4:]
            seen["conditions"] = given
            alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            latents = targets * 0.5
            if prediction == "epsilon":
                wanted = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
            else:
                noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
                wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
            return type("Output", (), {"sample": wanted})

    losses = objective(Oracle(), draws, targets, ["a", "b", "c"], conditions)
    assert losses["loss"] < 1e-6
    assert torch.equal(seen["conditions"], conditions)


def test_noise_belongs_to_the_sample_not_to_the_batch(unet):
    scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    objective = DiffusionObjective(scheduler, OnePrompt(), 1.0, NoiseConfig())
    targets, conditions = torch.randn(4, 4, 8, 8), torch.randn(4, 8, 8, 8)
    draws = [Draw(position=i, epoch=0, index=i, seed=1) for i in range(4)]
    with torch.no_grad():
        whole = objective(unet, draws, targets, ["a"] * 4, conditions)["loss"]
        each = [
            objective(unet, [d], targets[i : i + 1], ["a"], conditions[i : i + 1])["loss"] for i, d in enumerate(draws)
        ]
    torch.testing.assert_close(whole, torch.stack(each).mean(), rtol=1e-4, atol=1e-5)


def test_min_snr_weights_follow_the_formula():
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    objective = DiffusionObjective(scheduler, OnePrompt(), 1.0, NoiseConfig(snr_gamma=5.0))
    timesteps = torch.tensor([0, 500, 999])
    alphas = scheduler.alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(objective._weights(timesteps), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    to_noise = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="snr_gamma gives the last timestep no weight"):
        DiffusionObjective(to_noise, OnePrompt(), 1.0, NoiseConfig(snr_gamma=5.0))
