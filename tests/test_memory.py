"""Memory modes: which one is chosen, that all draw the same picture, and what happens when memory runs out."""

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from peft.tuners.lora import Linear as LoraLinear

from diffv2ir import bundle, cli, loading, memory
from diffv2ir.batch import translate_photos
from diffv2ir.memory import MODES, OutOfDeviceMemory, choose_mode, next_mode, place
from diffv2ir.pipeline import DiffV2IRPipeline

SIZES = {"captioner": 10, "segmenter": 5, "text_encoder": 5, "unet": 40, "vae": 5}


@pytest.fixture(scope="module")
def own_pipe(bundle_folder):
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 128, 64  # larger than the pictures
    return pipe


@pytest.fixture
def placed(own_pipe):
    """A pipeline of its own that may be placed in any mode."""
    yield own_pipe
    place(own_pipe, "cpu", "full")
    own_pipe.set_style("general")


@pytest.fixture(scope="module")
def expected(own_pipe, photo):
    """The picture of mode "full", by style."""
    settings = own_pipe.default_settings.replace(seed=1, steps=2)
    return {style: own_pipe(photo, settings.replace(style=style)) for style in ("general", "night")}


@pytest.mark.parametrize(
    ("free", "mode"), [(75, "full"), (74, "park"), (70, "park"), (69, "model"), (50, "model"), (49, "sequential")]
)
def test_the_fastest_mode_that_fits_is_chosen(free, mode):
    """65 of weights and 10 to work with; 60 without the smaller one of those that understand; 40 the largest."""
    chosen, reason = choose_mode(free * 10**9, {name: size * 10**9 for name, size in SIZES.items()}, 10 * 10**9)
    assert chosen == mode
    assert f"{free}.0 GB" in reason


def test_the_next_mode_needs_clearly_less():
    """65 of weights, 60 and 40: park is no help, unless what understands is larger."""
    assert [next_mode(mode, SIZES, 10) for mode in MODES] == ["model", "model", "sequential", None]
    assert next_mode("full", SIZES | {"captioner": 20, "segmenter": 20}, 10) == "park"
    assert next_mode("full", SIZES, 1000) == "sequential"


def test_few_points_make_the_same_masks(placed, photo):
    sam = placed.segmenter
    own = {name: sam.config[name] for name in ("points_per_side", "points_per_batch")}
    sam.register_to_config(points_per_side=6, points_per_batch=36)
    place(placed, "cpu", "full")
    with memory.at_work(placed, "segmenter") as segmenter:
        assert segmenter.config.points_per_batch == 36
        expected = segmenter.masks(photo)
    for mode, points in (("park", 36), ("model", 16), ("sequential", 16)):
        place(placed, "cpu", mode)
        with memory.at_work(placed, "segmenter") as segmenter:
            assert segmenter.config.points_per_batch == points
            masks = segmenter.masks(photo)
        assert len(masks) == len(expected) > 0
        assert all(np.array_equal(one, other) for one, other in zip(masks, expected, strict=True))
        assert sam.config.points_per_batch == 36
    sam.register_to_config(**own)


@pytest.mark.parametrize(("part", "method"), [("segmenter", "masks"), ("captioner", "generate")])
def test_what_understands_has_remedies_of_its_own(placed, photo, short, part, method):
    short(getattr(placed, part), method, 2)
    with pytest.raises(OutOfDeviceMemory) as refused:
        placed.prepare(photo)
    message = str(refused.value)
    assert ("--segmentation none, --segmentation FILE" in message) == (part == "segmenter")
    assert ("--caption TEXT" in message) == ("--dtype fp16" in message) == (part == "captioner")
    assert "a smaller resolution" not in message


def test_sizes_are_those_of_the_weights(own_pipe):
    sizes = memory.weight_sizes(own_pipe)
    assert sizes["unet"] == 4 * sum(parameter.numel() for parameter in own_pipe.unet.parameters())
    assert set(sizes) == set(SIZES)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_draws_the_same_picture(placed, photo, expected, mode):
    place(placed, "cpu", mode)
    assert placed.memory_mode == mode and placed.compute_device.type == "cpu"
    for style in ("night", "general"):
        output = placed(photo, expected[style].settings)
        assert output.caption == expected[style].caption
        np.testing.assert_allclose(output.levels, expected[style].levels, atol=1e-5)
    assert not np.allclose(expected["night"].levels, expected["general"].levels, atol=1e-3)


def test_layers_lie_elsewhere_between_their_turns(placed, photo, expected):
    place(placed, "cpu", "sequential")
    placed(photo, expected["night"].settings)
    assert {parameter.device.type for parameter in placed.unet.parameters()} == {"meta"}
    assert placed.vae.use_tiling and placed.captioner.device.type == "cpu"
    place(placed, "cpu", "full")
    assert {parameter.device.type for parameter in placed.unet.parameters()} == {"cpu"}
    assert not placed.vae.use_tiling
    again = placed(photo, expected["night"].settings)
    np.testing.assert_allclose(again.levels, expected["night"].levels, atol=1e-5)


def test_a_photo_larger_than_a_tile_is_worked_at_in_tiles(placed, photo, monkeypatch):
    monkeypatch.setattr(placed.vae, "tile_sample_min_size", 32)
    monkeypatch.setattr(placed.vae, "tile_latent_min_size", 16)
    settings = placed.default_settings.replace(seed=1, steps=1, resolution=64)
    widths = []
    hook = placed.vae.encoder.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[-1]))
    place(placed, "cpu", "sequential")
    placed(photo, settings)
    hook.remove()
    assert max(widths) == 32 and len(widths) > 2


def test_a_tiny_autoencoder_is_not_tiled(own_pipe):
    """diffusers takes it that its latents are eight pixels wide, which they are not here."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    parts = {**own_pipe.components, "vae": vae}
    pipe = DiffV2IRPipeline(**parts)
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        vae.enable_tiling()
        with pytest.raises(RuntimeError):
            vae.encode(image)
        place(pipe, "cpu", "sequential")
        assert vae.encode(image).latents.shape == (1, 4, 32, 32)
    place(pipe, "cpu", "full")


def test_what_understands_is_on_the_device_only_while_it_works(placed, photo, monkeypatch):
    place(placed, "cpu", "park")
    moves = []
    for name in memory.UNDERSTANDING:
        monkeypatch.setattr(getattr(placed, name), "to", lambda device, name=name: moves.append((name, str(device))))
    placed.prepare(photo)
    assert moves == [(name, "cpu") for name in memory.UNDERSTANDING for _ in range(2)]
    moves.clear()
    placed.memory_mode = "full"
    placed.prepare(photo)
    assert not moves


def test_parking_moves_only_what_generates(bundle_folder):
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    place(pipe, "meta", "park")
    devices = {name: getattr(pipe, name).device.type for name in SIZES}
    assert devices == {**dict.fromkeys(memory.GENERATING, "meta"), **dict.fromkeys(memory.UNDERSTANDING, "cpu")}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_on_the_device(bundle_folder, mode, monkeypatch):
    """Wherever the weights lie; what goes into the models is made there."""
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda device: None)  # it knows no "meta"
    place(pipe, "meta", mode)
    assert pipe.compute_device.type == "meta"
    if mode != "full":
        assert pipe.captioner.device.type == pipe.segmenter.device.type == "cpu"


def test_the_choice_is_logged_with_its_reason(placed, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**20)
    with caplog.at_level(logging.INFO):
        place(placed, "cpu")
    assert placed.memory_mode == "sequential"
    assert "memory mode sequential" in caplog.text and "are free" in caplog.text and "weights in fp32" in caplog.text
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    place(placed, "cpu")
    assert placed.memory_mode == "full"


def test_a_cpu_has_no_choice(placed):
    place(placed, "cpu")
    assert placed.memory_mode == "full"


def test_unknown_modes_are_refused(placed):
    with pytest.raises(ValueError, match="memory must be one of full, park, model, sequential, got 'half'"):
        place(placed, "cpu", "half")


@pytest.fixture
def short(monkeypatch):
    """Makes the next calls of a method run out of memory, as many as asked for.

    Every mode is tried, though the weights are small here beside what the models need to work.
    """
    monkeypatch.setattr(memory, "_SMALLER", 1.0)

    def shorten(thing, method, times, error=None):
        left, own = [times], getattr(thing, method)

        def call(*arguments, **options):
            if left[0]:
                left[0] -= 1
                raise error or torch.OutOfMemoryError("out of memory\nTried to allocate 2 GiB")
            return own(*arguments, **options)

        monkeypatch.setattr(thing, method, call)

    return shorten


@pytest.mark.parametrize(("part", "method"), [("unet", "forward"), ("segmenter", "masks"), ("vae", "decode")])
def test_out_of_memory_once_is_one_mode_further(placed, photo, expected, short, caplog, part, method):
    short(getattr(placed, part), method, 1)
    output = placed(photo, expected["general"].settings)
    np.testing.assert_allclose(output.levels, expected["general"].levels, atol=1e-5)
    assert placed.memory_mode == "park"
    assert "out of memory in mode full; now park" in caplog.text


@pytest.mark.parametrize("method", ["get_delta_weight", "update_layer"])  # of peft: while merging, while loading
def test_out_of_memory_while_a_style_is_put_in_place(placed, photo, expected, short, method):
    short(LoraLinear, method, 1)
    output = placed(photo, expected["night"].settings)
    np.testing.assert_allclose(output.levels, expected["night"].levels, atol=1e-5)
    assert placed.memory_mode == "park"
    general = placed(photo, expected["general"].settings)
    np.testing.assert_allclose(general.levels, expected["general"].levels, atol=1e-5)


def test_out_of_memory_has_other_names(placed, photo, expected, short):
    short(placed.unet, "forward", 1, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert placed(photo, expected["general"].settings).steps_done == 2 and placed.memory_mode == "park"
    short(placed.unet, "forward", 1, RuntimeError("expected scalar type Half"))
    with pytest.raises(RuntimeError, match="scalar type"):
        placed(photo, expected["general"].settings)
    assert placed.memory_mode == "park"


def test_half_precision_is_no_remedy_for_half_precision(placed, photo, expected, short):
    short(placed.unet, "forward", 4)
    with pytest.raises(OutOfDeviceMemory, match="--dtype fp16"):
        placed(photo, expected["general"].settings)
    placed.unet.to(torch.bfloat16)
    with pytest.raises(OutOfDeviceMemory) as refused:
        placed(photo, expected["general"].settings)
    placed.unet.to(torch.float32)
    assert "--dtype" not in str(refused.value) and "a smaller resolution" in str(refused.value)


def test_out_of_memory_twice_is_one_sentence(placed, photo, expected, short):
    short(placed.unet, "forward", 2)
    with pytest.raises(OutOfDeviceMemory) as refused:
        placed(photo, expected["general"].settings)
    message = str(refused.value)
    assert message.startswith("cpu has too little memory, also in memory mode 'park'")
    assert "--memory sequential" in message and "\n" not in message
    assert placed(photo, expected["general"].settings).steps_done == 2  # and goes on


def test_after_the_last_mode_there_is_no_other(placed, photo, expected, short):
    place(placed, "cpu", "sequential")
    short(placed.captioner, "generate", 1)
    with pytest.raises(OutOfDeviceMemory) as refused:
        placed(photo, expected["general"].settings)
    assert "--memory sequential" not in str(refused.value)


def test_weights_that_do_not_fit_are_placed_in_the_next_mode(placed, short):
    short(placed, "to", 1)
    place(placed, "cpu", "full")
    assert placed.memory_mode == "park"
    short(placed, "to", 1)
    short(placed.unet, "to", 1)
    with pytest.raises(OutOfDeviceMemory):
        place(placed, "cpu", "full")


def test_a_batch_goes_on_after_a_photo_that_did_not_fit(placed, photo, tmp_path, expected, short):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    photo.save(paths[0])
    shutil.copy(*paths)
    short(placed.unet, "forward", 2)
    results = list(translate_photos(placed, paths, expected["general"].settings))
    assert [result.status for result in results] == ["failed", "done"]
    assert "too little memory" in results[0].error


def test_half_precision_understands_too(bundle_folder, photo):
    """segment-anything computes with points in float32, and fails with other weights."""
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder, dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.captioner.dtype} == {torch.bfloat16}
    assert pipe.segmenter.dtype == torch.float32
    assert pipe(photo, pipe.default_settings.replace(seed=1, steps=1)).image.size == photo.size


def test_flags_reach_the_pipeline(bundle_folder):
    flags = ["--bundle", str(bundle_folder), "--dtype", "bf16", "--device", "cpu", "--memory", "sequential"]
    options = cli.build_parser().parse_args(["translate", "x", "--out", "y", *flags])
    pipe = cli.load_pipeline(options)
    assert (pipe.memory_mode, pipe.unet.dtype) == ("sequential", torch.bfloat16)
    options = cli.build_parser().parse_args(["translate", "x", "--out", "y", *flags, "--dtype", "float32"])
    assert cli.load_pipeline(options).unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "half", "asked", "dtype"),
    [
        ("cpu", True, "auto", torch.float32),
        ("cuda", True, "auto", torch.float16),
        ("cuda:1", False, "auto", torch.float32),
        ("cuda", True, "fp32", torch.float32),
        ("cpu", False, "bfloat16", torch.bfloat16),
    ],
)
def test_weights_are_as_stored_on_a_gpu_unless_asked_otherwise(monkeypatch, tmp_path, device, half, asked, dtype):
    monkeypatch.setattr(bundle, "is_half", lambda folder: half)
    options = cli.build_parser().parse_args(["translate", "x", "--out", "y", "--device", device, "--dtype", asked])
    assert loading._dtype(options, tmp_path) == dtype
    assert cli.build_parser().parse_args(["translate", "x", "--out", "y"]).dtype == "auto"


def test_where_a_model_comes_from_and_lies_is_said_once(bundle_folder):
    """On stderr, as `fetch` says it; not where logging is set up."""
    code = (
        "import logging, sys; from diffv2ir import loading; {}\n"
        "for _ in range(2): loading.tell_on_stderr()\n"
        "logging.getLogger('diffv2ir.hub').info('commit 1'); logging.getLogger('diffv2ir.memory').info('mode park')\n"
    )
    for setup, wanted in (("", "commit 1\nmode park\n"), ("logging.basicConfig(level='WARNING')", "")):
        ended = subprocess.run([sys.executable, "-c", code.format(setup)], capture_output=True, text=True, check=True)
        assert ended.stderr == wanted and ended.stdout == ""
