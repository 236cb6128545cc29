"""The four samplers walk one schedule and end at what the model predicts."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffv2ir.samplers import build_scheduler, check_schedule, step
from diffv2ir.settings import SAMPLERS

COMMON = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCHEDULES = {
    "zero-snr v": dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "stable diffusion": dict(prediction_type="epsilon", timestep_spacing="leading", steps_offset=1),
    "k-diffusion": dict(prediction_type="epsilon", timestep_spacing="linspace"),
}


def config_of(name):
    return dict(DDPMScheduler(**COMMON, clip_sample=False, **SCHEDULES[name]).config)


@pytest.fixture(params=SCHEDULES)
def config(request):
    return config_of(request.param)


def perfect_prediction(config, x0, sample, timestep):
    """What a model that knows x0 predicts for x_t = alpha x0 + sigma epsilon."""
    kept = DDPMScheduler.from_config(config).alphas_cumprod.double().numpy()
    kept[-1] = max(kept[-1], 2**-24)  # where the signal ends, the samplers keep this much of it
    ratio = np.interp(float(timestep), np.arange(1000), np.sqrt((1 - kept) / kept))
    alpha = (1 + ratio**2) ** -0.5
    sigma = ratio * alpha
    sample, x0 = sample.double(), x0.double()
    epsilon = (sample - alpha * x0) / sigma
    return (epsilon if config["prediction_type"] == "epsilon" else alpha * epsilon - sigma * x0).float()


def sample_all(config, sampler, steps, x0, seeds):
    """Denoise with the perfect model: final latents and every estimate."""
    scheduler = build_scheduler(sampler, config, steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    latents, estimates = noise * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        prediction = perfect_prediction(config, x0, scheduler.scale_model_input(latents, timestep), timestep)
        latents, estimate = step(scheduler, prediction, timestep, latents, generators)
        estimates.append(estimate)
    return latents, estimates


@pytest.fixture(scope="module")
def x0():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)).clamp(-2, 2)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_known_picture_is_recovered(config, sampler, steps, x0):
    latents, estimates = sample_all(config, sampler, steps, x0, seeds=[3, 4])
    assert len(estimates) == steps
    for estimate in [*estimates, latents]:
        torch.testing.assert_close(estimate, x0, rtol=0, atol=5e-3)


def test_samplers_start_in_noise_and_end_without(config):
    for steps in (1, 4, 20, 61):
        for sampler in SAMPLERS:
            scheduler = build_scheduler(sampler, config, steps)
            assert float(scheduler.timesteps[0]) == 999
            assert float(scheduler.sigmas[-1]) == 0


@pytest.mark.parametrize("name", ["zero-snr v", "stable diffusion"])
def test_samplers_walk_the_same_schedule(name):
    """Those whose timesteps trail; "linspace" is each sampler's own way through the same noise levels."""
    for steps in (1, 4, 20, 61):
        schedulers = [build_scheduler(sampler, config_of(name), steps) for sampler in SAMPLERS]
        for scheduler in schedulers[1:]:
            assert scheduler.timesteps.tolist() == schedulers[0].timesteps.tolist()
            torch.testing.assert_close(scheduler.sigmas.float(), schedulers[0].sigmas.float())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps(sampler):
    config = config_of("zero-snr v")
    for steps in (*range(1, 20), 61, 103, 121, 250, 333, 499, 500):
        scheduler = build_scheduler(sampler, config, steps)
        timesteps = scheduler.timesteps.tolist()
        assert len(timesteps) == len(set(timesteps)) == steps and len(scheduler.sigmas) == steps + 1
        assert timesteps == sorted(timesteps, reverse=True) and min(timesteps) >= 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_61_steps_recover_the_picture(sampler, x0):
    """One of the numbers for which diffusers' schedule has a step too many."""
    latents, estimates = sample_all(config_of("zero-snr v"), sampler, 61, x0, seeds=[3, 4])
    assert len(estimates) == 61
    torch.testing.assert_close(latents, x0, rtol=0, atol=5e-3)


def imperfect(config, sampler, seeds, x0):
    """Latents along the way with a model that is wrong in a way that depends on its input."""
    scheduler = build_scheduler(sampler, config, 6)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents, timestep)
        latents, _ = step(scheduler, torch.tanh(sample) * 0.7, timestep, latents, generators)
    return latents


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_repeats_alone_and_in_a_batch(config, sampler, x0):
    both = imperfect(config, sampler, [11, 12], x0)
    assert torch.equal(both, imperfect(config, sampler, [11, 12], x0))
    assert torch.equal(both[:1], imperfect(config, sampler, [11], x0))
    assert torch.equal(both[1:], imperfect(config, sampler, [12], x0))
    assert not torch.equal(both[0], both[1])


def test_samplers_do_not_touch_the_global_generator(x0):
    before = torch.get_rng_state()
    sample_all(config_of("zero-snr v"), "euler_ancestral", 3, x0, [1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_samplers_differ(x0):
    config = config_of("zero-snr v")
    results = [imperfect(config, sampler, [11], x0) for sampler in SAMPLERS]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-3 for other in results[i + 1 :])


def test_refusals():
    config = config_of("zero-snr v")
    with pytest.raises(ValueError, match="sampler must be one of .*'heun'"):
        build_scheduler("heun", config, 4)
    for steps in (0, 501):
        with pytest.raises(ValueError, match=f"steps must be from 1 to 500 .*got {steps}"):
            build_scheduler("ddim", config, steps)
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon, v_prediction, got 'sample'"):
        check_schedule({"prediction_type": "sample"})
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        check_schedule({"prediction_type": "epsilon", "rescale_betas_zero_snr": True})
