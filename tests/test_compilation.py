"""Compiled models draw the same pictures, and compile once for photos of all sizes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from diffv2ir import cli
from diffv2ir.compilation import compile_models, is_compiled
from diffv2ir.memory import place
from diffv2ir.pipeline import DiffV2IRPipeline


@pytest.fixture(scope="module")
def compiled(bundle_folder):
    torch._dynamo.reset()
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    counter = CompileCounter()
    assert compile_models(pipe, backend=counter)
    yield pipe, counter
    torch._dynamo.reset()


def test_a_photo_of_another_size_compiles_nothing(compiled, pipe, photo):
    own, counter = compiled
    # Below some 20,000 numbers PyTorch convolves in another way on a CPU, and compiles for it: larger than that.
    settings = pipe.default_settings.replace(seed=1, steps=1, resolution=160)
    # The first is a square: nothing may be compiled for equal sides alone.
    shapes = [Image.new("RGB", (70, 70), "gray"), photo, Image.new("RGB", (64, 110), "red")]
    counts = []
    for shape in shapes:
        conditioning = pipe.prepare(shape, caption="a car", segmentation=False, resolution=160)
        for style in ("general", "night"):
            ours, plain = (p.generate(conditioning, settings.replace(style=style)).levels for p in (own, pipe))
            np.testing.assert_allclose(ours, plain, atol=1e-5)
        counts.append(counter.frame_count)
    assert is_compiled(own) and counts[0] > 1 and set(counts) == {counts[0]}


def test_layers_that_come_and_go_are_not_compiled(compiled, pipe, conditioning, caplog):
    own, counter = compiled
    before = counter.frame_count
    with torch.compiler.set_stance("force_eager"):  # as the benchmark's other side is run
        own.generate(conditioning, pipe.default_settings.replace(seed=1, steps=1))
    place(own, "cpu", "sequential")
    own.generate(conditioning, pipe.default_settings.replace(seed=1, steps=1, resolution=96))
    assert counter.frame_count == before
    assert not compile_models(own) and not is_compiled(own) and "not compiled: in memory mode sequential" in caplog.text
    place(own, "cpu", "full")


def test_not_on_zerogpu(pipe, monkeypatch, caplog):
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert not compile_models(pipe) and "not compiled: on ZeroGPU" in caplog.text
    assert not is_compiled(pipe) and all(module._compiled_call_impl is None for module in pipe.unet.modules())


@pytest.mark.parametrize("flag", ["--compile", "--no-compile"])
def test_the_flag_compiles(flag, bundle_folder, photo_file, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("diffv2ir.compilation.compile_models", asked.append)
    arguments = ["translate", photo_file, "--out", tmp_path / "out", "--bundle", bundle_folder, "--device", "cpu", flag]
    assert cli.main([*map(str, arguments), "--steps", "1"]) == 0
    assert len(asked) == (flag == "--compile")
