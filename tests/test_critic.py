"""The adversary of the denoised estimate: who learns from which loss, and what it judges."""

import pytest
import torch
from diffusers import DDPMScheduler

from diffv2ir.training.critic import CriticSettings, PatchCritic, UNetWithCritic
from diffv2ir.training.diffusion import DiffusionObjective, NoiseConfig, build_unet
from diffv2ir.training.loop import Draw
from diffv2ir.training.phases import PhaseConfig

ZERO_SNR = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)


class OnePrompt:
    def __call__(self, prompts):
        return torch.ones(len(prompts), 3, 8)


def judged_unet(**settings) -> UNetWithCritic:
    torch.manual_seed(0)
    unet = build_unet((8, 16), 1, 8, 2, norm_num_groups=4, in_channels=12, out_channels=4, sample_size=8)
    return UNetWithCritic(unet, CriticSettings(width=8, **settings))


def judge(model: UNetWithCritic, timesteps: list[int]):
    generator = torch.Generator().manual_seed(1)
    count = len(timesteps)
    sample, latents = (torch.randn(count, channels, 8, 8, generator=generator) for channels in (12, 4))
    estimate = (torch.zeros(count, 1, 1, 1), -torch.ones(count, 1, 1, 1))
    return model(sample, torch.tensor(timesteps), torch.ones(count, 3, 8), latents, estimate)


def moved(module: torch.nn.Module) -> bool:
    return any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_the_unets_loss_moves_the_unet_alone_and_the_critics_loss_the_critic_alone(features):
    model = judged_unet(weight=1.0, features=features)
    _, fooling, judging = judge(model, [999, 999])
    fooling.sum().backward(retain_graph=True)
    assert moved(model.unet) and not moved(model.critic)
    model.zero_grad(set_to_none=True)
    judging.sum().backward()
    assert moved(model.critic) and not moved(model.unet)


def test_only_high_noise_is_judged():
    model = judged_unet(weight=1.0, from_timestep=600)
    _, fooling, judging = judge(model, [599, 600])
    assert fooling[0] == 0 and judging[0] == 0
    assert fooling[1] != 0 and judging[1] > 0


def test_a_score_covers_a_patch_of_18_latents():
    critic = PatchCritic(4, 8)
    for stage in critic.stages[1:]:
        stage[1] = torch.nn.Identity()  # GroupNorm looks at the whole picture
    target = torch.zeros(1, 4, 64, 64, requires_grad=True)
    score, features = critic(target, torch.zeros_like(target))
    assert score.shape == (1, 1, 16, 16) and len(features) == 3
    score[0, 0, 8, 8].backward()
    rows = target.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 26  # 18 by the stages, 8 more by the last layer


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_estimate_is_the_clean_latent_where_the_prediction_is_right(prediction):
    scheduler = DDPMScheduler(prediction_type=prediction, rescale_betas_zero_snr=prediction == "v_prediction")
    objective = DiffusionObjective(scheduler, OnePrompt(), 1.0, NoiseConfig())
    timesteps = torch.tensor([0, 500, 999] if prediction == "v_prediction" else [0, 500, 900])
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    a, b = objective._to_estimate(timesteps)
    exact = objective._wanted(latents, noise, timesteps)
    torch.testing.assert_close(a * noisy + b * exact, latents, rtol=1e-3, atol=1e-3)


def test_the_objective_adds_what_the_critic_says():
    noise = NoiseConfig(last_step_share=1.0)
    targets, conditions = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8)
    draws = [Draw(position=i, epoch=0, index=i, seed=1) for i in range(2)]
    model = judged_unet(weight=1.0)
    objective = DiffusionObjective(ZERO_SNR, OnePrompt(), 1.0, noise)
    plain = objective(model.unet, draws, targets, ["a", "b"], conditions)
    judged = objective(model, draws, targets, ["a", "b"], conditions)
    assert set(judged) == {*plain, "adversarial", "critic"}
    expected = plain["loss"] + judged["adversarial"] + judged["critic"]
    torch.testing.assert_close(judged["loss"], expected)


def test_a_phase_without_photos_refuses_a_critic():
    with pytest.raises(ValueError, match="phase base has no photo"):
        PhaseConfig(phase="base", loop=None, critic=CriticSettings())
