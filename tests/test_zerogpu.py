"""A Space on ZeroGPU, with a stand-in for its package: what crosses to the other process is pickled as there."""

import contextvars
import inspect
import pickle
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import app
from diffv2ir import grid
from diffv2ir.imaging import ImageError
from diffv2ir.phases import draw_phases, held_phases
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.background import follow
from diffv2ir.ui.stream import Step, stream
from diffv2ir.ui.zerogpu import generate_seconds, lending_gpu, repaint_seconds
from diffv2ir.video import open_clip, translate_clip


class Spaces:
    """`spaces.GPU`: functions run with copies of their arguments and give copies of their results."""

    def __init__(self):
        self.calls = []
        self.working = False

    @property
    def asked(self):
        """The functions that asked for a GPU."""
        return [name for name, _ in self.calls]

    @contextmanager
    def only_here(self):
        """No layer of any model works but in these functions."""

        def check(layer, inputs):
            assert self.working, f"{type(layer).__name__} works in the server"

        hook = register_module_forward_pre_hook(check)
        try:
            yield
        finally:
            hook.remove()

    def GPU(self, duration):
        def decorate(task):
            @contextmanager
            def gpu(arguments):
                self.calls.append((task.__name__, duration(*arguments) if callable(duration) else duration))
                assert not self.working, "a GPU is asked for where there is one"
                self.working = True
                try:
                    yield
                finally:
                    self.working = False

            def call(*arguments):
                with gpu(arguments):
                    return copied(task(*copied(arguments)))

            def walk(*arguments):
                with gpu(arguments):
                    yield from map(copied, task(*copied(arguments)))

            return walk if inspect.isgeneratorfunction(task) else call

        return decorate


def copied(value):
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def spaces(monkeypatch):
    module = Spaces()
    monkeypatch.setitem(sys.modules, "spaces", module)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return module


@pytest.fixture
def lent(spaces, bundle_folder) -> DiffV2IRPipeline:
    return lending_gpu(lambda: DiffV2IRPipeline.from_pretrained(bundle_folder))()


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", None)  # importing it would fail
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def load():
        pytest.fail("loaded before the page asks for it")

    assert lending_gpu(load) is load


def test_models_are_loaded_before_the_launch(spaces):
    def load():
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        lending_gpu(load)


def test_the_picture_is_the_same(lent, spaces, pipe, photo):
    settings = pipe.default_settings.replace(steps=5, seed=3, style="night")
    here, there = (p.generate(p.prepare(photo, "a tree"), settings) for p in (pipe, lent))
    assert there.image.tobytes() == here.image.tobytes()
    assert (there.settings, there.record, there.steps_done) == (here.settings, here.record, 5)
    assert spaces.asked == ["prepare_on_gpu", "generate_on_gpu"]
    assert lent(photo).settings.resolution == pipe.default_settings.resolution


def test_steps_and_previews_come_through(lent, photo):
    settings = lent.default_settings.replace(steps=12, seed=3)
    *steps, output = stream(lent, lent.prepare(photo), settings)
    assert [event.step for event in steps] == list(range(1, 13)) and all(isinstance(event, Step) for event in steps)
    assert [event.step for event in steps if event.preview] == [2, 4, 6, 8, 10]
    assert output.steps_done == 12 and not output.cancelled


def test_stop_reaches_the_other_process(lent, photo):
    conditioning = lent.prepare(photo)
    settings = lent.default_settings.replace(steps=500, seed=3)
    output = lent.generate(conditioning, settings, lambda step, total, estimate: step < 2)
    assert output.cancelled and output.steps_done < 500
    assert lent.generate(conditioning, settings.replace(steps=3)).steps_done == 3  # the stop is over


def test_a_clip_is_drawn_there_with_the_gain_of_its_first_frame(lent, spaces, pipe, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 8, (96, 64))
    for level in (40, 200):
        writer.write(np.full((64, 96, 3), level, np.uint8))
    writer.release()
    clip, settings = open_clip(tmp_path / "clip.mp4"), pipe.default_settings.replace(steps=1, seed=3, gain_control=0.8)
    here = list(translate_clip(pipe, clip, tmp_path / "here.mp4", settings, "a tree"))
    with spaces.only_here():
        there = list(translate_clip(lent, clip, tmp_path / "there.mp4", settings, "a tree"))
    assert [frame.output.image.tobytes() for frame in there] == [frame.output.image.tobytes() for frame in here]
    assert len(there) == 2 and {frame.output.gain for frame in there} == {here[0].output.gain}
    assert spaces.asked == ["prepare_on_gpu", "generate_on_gpu"] * 2


def test_a_grid_is_drawn_there_cells_together_where_they_may_be(lent, spaces, pipe, photo, monkeypatch):
    monkeypatch.setattr(grid, "_batch_size", lambda pipe: 2)  # as on a GPU
    planned = grid.plan(pipe.default_settings.replace(steps=7), [("seed", "1, 2, 3")])

    def drawn(pipe):
        told = []
        results = grid.run(pipe, planned, lambda *switches: pipe.prepare(photo, "a tree"), lambda *at: told.append(at))
        return [(result.cell, result.output.seed, result.output.image.tobytes()) for result in results], told

    here = drawn(pipe)
    with spaces.only_here():
        assert drawn(lent) == here
    assert spaces.asked == ["prepare_on_gpu", "generate_on_gpu", "generate_on_gpu"]


def test_each_phase_is_drawn_there(spaces, grown_folder, photo):
    here = DiffV2IRPipeline.from_pretrained(grown_folder)
    there = lending_gpu(lambda: DiffV2IRPipeline.from_pretrained(grown_folder))()
    settings, told = here.default_settings.replace(steps=2, seed=3), []
    wanted = [picture.image.tobytes() for picture in draw_phases(here, here.prepare(photo, "a tree"), settings)]
    with spaces.only_here():
        pictures = list(draw_phases(there, there.prepare(photo, "a tree"), settings, lambda *at: told.append(at)))
    assert [picture.image.tobytes() for picture in pictures] == wanted
    assert [picture.name for picture in pictures] == held_phases(there)
    assert spaces.asked == ["prepare_on_gpu", *["repaint_on_gpu"] * 2, *["generate_on_gpu"] * 2]
    assert told[:3] == [(0, 1, 14), (0, 2, 14), (0, 3, 14)] and told[-1] == (3, 2, 2)
    ended = list(draw_phases(there, there.prepare(photo, "a tree"), settings, lambda done, step, steps: done < 1))
    assert [picture.name for picture in ended] == ["base"]


def test_what_a_visitor_can_mend_is_raised_here(lent, photo, tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        lent.prepare(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="style must be one of general, night, got 'nir'"):
        lent.generate(lent.prepare(photo), lent.default_settings.replace(style="nir"))


def test_nothing_of_the_gpu_is_handed_over(lent, photo):
    conditioning = lent.prepare(photo)
    assert {value.device.type for value in vars(conditioning).values() if isinstance(value, torch.Tensor)} == {"cpu"}


def test_the_time_asked_for_follows_the_work():
    def seconds(size=(512, 512), **changes):
        return generate_seconds([SimpleNamespace(size=size)], GenerationSettings(**changes))

    assert seconds(steps=4) < seconds(steps=100) < seconds(steps=100, resolution=1024)
    assert seconds(steps=100, visible_scale=1, segmentation_scale=1, text_scale=1) < seconds(steps=100)
    assert seconds(size=(1024, 512)) > seconds() == round(10 + 300 * 0.06)  # 3 branches: s_V = s_S
    assert seconds(size=(5120, 512)) < seconds(size=(1536, 512))  # drawn at 1536 x 152
    both = [SimpleNamespace(size=(512, 512))] * 2
    assert generate_seconds(both, GenerationSettings()) == round(10 + 600 * 0.06)
    assert repaint_seconds("base", both[0], GenerationSettings()) == 20 + round(10 + 2 * 70 * 0.06)


def test_work_in_threads_knows_whose_request_it_is():
    visitor = contextvars.ContextVar("visitor")
    visitor.set("ann")
    pipe = SimpleNamespace(generate=lambda conditioning, settings, callback: visitor.get())
    assert list(stream(pipe, None, GenerationSettings())) == ["ann"]
    assert list(follow(lambda tell: [visitor.get()])) == ["ann"]


def test_the_server_asks_for_a_gpu(spaces, bundle_folder, photo, monkeypatch):
    monkeypatch.setattr("diffv2ir.imaging.limit_pixels", lambda pixels: None)  # it would stay for other tests
    demo, _ = app.prepare(app.build_parser().parse_args(["--bundle", str(bundle_folder)]))
    demo.page.model.get()(photo)
    assert spaces.asked == ["prepare_on_gpu", "generate_on_gpu"]
