"""A Space on ZeroGPU, with a stand-in for its package: what crosses to the other process is pickled as there."""

import contextvars
import inspect
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

import app
from diffv2ir.imaging import ImageError
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.background import follow
from diffv2ir.ui.stream import Step, stream
from diffv2ir.ui.zerogpu import generate_seconds, lending_gpu


class Spaces:
    """`spaces.GPU`: functions run with copies of their arguments and give copies of their results."""

    def __init__(self):
        self.calls = []

    def GPU(self, duration):
        def decorate(task):
            def note(arguments):
                self.calls.append((task.__name__, duration(*arguments) if callable(duration) else duration))

            def call(*arguments):
                note(arguments)
                return copied(task(*copied(arguments)))

            def walk(*arguments):
                note(arguments)
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
    assert [name for name, _ in spaces.calls] == ["prepare_on_gpu", "generate_on_gpu"]
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
        return generate_seconds(SimpleNamespace(size=size), GenerationSettings(**changes))

    assert seconds(steps=4) < seconds(steps=100) < seconds(steps=100, resolution=1024)
    assert seconds(steps=100, visible_scale=1, segmentation_scale=1, text_scale=1) < seconds(steps=100)
    assert seconds(size=(1024, 512)) > seconds() == round(10 + 300 * 0.06)  # 3 branches: s_V = s_S


def test_work_in_threads_knows_whose_request_it_is():
    visitor = contextvars.ContextVar("visitor")
    visitor.set("ann")
    pipe = SimpleNamespace(generate=lambda conditioning, settings, callback: visitor.get())
    assert list(stream(pipe, None, GenerationSettings())) == ["ann"]
    assert list(follow(lambda tell: [visitor.get()])) == ["ann"]


def test_the_server_asks_for_a_gpu(spaces, bundle_folder, photo, monkeypatch):
    monkeypatch.setattr("diffv2ir.imaging.limit_pixels", lambda pixels: None)  # it would stay for other tests
    demo, _ = app.prepare(app.build_parser().parse_args(["--bundle", str(bundle_folder)]))
    demo.model.get()(photo)
    assert [name for name, _ in spaces.calls] == ["prepare_on_gpu", "generate_on_gpu"]
