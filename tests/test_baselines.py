"""The baselines at tiny sizes: what their networks are, that they learn, and that a stopped training loses nothing."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from make_data import make_manifest_dataset, make_start_folder
from PIL import ImageStat
from torch import nn

from benchmarks.baselines import ip2p
from benchmarks.baselines.command import main
from benchmarks.baselines.networks import PatchDiscriminator, RegressionUNet, UnetGenerator
from benchmarks.baselines.pairs import TrainingView, load_view, training_pairs
from benchmarks.baselines.pictures import camera_levels, constant_pictures, network_pictures, read_scenes
from benchmarks.baselines.pix2pix import BETAS, Pix2Pix, learning_rate
from benchmarks.baselines.regression import Regression
from benchmarks.baselines.training import Budget, TrainingConfig, check_finished, finished, load_weights, train
from diffv2ir import bundle
from diffv2ir.data import read_examples, split_validation
from diffv2ir.evaluate import central_square
from diffv2ir.imaging import open_image
from diffv2ir.training import phases
from diffv2ir.training.diffusion import DiffusionObjective
from diffv2ir.training.loop import TrainingError

VIEW = TrainingView(resize=40, crop=32)
MINI = {"pix2pix": lambda: Pix2Pix(width=4, blocks=5), "regression": lambda: Regression(widths=(8, 8, 16))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_manifest_dataset(tmp_path_factory.mktemp("data") / "set", pairs=8, infrared=1)


@pytest.fixture(scope="module")
def examples(data):
    return training_pairs(data)


def config(steps=None, minutes=None, **changes):
    return TrainingConfig(Budget(steps, minutes), VIEW, log_every=1, **changes)


# Networks


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_are_those_of_the_published_networks():
    """54.414 and 2.769 million for three output channels, as the authors' code prints them."""
    with torch.device("meta"):
        assert round(count(UnetGenerator(3, 3)) / 1e6, 3) == 54.414
        assert round(count(PatchDiscriminator(6)) / 1e6, 3) == 2.769
        assert count(UnetGenerator()) == 54_409_857 and count(PatchDiscriminator()) == 2_766_657


def test_a_patch_has_70_pixels():
    discriminator = PatchDiscriminator(4, width=2)
    for number, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.BatchNorm2d):  # its statistics see the whole picture
            discriminator.layers[number] = nn.Identity()
    images = torch.rand(1, 4, 128, 128, requires_grad=True)
    logits = discriminator(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    seen = images.grad[0].abs().sum(0) > 0
    for axis in (0, 1):
        places = seen.any(axis).nonzero()
        assert places[-1] - places[0] + 1 == 70


def test_the_generator_is_a_u_of_eight_blocks_with_three_dropouts():
    generator = UnetGenerator(width=2)
    middle = []
    generator.down[-1].register_forward_hook(lambda module, inputs, output: middle.append(output.shape))
    made = generator(torch.rand(1, 3, 256, 256) * 2 - 1)
    assert made.shape == (1, 1, 256, 256) and made.abs().max() <= 1
    assert middle == [(1, 16, 1, 1)]
    dropouts = [sum(isinstance(layer, nn.Dropout) for layer in block) for block in generator.up]
    assert dropouts == [0, 1, 1, 1, 0, 0, 0, 0]
    assert all(block[-1].p == 0.5 for block in generator.up[1:4])


def test_the_discriminator_answers_for_30_by_30_patches():
    assert PatchDiscriminator(4, width=2)(torch.rand(1, 4, 256, 256)).shape == (1, 1, 30, 30)


def test_the_regression_network_keeps_the_size():
    made = RegressionUNet(widths=(8, 8, 16))(torch.rand(2, 3, 32, 48))
    assert made.shape == (2, 1, 32, 48) and made.abs().max() <= 1


# What is learnt


def test_pix2pix_is_trained_as_published():
    learner = MINI["pix2pix"]()
    assert learner.batch_size == 1
    assert [learning_rate(progress) for progress in (0, 0.5, 0.75, 1)] == pytest.approx([2e-4, 2e-4, 1e-4, 0])
    visible, infrared = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32)
    losses = learner.step(visible, infrared, 0.75)
    assert losses["loss"] == pytest.approx(losses["fooling"] + 100 * losses["l1"], rel=1e-5)
    for optimizer in learner.optimizers:
        assert optimizer.defaults["betas"] == BETAS == (0.5, 0.999)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize(("name", "key", "steps"), [("pix2pix", "l1", 60), ("regression", "loss", 40)])
def test_the_loss_on_one_batch_falls(examples, name, key, steps):
    learner = MINI[name]()
    visible, infrared = (images[None] for images in load_view(examples[0], VIEW, torch.Generator().manual_seed(0)))
    losses = [learner.step(visible, infrared, 0)[key] for _ in range(steps)]
    assert np.mean(losses[-5:]) < 0.85 * losses[0]


def test_both_networks_of_pix2pix_learn():
    learner = MINI["pix2pix"]()
    before = [
        parameter.clone()
        for network in (learner.generator, learner.discriminator)
        for parameter in network.parameters()
    ]
    learner.step(torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32), 0)
    after = [*learner.generator.parameters(), *learner.discriminator.parameters()]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


# The training that they share


class Stop(Exception):
    """The power goes off."""


def clock_that_stops(calls):
    """A clock that ends the training when it is read once too often."""

    ticks = itertools.count()

    def read():
        if (now := next(ticks)) == calls:
            raise Stop
        return float(now)

    return read


@pytest.mark.parametrize("name", MINI)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(name, examples, tmp_path):
    whole = train(MINI[name](), examples, tmp_path / "whole", config(steps=5), clock=lambda: 0.0)
    short = config(steps=5, checkpoint_seconds=0)
    with pytest.raises(Stop):
        train(MINI[name](), examples, tmp_path / "parts", short, clock=clock_that_stops(9))
    assert 0 < len(torch.load(tmp_path / "parts" / "checkpoint" / "weights.pt", weights_only=True))
    assert not (tmp_path / "parts" / "result").exists()
    torch.manual_seed(99)
    parts = train(MINI[name](), examples, tmp_path / "parts", short, clock=lambda: 0.0)
    one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one)
    histories = [[row["loss"] for row in finished(folder.parent)["history"]] for folder in (whole, parts)]
    assert histories[0] == histories[1] and len(histories[0]) == 5


def test_minutes_count_training_alone(examples, tmp_path, monkeypatch):
    now = [0.0]

    class Slow(Regression):
        def step(self, visible, infrared, progress):
            if now[0] == 1020:
                now[0] = 5000.0
                raise Stop
            now[0] += 10
            return {"loss": progress}

    write = torch.save
    monkeypatch.setattr(torch, "save", lambda *parts: (write(*parts), now.__setitem__(0, now[0] + 1000)))
    options = config(minutes=1, checkpoint_seconds=20)
    for _ in range(2):
        try:
            train(Slow(widths=(8, 8)), examples, tmp_path, options, clock=lambda: now[0])
        except Stop:
            continue
    record = finished(tmp_path)
    assert (record["step"], record["seconds"]) == (6, 60)
    assert [row["loss"] for row in record["history"]] == pytest.approx([n / 6 for n in range(6)])


def test_a_budget_is_one_of_two():
    for given in ({}, {"steps": 1, "minutes": 1.0}):
        with pytest.raises(ValueError, match="either steps or minutes"):
            Budget(**given)
    with pytest.raises(ValueError, match="minutes must be more than 0, got 0"):
        Budget(minutes=0)


def test_another_training_is_not_continued(examples, tmp_path):
    train(MINI["regression"](), examples, tmp_path, config(steps=1))
    assert train(MINI["regression"](), examples, tmp_path, config(steps=1)) == tmp_path / "result"
    with pytest.raises(TrainingError, match="seed 0, not 1"):
        train(MINI["regression"](), examples, tmp_path, config(steps=1, seed=1))
    with pytest.raises(TrainingError, match="other examples"):
        train(MINI["regression"](), examples[1:], tmp_path, config(steps=1))
    with pytest.raises(TrainingError, match="other examples"):  # of the same names
        train(MINI["regression"](), [dataclasses.replace(e, visible=e.infrared) for e in examples], tmp_path, config(1))
    with pytest.raises(TrainingError, match="'regression', not 'pix2pix'"):
        train(MINI["pix2pix"](), examples, tmp_path, config(steps=1))
    with pytest.raises(TrainingError, match="no finished training"):
        finished(tmp_path / "elsewhere")


def test_a_training_of_before_is_known_by_the_names_of_its_pairs(examples, tmp_path):
    train(MINI["regression"](), examples, tmp_path, config(steps=1))
    path = tmp_path / "result" / "training.json"
    record = json.loads(path.read_text())
    del record["settings"]["pictures"]
    path.write_text(json.dumps(record))
    assert train(MINI["regression"](), examples, tmp_path, config(steps=1)) == tmp_path / "result"
    check_finished(tmp_path, examples)
    with pytest.raises(TrainingError, match="trained for 1 steps, not for 2 minutes"):
        check_finished(tmp_path, examples, 2.0)
    with pytest.raises(TrainingError, match="other pairs"):
        check_finished(tmp_path, examples[1:])


def test_a_loss_that_is_not_finite_ends_the_training(examples, tmp_path):
    learner = MINI["regression"]()
    learner.step = lambda *_: {"loss": float("nan")}
    with pytest.raises(TrainingError, match="step 1 gave .*nan"):
        train(learner, examples, tmp_path, config(steps=2))


def test_the_command_trains_and_names_what_is_wrong(data, tmp_path, capsys):
    class OneByOne(Regression):
        batch_size = 1

    arguments = ["--data", str(data), "--run", str(tmp_path / "run"), "--steps", "2"]
    assert main(lambda device, seed: OneByOne(device, seed, (8, 8)), "", arguments) == 0
    assert "2 images in" in capsys.readouterr().out
    assert main(Regression, "", ["--data", str(tmp_path), *arguments[2:]]) == 1
    assert main(Regression, "", [*arguments, "--minutes", "1"]) == 1
    errors = capsys.readouterr().err
    assert "is not a dataset" in errors and "either steps or minutes" in errors


# Data


def test_every_method_learns_from_the_pairs_that_are_not_held_out(data):
    pairs = read_examples(data, "train", ["pairs"])
    kept, held_out = split_validation(pairs)
    assert training_pairs(data) == kept and held_out


def test_a_view_cuts_both_images_alike(examples):
    views = [load_view(examples[0], VIEW, torch.Generator().manual_seed(seed)) for seed in range(8)]
    for visible, infrared in views:
        assert visible.shape == (3, 32, 32) and infrared.shape == (1, 32, 32)
        gray = (visible * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        assert (infrared[0] + gray).abs().max() < 0.05  # the miniature infrared is the inverted brightness
    assert len({float(infrared.mean()) for _, infrared in views}) == 8
    # Brightness rises to the right in the scene: it falls in a mirrored view.
    assert {bool(visible[0, :, -4:].mean() > visible[0, :, :4].mean()) for visible, _ in views} == {True, False}
    with pytest.raises(ValueError, match="crop must be at least 1 and at most resize"):
        TrainingView(resize=8, crop=9)


# Pictures


def test_constants_are_the_means_of_training(data, examples):
    def level(example):
        return ImageStat.Stat(central_square(open_image(example.infrared).convert("L"))).mean[0]

    levels, overall = camera_levels(examples)
    assert overall == pytest.approx(np.mean([level(example) for example in examples]))
    for camera in {example.source for example in examples}:
        own = [level(example) for example in examples if example.source == camera]
        assert levels[camera] == pytest.approx(np.mean(own))
    (scene,) = read_scenes(data, "test")
    new = dataclasses.replace(scene, example=dataclasses.replace(scene.example, source="never trained on"))
    known, unknown = constant_pictures([scene, new], examples)
    assert known.getcolors() == [(256 * 256, round(levels[scene.example.source]))]
    assert unknown.getcolors() == [(256 * 256, round(overall))]


def test_network_pictures_are_the_same_every_time(data):
    scenes = read_scenes(data, "train", 2)
    torch.manual_seed(0)
    network = UnetGenerator(width=4)
    first, second = network_pictures(scenes, network, "cpu")
    assert first.mode == "L" and first.size == (256, 256) and first != second
    torch.manual_seed(5)
    assert list(network_pictures(scenes[1:], network, "cpu")) == [second]  # dropout is the scene's own
    nn.init.constant_(network.up[-1][1].weight, 0)
    nn.init.constant_(network.up[-1][1].bias, 0.5)
    (plain,) = network_pictures(scenes[:1], network, "cpu")
    assert plain.getcolors() == [(256 * 256, round(255 * (np.tanh(0.5) + 1) / 2))]


def test_the_averaged_weights_of_regression_are_kept(examples, tmp_path):
    learner = MINI["regression"]()
    train(learner, examples, tmp_path, config(steps=2))
    loaded = load_weights(tmp_path, RegressionUNet(**finished(tmp_path)["options"]))
    for kept, average in zip(loaded.parameters(), learner.average.shadow_params, strict=True):
        assert torch.equal(kept, average)


# InstructPix2Pix's way

CONFIG = """
phase: "2"
loop: {steps: 4, batch_size: 2, warmup_steps: 1, ema_decay: 0.5}
view: {resize: 18, crop: 16, variants: 1}
own_captions: true
dropout: 0
defaults: {steps: 1, sampler: ddim, resolution: 64}
"""


def stages_of(folder):
    return folder / "phase2.yaml", folder / "real.yaml"


@pytest.fixture(scope="module")
def ip2p_bundle(bundle_folder, data, tmp_path_factory):
    """A bundle trained without caption and map, its first stage by half, and what its objective was given."""
    folder, seen = tmp_path_factory.mktemp("ip2p"), []
    (folder / "phase2.yaml").write_text(CONFIG)
    (folder / "real.yaml").write_text(CONFIG.replace("steps: 4", "steps: 3", 1))

    class Recording(DiffusionObjective):
        def __call__(self, unet, draws, targets, prompts, conditions, **losses):
            seen.append((prompts, conditions))
            return super().__call__(unet, draws, targets, prompts, conditions, **losses)

    start = make_start_folder(bundle_folder, folder / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "DiffusionObjective", Recording)
        patch.setattr(phases.SamSegmenter, "from_pretrained", None)  # neither is ever asked
        patch.setattr(phases.BlipForConditionalGeneration, "from_pretrained", None)
        result = ip2p.train_ip2p(data, start, bundle_folder, folder / "run", 0.5, stages_of(folder))
    return result, seen


def test_ip2p_sees_the_photo_and_one_prompt(ip2p_bundle):
    result, seen = ip2p_bundle
    bundle.check(result)
    assert len(seen) == 2 + 3  # half of four steps, then all of the next stage
    for prompts, conditions in seen:
        assert prompts == [ip2p.PROMPT] * 2
        visible, segmentation = conditions.chunk(2, dim=1)
        assert visible.abs().sum() > 0 and segmentation.abs().sum() == 0


def test_ip2p_learns_from_what_our_stages_learn_from(tmp_path):
    data = make_manifest_dataset(tmp_path / "set", pairs=8, infrared=1)
    manifest = data / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"pairs"', '"crops"', 2))
    first, last = stages_of(tmp_path)
    first.write_text(CONFIG + "kinds: [pairs]\n")
    last.write_text(CONFIG + "kinds: [pairs]\n")
    pairs = training_pairs(data)
    assert ip2p.training_examples(data, (first, last)) == pairs
    last.write_text(CONFIG + "kinds: [pairs, crops]\n")
    kinds = [example.kind for example in ip2p.training_examples(data, (first, last))]
    assert 0 < kinds.count("crops") == len(kinds) - len(pairs)


def test_ip2p_of_other_pairs_or_of_another_share_is_refused(ip2p_bundle, data, examples, bundle_folder):
    run = ip2p_bundle[0].parent
    options = {"configs": stages_of(run.parent)}
    took = ip2p.training_record(run, **options)
    assert (took["steps"], took["batch_size"]) == (5, 2) and took["seconds"] > 0
    assert ip2p.training_record(run / "phase2", **options) is None  # a part of it
    places = (data, run.parent / "start", bundle_folder, run)
    assert ip2p.train_ip2p(*places, 0.5, **options) == ip2p_bundle[0]
    with pytest.raises(TrainingError, match="trained for 2 steps, and a share of 1 is 4"):
        ip2p.train_ip2p(*places, **options)
    with pytest.raises(TrainingError, match="trained on other pairs"):
        ip2p.check_training(run, examples[1:], **options)
    another = (run.parent / "another.yaml", options["configs"][1])
    another[0].write_text(CONFIG)
    with pytest.raises(TrainingError, match="without the stage another of ours"):
        ip2p.check_training(run, examples, configs=another)


def test_ip2p_is_used_as_it_was_trained(pipe, photo, monkeypatch):
    given = []
    generate = pipe.generate
    monkeypatch.setattr(type(pipe), "generate", lambda self, *parts: (given.append(parts), generate(*parts))[1])
    settings = pipe.default_settings.replace(steps=1)
    (picture,) = ip2p.translate(pipe, [photo], settings, [7])
    ((conditioning, used),) = given
    assert picture.size == photo.size and picture.mode == "L" and used.seed == 7
    assert conditioning.prompt == "turn the visible image into infrared" and conditioning.segmentation is None
    assert torch.equal(conditioning.prompt_embeds, pipe.encode_text(conditioning.prompt))
    assert conditioning.segmentation_latents.abs().sum() == 0 and conditioning.visible_latents.abs().sum() > 0


def test_only_phases_with_these_conditions_can_leave_them_out():
    stage = phases.LoopConfig(steps=1)
    for left_out in ({"without_map": True}, {"fixed_prompt": "a prompt"}):
        with pytest.raises(ValueError, match="for phases 2 and 3"):
            phases.PhaseConfig(phase="base", loop=stage, **left_out)
        phases.PhaseConfig(phase="2", loop=stage, **left_out)


def test_a_share_is_a_part(data, tmp_path):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        ip2p.train_ip2p(data, tmp_path, tmp_path, tmp_path, share=0)
    whole = phases.PhaseConfig("2", phases.LoopConfig(steps=100), view=phases.ViewConfig(variants=20))
    part = ip2p.without_conditions(whole, 0.15)
    assert (part.loop.steps, part.view.variants) == (15, 3)  # each view as often as in the whole
    assert ip2p.without_conditions(whole, 0.001).view.variants == 1
