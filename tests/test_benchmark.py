"""The benchmark's two sides draw the same picture; figures are only checked for being there."""

import argparse
import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from make_bundle import EPSILON, SCHEDULE

from benchmarks import by_scene, flops, inference, level_error, literal, optimisations, training
from benchmarks.choose_defaults import few_of_each_scene
from diffv2ir import compilation, imaging
from diffv2ir.data import Example
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.shapes import SHAPES

CARD = Path(__file__).parents[1] / "train" / "configs" / "sd15" / "12gb" / "phase2.yaml"
_BLOCKS = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
              up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))  # fmt: skip
_SMALL = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
MINI = {
    "unet": dict(in_channels=12, block_out_channels=(32, 64), cross_attention_dim=32, layers_per_block=1, **_BLOCKS),
    "vae": dict(block_out_channels=(32, 32), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2),
    "text_encoder": dict(vocab_size=200, **_SMALL),
    "captioner": dict(
        text_config=dict(vocab_size=40, encoder_hidden_size=32, bos_token_id=2, eos_token_id=3, sep_token_id=3,
                         pad_token_id=0, **_SMALL),
        vision_config=dict(image_size=32, patch_size=16, **_SMALL),
    ),
    "segmenter": dict(image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,), window_size=2,
                      prompt_dim=16, points_per_side=2),
}  # fmt: skip


@pytest.fixture(params=["epsilon", "v_prediction"])
def predicting(request, pipe):
    if request.param == "v_prediction":
        return pipe
    parts = {**pipe.components, "scheduler": DDPMScheduler(**SCHEDULE, **EPSILON)}
    return DiffV2IRPipeline(**parts, defaults=pipe.config.defaults)


@pytest.mark.parametrize("scales", [(1.5, 1.5, 7.5), (0.5, 2.0, 3.0)])
def test_the_released_loop_draws_our_picture(predicting, conditioning, scales):
    settings = predicting.default_settings.replace(
        sampler="euler_ancestral", branch_order="svt", steps=5, seed=3,
        **dict(zip(("visible_scale", "segmentation_scale", "text_scale"), scales, strict=True)),
    )  # fmt: skip
    ours = predicting.generate(conditioning, settings)
    gray = imaging.to_gray(predicting._decode_pixels(literal.sample(predicting, conditioning, settings)))[0]
    np.testing.assert_allclose(np.asarray(gray), ours.levels * 255, atol=0.6)  # rounded to whole levels


def test_the_table_and_the_json(bundle_folder, photo_file, tmp_path, capsys):
    path = tmp_path / "figures.json"
    arguments = ["--bundle", str(bundle_folder), "--device", "cpu", "--photo", str(photo_file), "--steps", "3"]
    assert inference.main([*arguments, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert (report["ours"]["evaluations"], report["literal"]["evaluations"]) == (3 * 3, 3 * 4)
    assert report["difference"]["max"] <= 1
    assert report["settings"]["sampler"] == "euler_ancestral" and report["device"].startswith("cpu")
    for side in ("ours", "literal"):
        assert set(report[side]["seconds"]) == set(inference.STAGES)
        assert all(len(times) == 1 and times[0] >= 0 for times in report[side]["seconds"].values())
    printed = capsys.readouterr().out
    assert "| per photo | ours | literal |" in printed and "| UNet evaluations | 9 | 12 |" in printed
    assert report["taken_over"] == ["caption", "segmentation"]
    lines = dict(line.split(", s | ", 1) for line in printed.splitlines() if ", s | " in line)
    assert [name for name, cells in lines.items() if "(" in cells] == ["| caption", "| segmentation"]


def test_both_peaks_are_of_drawing_alone(pipe, photo, monkeypatch):
    doing = []

    @contextlib.contextmanager
    def measured(pipe, measured=inference.measured):
        doing.append("measure")
        with measured(pipe) as run:
            yield run
        doing.append("stop")

    monkeypatch.setattr(inference, "measured", measured)
    monkeypatch.setattr(pipe, "prepare", lambda *a, p=pipe.prepare, **k: doing.append("prepare") or p(*a, **k))
    conditionings, settings = [], pipe.default_settings.replace(steps=1, seed=1, sampler="euler_ancestral")
    inference.run_ours(pipe, [photo], conditionings, settings)
    inference.run_literal(pipe, [photo], conditionings, settings)
    assert doing == ["prepare", "measure", "stop"] * 2


def test_what_cannot_be_measured_is_one_line(bundle_folder, tmp_path, capsys):
    assert inference.main(["--bundle", str(tmp_path / "none")]) == 2
    assert inference.main(["--bundle", str(bundle_folder), "--photo", str(tmp_path / "none.png")]) == 2
    assert inference.main(["--bundle", str(bundle_folder), "--steps", "0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    lines = [line for line in errors if line.startswith("benchmarks/inference.py: ")]
    assert [next(word for word in ("no such folder", "no such file", "steps") if word in line) for line in lines] == [
        "no such folder", "no such file", "steps",
    ]  # fmt: skip


def test_random_weights_have_the_true_shape():
    """859.5 million parameters of Stable Diffusion 1.5's UNet, and 8 input channels more."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SHAPES["sd15"]["unet"])
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964 + 8 * 320 * 9


def test_random_weights_are_measured(monkeypatch, photo_file, capsys):
    monkeypatch.setitem(SHAPES, "mini", MINI)
    flags = ["--random", "mini", "--device", "cpu", "--steps", "2", "--resolution", "64", "--photo", str(photo_file)]
    assert inference.main([*flags, "--peer", "none"]) == 0
    printed = capsys.readouterr().out
    assert "mini on cpu" in printed and "| per photo | ours |" in printed and "Difference" not in printed


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [  # cached latents are rounded to float16; with the configuration, the autoencoder is in bfloat16
        (["--batch", "2", "--gradient-checkpointing"], 2e-3),
        (["--config", str(CARD), "--batch", "4", "--micro-batch", "2", "--optimizer", "adamw"], 2e-2),
    ],
    ids=["options", "config"],
)
def test_both_training_loops_have_the_same_losses(monkeypatch, tmp_path, capsys, settings, tolerance):
    monkeypatch.setitem(SHAPES, "mini", MINI)
    path = tmp_path / "figures.json"
    arguments = ["--random", "mini", "--size", "16", "--steps", "2", "--mixed-precision", "no", *settings]
    assert training.main([*arguments, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["gradient_checkpointing"]
    ours, plain = (report[side]["losses"] for side in ("ours", "plain"))
    assert len(ours) == 4 and len(set(ours)) == 4
    assert ours == pytest.approx(plain, rel=tolerance)
    assert report["matrix_flops_per_second"] > 0 and report["device"].startswith("cpu")
    printed = capsys.readouterr().out
    assert "| training | ours | plain |" in printed and "Largest difference of the losses over 4 steps" in printed


def test_settings_of_a_training_are_those_that_are_measured(capsys):
    def read(*arguments):
        return training.parse(training.build_parser(), arguments)

    options = read("--config", str(CARD), "--micro-batch", "2")
    assert (options.size, options.batch, options.micro_batch, options.optimizer) == (256, 256, 2, "adamw8bit")
    assert (options.ema_device, options.frozen_dtype, options.mixed_precision) == ("cpu", "bf16", "fp16")
    assert options.gradient_checkpointing and read().frozen_dtype == "fp16" and not read().gradient_checkpointing
    with pytest.raises(SystemExit) as ended:
        read("--config", str(CARD.with_name("phase1.yaml")))
    assert ended.value.code == 2 and "of all weights, of phase 2 or 3" in capsys.readouterr().err


def test_operations_of_the_unet_at_true_shape():
    """One evaluation at 512 x 512 takes 0.8 TFLOP, of which the text's keys and values are 2 x 2 x 77 x 768 x 12480."""
    unet = flops.meta_unet("sd15")
    assert flops.text_flops(unet) == 4 * 77 * 768 * 12_480
    small, large = flops.forward_flops(unet, 32), flops.forward_flops(unet, 64)
    assert 7.9e11 < large < 8.2e11 and 4 < large / small < 5  # attention grows faster than the number of pixels


def test_no_video_outweighs_a_camera():
    def frames(source, scene, count):
        return [Example(f"{scene}-{n}", "pairs", source, scene, "train", None, None) for n in range(count)]

    video, alone = frames("a", "video", 20), frames("b", "video", 3)
    assert few_of_each_scene([*video, *alone]) == [*video[::4], *alone]


def test_means_over_scenes_count_a_video_once():
    rows = {f"v{n}": {"psnr": 10.0, "ssim": 0.1} for n in range(9)} | {"a": {"psnr": 20.0, "ssim": 0.5}}
    scene_of = {key: f"camera/{key[0]}" for key in rows}
    assert by_scene.scene_means({key: row["psnr"] for key, row in rows.items()}, scene_of) == [10.0, 20.0]
    worse = {key: {"psnr": row["psnr"] - (key == "a"), "ssim": row["ssim"]} for key, row in rows.items()}
    other, ours = by_scene.to_markdown({"other": worse, "ours": rows}, scene_of).splitlines()[-2:]
    assert ours == "| ours | 11.00 | 0.140 | 15.00 (10.00 to 20.00) | 0.300 (0.100 to 0.500) |  |  |"
    assert other.endswith("| 0.50 (0.00 to 1.00) | 0.000 (0.000 to 0.000) |")


def test_level_error_tells_gain_and_offset_from_what_a_picture_shows():
    real = np.random.default_rng(0).integers(40, 160, (32, 32)).astype(np.uint8)
    as_it_is, moved, fitted, *_, correlation = level_error.level_error(real // 2 + 60, real)
    assert as_it_is < moved < 30 and fitted > 45 and correlation > 0.999
    noise = np.random.default_rng(1).integers(40, 160, (32, 32)).astype(np.uint8)
    _, _, fitted, level, real_level, spread, _, correlation = level_error.level_error(noise, real)
    assert (
        abs(correlation) < 0.1 and fitted < 18.5 and level == noise.mean() and real_level == real.mean() and spread > 30
    )
    constant = level_error.level_error(np.full((32, 32), 9, np.uint8), real)
    assert constant[1] == pytest.approx(constant[2]) and constant[-1] == 0.0


def test_every_optimisation_draws_the_same_picture(monkeypatch, photo_file, tmp_path, capsys):
    """All rows but three are the same mathematics; the pipeline is afterwards as it was."""
    monkeypatch.setitem(SHAPES, "mini", MINI)
    path, kept = tmp_path / "figures.json", []
    build = inference.build_pipeline
    monkeypatch.setattr(optimisations, "build_pipeline", lambda options: kept.append(build(options)) or kept[0])
    flags = ["--random", "mini", "--device", "cpu", "--steps", "2", "--resolution", "64", "--photo", str(photo_file)]
    assert optimisations.main([*flags, "--backend", "eager", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    rows = report["rows"]
    assert set(rows) == set(optimisations.rows(argparse.Namespace(dtype="fp32", backend=None)))
    for name, row in rows.items():
        assert row["evaluations"] == 2 * 3 and row["milliseconds_per_step"] > 0 and row["peak_bytes"] is None
        # Other numbers, and a decoder that works in tiles.
        assert row["max_difference"] <= (40 if name in ("fp16", "bf16", "memory sequential") else 0.1), name
    assert rows["bf16"]["max_difference"] > 0
    [pipe] = kept
    assert pipe.unet.dtype == torch.float32 and pipe.memory_mode == "full" and "DIFFV2IR_BRANCHES" not in os.environ
    assert not compilation.is_compiled(pipe)
    printed = capsys.readouterr().out
    assert "| compiled, channels_last |" in printed and printed.count("\n| ") == len(rows) + 2
    assert optimisations.main([*flags, "--rows", "fp16", "magic"]) == 2
    assert "no such row: magic" in capsys.readouterr().err
    assert optimisations.main([*flags, str(photo_file)]) == 2
