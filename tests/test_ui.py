"""The page, driven as a browser drives it: over HTTP, with the real pipeline behind it."""

import gc

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from diffv2ir.imaging import ImageError, read_metadata
from diffv2ir.pipeline import DiffV2IRPipeline, Output
from diffv2ir.ui import LAUNCH_OPTIONS, Model, build_demo
from diffv2ir.ui.session import BoundedCache, Session
from diffv2ir.ui.stream import Step, stream


class Calls:
    """How often the models that understand a photo were asked."""

    def __init__(self, pipe, monkeypatch):
        self.captions = self.maps = 0
        generate, masks = pipe.captioner.generate, pipe.segmenter.masks

        def count_caption(*arguments, **options):
            self.captions += 1
            return generate(*arguments, **options)

        def count_map(*arguments, **options):
            self.maps += 1
            return masks(*arguments, **options)

        monkeypatch.setattr(pipe.captioner, "generate", count_caption)
        monkeypatch.setattr(pipe.segmenter, "masks", count_map)


@pytest.fixture
def calls(pipe, monkeypatch) -> Calls:
    return Calls(pipe, monkeypatch)


@pytest.fixture(scope="module")
def served(bundle_folder):
    """The page on a free port of this machine, with a pipeline of its own."""
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    demo = build_demo(Model.ready(pipe))
    demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    yield demo, pipe
    demo.close()


@pytest.fixture
def client(served) -> Client:
    return Client(served[0].local_url, verbose=False)


@pytest.fixture
def photo_file(photo, tmp_path):
    path = tmp_path / "street.png"
    photo.save(path)
    return path


def test_bounded_cache_drops_what_was_asked_for_longest_ago():
    made = []
    cache = BoundedCache(2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    with pytest.raises(ValueError, match="capacity"):
        BoundedCache(0)


def test_a_photo_is_understood_once(pipe, photo, calls):
    session = Session()
    first = session.understand(pipe, photo, 64)
    assert session.understand(pipe, photo.copy(), 64) is first
    assert session.condition(pipe, photo, first.caption, True, 64) is first
    other = session.condition(pipe, photo, "a tree", True, 64)
    assert other.caption == "a tree" and other.segmentation.tobytes() == first.segmentation.tobytes()
    assert session.condition(pipe, photo, "a  tree ", True, 64) is other
    bare = session.condition(pipe, photo, "", False, 64)
    assert bare.caption == "" and bare.segmentation is None
    assert (calls.captions, calls.maps) == (1, 1)
    session.understand(pipe, Image.new("RGB", (80, 80), "red"), 64)
    assert (calls.captions, calls.maps) == (2, 2)


def test_sessions_share_nothing(pipe, photo, calls):
    Session().understand(pipe, photo, 64)
    Session().understand(pipe, photo, 64)
    assert calls.captions == 2


def test_stream_tells_every_step_and_ends_with_the_output(pipe, conditioning):
    settings = pipe.default_settings.replace(steps=5, seed=1)
    *steps, output = stream(pipe, conditioning, settings)
    assert [(event.step, event.total) for event in steps] == [(number, 5) for number in range(1, 6)]
    assert all(isinstance(event, Step) for event in steps) and any(event.preview for event in steps)
    assert isinstance(output, Output)
    assert output.image.tobytes() == pipe.generate(conditioning, settings).image.tobytes()


def test_stream_stops_at_the_next_step(pipe, conditioning):
    settings = pipe.default_settings.replace(steps=50, seed=1)
    done = []
    for event in stream(pipe, conditioning, settings, cancelled=lambda: len(done) >= 2):
        done.append(event)
    assert done[-1].cancelled and done[-1].steps_done < 50


def test_closing_the_stream_ends_the_work(pipe, conditioning):
    events = stream(pipe, conditioning, pipe.default_settings.replace(steps=500, seed=1))
    next(events)
    events.close()  # joins the worker: would take 500 steps if it ran on
    gc.collect()
    assert pipe.generate(conditioning, pipe.default_settings.replace(steps=1)).steps_done == 1


def test_stream_raises_what_the_pipeline_raises(pipe, conditioning):
    with pytest.raises(ValueError, match="style"):
        list(stream(pipe, conditioning, pipe.default_settings.replace(style="absent")))


def translate(client: Client, photo_file, **changes):
    wish = {"photo": handle_file(photo_file), "caption": "", **changes}
    return client.predict(api_name="/translate", **wish)


def test_upload_gives_caption_and_map(client, photo_file, photo):
    status, caption, segmentation, infrared = client.predict(handle_file(photo_file), "", api_name="/understand")
    assert "Understood" in status
    assert caption
    assert Image.open(segmentation["path"] if isinstance(segmentation, dict) else segmentation).size == photo.size
    assert not infrared


def test_translate_gives_the_picture_with_its_settings(client, served, photo_file, photo):
    status, infrared = translate(client, photo_file, caption="a tree", steps=3, seed=7, style="night")
    assert "Seed 7, style night" in status
    assert Image.open(infrared).size == photo.size
    settings = served[1].default_settings.replace(steps=3, seed=7, style="night")
    assert read_metadata(infrared) == settings.to_dict()
    pipe = served[1]
    expected = pipe.generate(pipe.prepare(photo, "a tree"), settings)
    assert Image.open(infrared).tobytes() == expected.image.tobytes()


def test_a_second_click_neither_captions_nor_segments(client, served, photo_file, monkeypatch):
    calls = Calls(served[1], monkeypatch)
    for scale in (0.5, 1.0, 2.0):
        translate(client, photo_file, caption="car", visible_scale=scale)
    assert (calls.captions, calls.maps) == (1, 1)


@pytest.mark.parametrize(
    "wish, words",
    [({"steps": 0}, "minimum"), ({"seed": -1}, "minimum"), ({"photo": None}, "choose a photo first")],
)
def test_a_bad_value_is_one_sentence(client, photo_file, wish, words):
    with pytest.raises(Exception, match=f"(?i){words}"):
        translate(client, photo_file, **wish)


def test_an_unreadable_photo_is_one_sentence(client, tmp_path):
    path = tmp_path / "note.png"
    path.write_text("not a picture")
    with pytest.raises(Exception, match="not an image"):
        client.predict(handle_file(path), "", api_name="/understand")


def test_session_refuses_an_unreadable_photo(pipe, tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        Session().understand(pipe, tmp_path / "gone.png", 64)
