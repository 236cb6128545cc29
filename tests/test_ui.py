"""The page, driven as a browser drives it: over HTTP, with the real pipeline behind it."""

import dataclasses
import gc
import shutil
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from diffv2ir.bundle import BundleError
from diffv2ir.imaging import ImageError
from diffv2ir.metadata import restore
from diffv2ir.pipeline import DiffV2IRPipeline, Output
from diffv2ir.settings import MAX_SEED, GenerationSettings
from diffv2ir.ui import BundleFacts, Model
from diffv2ir.ui.controls import Controls
from diffv2ir.ui.downloads import file_of
from diffv2ir.ui.examples import example_photos
from diffv2ir.ui.history import _number
from diffv2ir.ui.model import ModelError
from diffv2ir.ui.page import Page
from diffv2ir.ui.session import BoundedCache, Result, Session, _size, empty_idle
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


@pytest.fixture
def client(served) -> Client:
    return Client(served[0].local_url, verbose=False)


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


def test_another_map_or_caption_of_a_photo_asks_for_no_more_than_that(pipe, photo, calls):
    session, union = Session(), pipe.prepare(photo, map_style="union").segmentation
    calls.captions = calls.maps = 0
    first = session.understand(pipe, photo, 64, map_style="regions")
    other = session.understand(pipe, photo, 64, map_style="union")
    assert other.segmentation.tobytes() == union.tobytes() != first.segmentation.tobytes()
    assert other.caption == first.caption and not other.own_map and (calls.captions, calls.maps) == (1, 1)
    session.understand(pipe, photo, 64, captioning="sampled", caption_seed=2)
    assert (calls.captions, calls.maps) == (2, 1)


def test_photos_of_a_session_are_in_memory_once_and_large_ones_for_less_long(pipe, photo, calls, monkeypatch):
    session = Session()
    first = session.understand(pipe, photo, 64)
    others = [session.condition(pipe, photo.copy(), caption, True, 64) for caption in ("a tree", "a car")]
    others.append(session.understand(pipe, photo.copy(), 64, captioning="sampled", caption_seed=2))
    assert all(other.image is first.image and other.segmentation is first.segmentation for other in others)
    assert session.condition(pipe, photo, "a tree", False, 64).segmentation is None
    calls.captions = 0
    monkeypatch.setattr("diffv2ir.ui.session._KEPT_BYTES", 6 * photo.width * photo.height)  # photo and map of one
    session.empty()
    colours = [Image.new("RGB", photo.size, colour) for colour in ("red", "blue")]
    for picture in (*colours, colours[1], colours[0]):
        session.understand(pipe, picture, 64)
    assert calls.captions == 3


def test_a_session_that_nobody_uses_forgets(pipe, photo, conditioning, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("diffv2ir.ui.session.time.monotonic", lambda: now[0])
    idle, at_work = Session(), Session()
    output = pipe.generate(conditioning, pipe.default_settings.replace(steps=1, seed=0))
    for session in (idle, at_work):
        session.begin()
        session.add(photo, output)
        session.understand(pipe, photo, 64)
    now[0] = 3000.0
    assert not at_work.is_over(0)
    now[0] = 3700.0
    empty_idle()
    assert not idle.results and idle.shown is None and not idle._understood.items()
    assert at_work.results and at_work.shown and at_work._understood.items()
    with pytest.raises(gr.Error, match="no longer kept"):
        _number(idle, SimpleNamespace(index=0))
    assert _number(at_work, SimpleNamespace(index=0)) == 1


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


def test_prepare_gives_caption_and_map(client, photo_file, photo):
    caption, segmentation = client.predict(photo=handle_file(photo_file), api_name="/prepare")
    assert caption
    assert Image.open(segmentation).size == photo.size


def test_translate_gives_the_picture_with_its_settings(client, served, photo_file, photo):
    infrared, caption, used = translate(client, photo_file, caption="a tree", steps=3, seed=7, style="night")
    settings = served[1].default_settings.replace(steps=3, seed=7, style="night")
    assert caption == "a tree" and used == settings.to_dict()
    assert restore(infrared).settings == settings
    pipe = served[1]
    expected = pipe.generate(pipe.prepare(photo, "a tree"), settings)
    assert Image.open(infrared).tobytes() == expected.image.tobytes()
    assert Image.open(infrared).size == photo.size


def test_the_model_writes_the_caption_that_a_call_leaves_out(client, served, photo_file, photo):
    _, caption, used = client.predict(photo=handle_file(photo_file), new_seed=True, api_name="/translate")
    assert caption == served[1].prepare(photo).caption
    assert 0 <= used["seed"] <= MAX_SEED


def test_previews_come_before_the_picture(client, photo_file):
    job = client.submit(photo=handle_file(photo_file), caption="", steps=12, api_name="/translate")
    *previews, last = job.outputs() if job.result() else []
    assert [used["step"] for _, _, used in previews] == sorted(used["step"] for _, _, used in previews)
    assert len(previews) >= 4 and last[2]["steps"] == 12


def test_a_second_call_neither_captions_nor_segments(client, served, photo_file, monkeypatch):
    calls = Calls(served[1], monkeypatch)
    for scale in (0.5, 1.0, 2.0):
        translate(client, photo_file, caption="car", visible_scale=scale)
    assert (calls.captions, calls.maps) == (1, 1)


def test_a_map_of_ones_own_is_used(client, served, photo_file, photo, tmp_path):
    own = tmp_path / "own.png"
    drawn = Image.new("RGB", photo.size, "red")
    drawn.save(own)
    infrared, _, _ = translate(client, photo_file, caption="a tree", seed=3, own_map=handle_file(own))
    pipe = served[1]
    expected = pipe.generate(pipe.prepare(photo, "a tree", drawn), pipe.default_settings.replace(seed=3))
    assert Image.open(infrared).tobytes() == expected.image.tobytes()


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
    with pytest.raises(Exception, match="not an image") as caught:
        client.predict(photo=handle_file(path), api_name="/prepare")
    assert "/" not in str(caught.value)  # nothing of the server's folders


def test_what_is_not_the_visitors_fault_hides_the_server(client, served, photo_file, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("/secret/place is full")

    monkeypatch.setattr(served[1].captioner, "generate", broken)
    with pytest.raises(Exception, match="was logged") as caught:
        client.predict(photo=handle_file(photo_file), api_name="/prepare")
    assert "secret" not in str(caught.value)


def test_session_refuses_an_unreadable_photo(pipe, tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        Session().understand(pipe, tmp_path / "gone.png", 64)


def test_session_keeps_the_newest_results(pipe, photo, conditioning):
    session = Session()
    output = pipe.generate(conditioning, pipe.default_settings.replace(steps=1, seed=0))
    for _ in range(30):
        session.add(photo, output)
    assert len(session.results) == 24
    assert session.last.number == 30
    assert session.shown.output.levels is output.levels is not None
    assert all(result.output.levels is None for result in session.results)
    assert file_of(session.shown) == file_of(session.last)


def test_session_keeps_fewer_results_of_large_photos(pipe, photo, conditioning, monkeypatch):
    output = pipe.generate(conditioning, pipe.default_settings.replace(steps=1, seed=0))
    one = _size([Result(1, photo, output)])
    assert one == photo.width * photo.height * 7  # photo and map in colour, the picture in gray
    monkeypatch.setattr("diffv2ir.ui.session._RESULTS_BYTES", 3 * one)
    session = Session()
    for _ in range(5):
        picture, drawn = output.image.copy(), output.segmentation.copy()
        session.add(photo.copy(), dataclasses.replace(output, image=picture, segmentation=drawn))
    assert [result.number for result in session.results] == [3, 4, 5]
    monkeypatch.setattr("diffv2ir.ui.session._RESULTS_BYTES", 1)
    session.add(photo, output)
    assert [result.number for result in session.results] == [5, 6]


def test_facts_name_the_terms_of_the_weights(bundle_folder, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: research-only\ndatasets: [a, b]\n---\n")
    facts = BundleFacts.read(folder)
    assert (facts.terms, facts.trained_on) == ("research only", "a and b")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert (BundleFacts.read(folder).terms, BundleFacts.read(folder).trained_on) == ("apache 2.0", "")


def test_a_model_that_fails_to_load_says_so_to_everyone():
    def load():
        raise BundleError("no weights")

    facts = BundleFacts("x", GenerationSettings(), ("general",))
    model = Model(facts, load)
    assert model.state == "loading"
    for _ in range(2):
        with pytest.raises(ModelError, match="could not be loaded"):
            model.get()
    assert model.state == "failed"


def test_examples_are_named_and_shown(pipe):
    page = Page(Model.ready(pipe))
    page.build()
    examples = [sample[0][0] for sample in page.translate.examples.get_config()["samples"]]
    names = [label for *_, label in example_photos(pipe.styles)]
    assert [example["caption"] for example in examples] == names and "Tower" in names
    assert all(example["image"]["path"] for example in examples)


def test_facts_are_known_before_the_weights(bundle_folder):
    facts = BundleFacts.read(bundle_folder)
    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    assert facts == BundleFacts.of(pipe)
    assert facts.styles == ("general", "night")


def test_settings_are_shown_but_a_foreign_style_is_refused(bundle_folder):
    controls = Controls(BundleFacts.read(bundle_folder))
    with gr.Blocks():
        controls.build()
    shown = controls.show(GenerationSettings(steps=3, seed=9), keep_seed=False)
    steps, scale = controls.fields["steps"], controls.fields["text_scale"]
    assert controls.fields["seed"] not in shown and shown[steps] == 3
    far = controls.show(GenerationSettings(steps=300, text_scale=20.5))
    assert (far[steps]["value"], far[steps]["maximum"]) == (300, 300)
    assert (far[scale]["value"], far[scale]["minimum"], far[scale]["maximum"]) == (20.5, 0, 20.5)
    with pytest.raises(ValueError, match="'nir' is not in this bundle, which has general, night"):
        controls.show(GenerationSettings(style="nir"))


@pytest.mark.parametrize("own", [False, True])
def test_a_dropped_result_restores_its_settings(bundle_folder, pipe, conditioning, tmp_path, own):
    page = Page(Model.ready(pipe))
    page.build()
    tab, session, path = page.translate, Session(), tmp_path / "dropped.png"
    settings = pipe.default_settings.replace(steps=7, seed=11)
    output = pipe.generate(conditioning, settings)
    output.save(path) if own else output.image.save(path)
    changes = tab.restore.receive({"photo": str(path), "session": session})
    assert session.restored is own
    if own:
        assert changes[tab.photo] is None and changes[tab.settings["steps"]] == 7
        assert changes[tab.settings["seed"]] == 11 and changes[tab.caption] == output.caption
    else:
        assert tab.photo not in changes


def test_the_phases_come_one_by_one_and_can_be_stopped(pipe, photo_file):
    page = Page(Model.ready(pipe))
    page.build()
    tab, session = page.translate, Session()
    settings = {**pipe.default_settings.replace(seed=5).to_dict(), "new_seed": False, "use_map": True}
    data = {**settings, "session": session, "photo": str(photo_file), "caption": "a tree", "use_caption": True}
    data |= {"own_map": None, "request": session.begin()}
    changes = list(tab.phases.show(data))
    assert "Done: 2 of 2 phases" in changes[-1][tab.status]
    galleries = [change[tab.phases.gallery] for change in changes if tab.phases.gallery in change]
    assert [[label for _, label in gallery] for gallery in galleries] == [
        [], ["phase 2"], ["phase 2", "phase 3, night"]
    ]  # fmt: skip
    told = []
    for change in tab.phases.show(data):
        told.append(change)
        session.stop()
        session.begin()  # of another tab
    assert "Stopped: 0 of 2 phases" in told[-1][tab.status]
    [change] = tab.phases.show(data)  # stopped before its turn came
    assert "Stopped before the first step" in change[tab.status]
    work = tab.phases.show({**data, "request": session.request})
    next(work)
    session.forget()
    assert not list(work)  # its photo is gone


def test_the_last_picture_can_be_had_with_16_bits(pipe, conditioning):
    page = Page(Model.ready(pipe))
    page.build()
    session = Session()
    with pytest.raises(ValueError, match="translate a photo first"):
        page.translate.deep({"session": session})
    output = pipe.generate(conditioning, pipe.default_settings.replace(seed=1))
    session.add(conditioning.image, output)
    update = page.translate.deep({"session": session})
    with Image.open(update["value"]) as picture:
        assert picture.mode == "I;16" and picture.size == output.image.size
    assert update["visible"] and restore(update["value"]).settings.seed == 1
