"""The Translate and History tabs: what is restored, stopped, taken away and said, without a browser."""

import dataclasses
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image

from diffv2ir.axes import suggestion
from diffv2ir.metadata import restore
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui import BundleFacts, Model
from diffv2ir.ui.common import WORKING, sentence, status
from diffv2ir.ui.controls import Controls
from diffv2ir.ui.downloads import file_of
from diffv2ir.ui.grid import GridTab
from diffv2ir.ui.history import _number
from diffv2ir.ui.page import Page
from diffv2ir.ui.requests import telling
from diffv2ir.ui.session import Session
from diffv2ir.ui.viewer import INFRARED, PALETTE, Viewer
from diffv2ir.vlum.prompt import HEAT_PHRASES


@pytest.fixture
def page(pipe) -> Page:
    page = Page(Model.ready(pipe))
    page.build()
    return page


@pytest.fixture
def data(pipe, photo_file):
    return {
        **pipe.default_settings.replace(seed=5).to_dict(),
        "session": Session(), "photo": str(photo_file), "caption": "a tree", "own_map": None, "new_seed": False,
        "use_map": True, "use_caption": True, "view": INFRARED, "palette": "ironbow",
        "request": 0,
    }  # fmt: skip


def add(session, pipe, conditioning, **changes):
    return session.add(conditioning.image, pipe.generate(conditioning, pipe.default_settings.replace(**changes)))


def begun(tab, session) -> dict:
    """What the browser sends along once a button was pressed."""
    return {"request": tab._begin(session)[tab.request]}


def merged(changes) -> dict:
    """What the page shows after all these updates."""
    skip = gr.skip()
    return {key: value for change in changes for key, value in change.items() if value != skip}


def test_a_restored_picture_is_made_again(page, pipe, photo, data, tmp_path):
    tab, session = page.translate, data["session"]
    output = pipe.generate(pipe.prepare(photo, "a car", False), pipe.default_settings.replace(seed=3))
    output.save(tmp_path / "saved.png")
    changes = tab.restore.receive({**data, "photo": str(tmp_path / "saved.png")})
    assert changes[tab.use_map] is False and changes[tab.use_caption] is True
    assert changes[tab.controls.new_seed] is False
    restored = {**data, "photo": None}
    assert not any(tab.caption in change for change in (*tab.understand(restored), *tab.translate(restored)))
    read = merged(tab.understand(data))
    assert tab.caption not in read and read[tab.map] is not None
    list(tab.translate({**data, "caption": "a car", "use_map": False, "seed": 3}))
    assert session.shown.output.image.tobytes() == output.image.tobytes()
    assert merged(tab.understand(data))[tab.caption] == pipe.prepare(photo).caption  # kept once


def test_all_but_the_seed_leaves_a_new_seed_on(page, pipe, conditioning, data, tmp_path):
    pipe.generate(conditioning, pipe.default_settings.replace(seed=3)).save(tmp_path / "saved.png")
    changes = page.translate.restore.restore_file({**data, "file": tmp_path / "saved.png", "what": "all but the seed"})
    assert page.translate.controls.new_seed not in changes and page.translate.settings["seed"] not in changes


def test_history_gives_map_and_caption_back_and_tells_them_apart(page, pipe, photo, data):
    tab, session = page.translate, data["session"]
    for segmentation in (None, False, Image.new("RGB", photo.size, "red")):
        add(session, pipe, pipe.prepare(photo, "a car", segmentation), seed=1)
    chosen = [page.history.use_settings({**data, "chosen": number}) for number in (1, 2, 3)]
    assert [changes[tab.use_map] for changes in chosen] == [True, False, True]
    assert chosen[0][tab.own_map] is None
    with Image.open(chosen[2][tab.own_map]) as own:
        assert own.tobytes() == session.shown.output.segmentation.tobytes()
    assert session.keeps_caption
    pinned, _, _ = page.history._pin(0)({**data, "chosen": 1, "pinned": (None, None)})
    _, sides, table = page.history._pin(1)({**data, "chosen": 2, "pinned": pinned})
    assert len(sides) == 2 and "| map | model | none |" in table


def test_history_holds_on_to_the_picture_not_its_place(page, pipe, conditioning, data):
    session = data["session"]
    first = add(session, pipe, conditioning, steps=1)
    chosen = _number(session, SimpleNamespace(index=0))
    for _ in range(3):
        add(session, pipe, conditioning, steps=1)
    assert page.history._chosen({**data, "chosen": chosen}) == first
    session.results.popleft()
    with pytest.raises(ValueError, match="picture 1 is no longer kept"):
        page.history._chosen({**data, "chosen": chosen})


def test_history_offers_the_saved_files(page, pipe, conditioning):
    session = Session()
    result = add(session, pipe, conditioning, steps=1, seed=4)
    [(path, label)] = page.history.items(session)
    assert restore(path) == result.output.record and label == "#1 general · seed 4 · 1 step"
    assert page.history.items(session)[0][0] == path
    assert path.endswith("/infrared_general_4.png") and file_of(result, 16).endswith("/infrared_general_4_16bit.png")
    named = session.add(conditioning.image, result.output, "my street")
    assert file_of(named).endswith("/my street_infrared_general_4.png")


def test_nothing_is_left_of_a_photo_taken_away(page, data):
    tab, session = page.translate, data["session"]
    list(tab.translate(data))
    changes = tab._clear(session)
    assert changes[tab.infrared] is None and changes[tab.tuning.difference] is None and changes[tab.caption] == ""
    with pytest.raises(ValueError, match="translate a photo first"):
        tab.deep(data)
    assert tab.viewer._switch(session, PALETTE, "ironbow")[0] == gr.skip()
    assert list(tab.translate({**data, "photo": None})) == [{tab.infrared: gr.skip()}]  # it had been on its way
    with pytest.raises(ValueError, match="choose a photo first"):
        list(tab.translate({**data, "photo": None, **begun(tab, session)}))


@pytest.mark.parametrize("work", ["translate", "chip"])
def test_a_running_job_shows_nothing_of_a_photo_taken_away(page, data, work):
    tab, session = page.translate, data["session"]
    run = tab._vary("at night") if work == "chip" else tab.translate
    job = run({**data, "steps": 200})
    next(job)
    tab._clear(session)
    assert not merged(job) and not session.results and session.shown is None


def test_another_photo_ends_the_work_on_the_one_before(page, data):
    tab, session = page.translate, data["session"]
    job = tab.translate({**data, "steps": 200})
    next(job)
    told = tab.restore.receive(data)
    assert "Waiting for the model" in told[tab.status] and told[tab.infrared] is None
    assert not merged(job) and not session.results
    assert not merged(tab.understand(data))  # was waiting until now
    assert merged(tab.translate({**data, "request": told[tab.request]}))[tab.infrared]


def test_a_stop_ends_what_was_asked_before_it_and_nothing_after(page, data):
    tab, session = page.translate, data["session"]
    data |= begun(tab, session)
    session.stop()  # while it waits for the model
    assert list(tab.understand(data)) == [{tab.infrared: gr.skip()}]
    assert "Stopped" in merged(tab.translate(data))[tab.status]
    data |= begun(tab, session)
    reading = tab.understand(data)
    next(reading)
    session.stop()  # while the photo is read
    list(reading)
    assert "Stopped" in merged(tab.translate(data))[tab.status] and not session.results
    data |= begun(tab, session)
    assert "Done" in merged(tab.translate(data))[tab.status] and len(session.results) == 1


def test_a_stop_ends_both_pictures_of_a_chip(page, data):
    tab, session = page.translate, data["session"]
    job = tab._vary("at night")({**data, "steps": 50})
    next(job)
    session.stop()
    assert "Stopped" in merged(job)[tab.status] and len(session.results) == 1


def test_a_chip_names_both_sides(page, data):
    tab = page.translate
    changes = merged(tab._vary("at night")(data))
    assert changes[tab.viewer.slider]["label"] == "unchanged | at night"
    assert merged(tab.translate(data))[tab.viewer.slider]["label"] == "Photo | infrared"


def test_an_error_takes_the_place_of_the_work_in_the_status_line(page, data, tmp_path):
    broken = tmp_path / "note.png"
    broken.write_text("not a picture")
    told = []
    with pytest.raises(gr.Error, match="^'note.png: not an image"):
        for change in telling(page.translate.understand, page.translate.status)({**data, "photo": str(broken)}):
            told.append(change[page.translate.status])
    assert "Reading" in told[0] and "note.png: not an image" in told[-1]


def test_what_belonged_to_the_last_picture_goes_with_it(page, data):
    tab = page.translate
    changes = merged(tab.translate(data))
    assert changes[tab.tuning.difference] is None and changes[tab.tuning.verdict] == ""
    assert changes[tab.deep_file]["visible"] is False


def test_the_status_line_is_short_and_the_work_in_a_fold(page, data):
    line = merged(page.translate.translate({**data, "style": "night"}))[page.translate.status]
    told, details = line.split("<details>")
    assert "Done in " in told and " s · seed 5 · style night<" in told and "evaluations" not in told
    assert "12 evaluations of the UNet" in details


def test_the_page_says_at_once_that_it_waits():
    page = Page(Model(BundleFacts("x", GenerationSettings(), ("general",)), lambda: None))
    demo = page.build()
    assert "still loading" in page.translate._begin(Session())[page.translate.status]
    at_once = {call.fn.__name__ for call in demo.fns.values() if call.fn and not call.queue}
    assert {"_begin", "begin", "stop", "_clear", "_switch", "_number"} <= at_once


def test_an_example_brings_its_style_and_takes_it_along(page, data, monkeypatch):
    tab, session = page.translate, data["session"]
    monkeypatch.setattr(tab, "_example_photos", [("a.png", "night", "A"), ("b.png", "general", "B")])
    changes = tab.example({**data, "number": 0, "style": "general"})
    assert changes[tab.photo] == "a.png" and changes[tab.settings["style"]] == "night"
    assert tab.settings["steps"] not in changes and tab.settings["text_scale"] not in changes
    tab.example({**data, "number": 0, "style": "night"})
    assert tab.restore.receive({**data, "style": "night"})[tab.settings["style"]] == "general"
    assert tab.settings["style"] not in tab.restore.receive({**data, "style": "night"})  # chosen by the visitor
    tab.example({**data, "number": 1, "style": "night"})
    assert tab.settings["style"] not in tab.restore.receive({**data, "style": "night"})  # chosen since
    assert session.example_style is None


def test_a_map_of_ones_own_goes_with_the_photo_that_it_was_for(page, data, photo, tmp_path):
    tab, session = page.translate, data["session"]
    assert tab.own_map not in tab.take_in(session)  # it may have been there first
    own = tmp_path / "map.png"
    photo.save(own)
    merged(tab.translate({**data, "own_map": str(own), **begun(tab, session)}))
    changes = tab.take_in(session)
    assert changes[tab.own_map] is None and changes[tab.phases.gallery] is None
    assert tab.own_map not in tab.take_in(session)


def test_presets_that_save_nothing_are_not_offered(bundle_folder):
    facts = BundleFacts.read(bundle_folder)
    for steps, offered in ((100, {"fast", "balanced"}), (20, {"fast"}), (1, set())):
        controls = Controls(dataclasses.replace(facts, defaults=facts.defaults.replace(steps=steps)))
        names = {name for _, name in controls._preset_choices(controls.defaults)}
        assert names == {"bundle", "paper", "paper-code", "custom"} | offered


def test_the_grid_begins_around_the_settings_of_the_bundle(page):
    tab = GridTab(page)
    with gr.Blocks():
        tab.build()
    axes = {axis.value: values.value for axis, values in tab.axes.values()}
    defaults = page.facts.defaults
    assert axes == {
        "text_scale": suggestion("text_scale", defaults), "visible_scale": suggestion("visible_scale", defaults),
        "none": "",
    }  # fmt: skip


def test_the_page_offers_the_words_that_the_bundle_knows(page):
    facts = BundleFacts("x", GenerationSettings(), ("general",), phrases=("at dusk",))
    other = Page(Model(facts, lambda: None))
    other.build()
    assert list(other.translate.chips) == ["at dusk"] and list(page.translate.chips) == list(HEAT_PHRASES)


def test_a_running_line_gives_way_to_another():
    assert WORKING in status("Waiting …", working=True) and WORKING in status("Step 1", 1, 2)
    assert WORKING not in status("Done")


def test_a_moved_slider_is_no_preset_any_more(bundle_folder):
    facts = BundleFacts.read(bundle_folder)
    facts = dataclasses.replace(facts, defaults=facts.defaults.replace(steps=50))
    controls = Controls(facts)
    with gr.Blocks():
        controls.build()
    values = {**facts.defaults.to_dict(), "seed": 3, "preset": "bundle"}
    assert controls.name_preset(values)["value"] == "bundle"
    moved = controls.name_preset({**values, "steps": 7})
    assert moved["value"] == "custom" and ("Custom · 21 evaluations", "custom") in moved["choices"]
    assert (
        controls.name_preset({**values, "resolution": 5})
        == controls.name_preset({**values, "steps": None})
        == gr.skip()
    )
    fast = {**values, "sampler": "dpmpp_2m", "steps": 10}
    assert controls.name_preset({**fast, "preset": "fast"})["value"] == "fast"
    assert all(value == gr.skip() for value in controls._apply_preset("custom"))


def test_leaving_the_palette_field_does_not_switch_the_picture():
    viewer, session = Viewer(), Session()
    with gr.Blocks():
        viewer.build()
    assert viewer._choose_palette(session, "ironbow", "ironbow") == (gr.skip(),) * 4
    _, bar, view, used = viewer._choose_palette(session, "ironbow", "another")
    assert bar["visible"] and (view, used) == (PALETTE, "ironbow")
    assert not viewer._switch(session, INFRARED, "ironbow")[1]["visible"]


@pytest.mark.parametrize(
    "text, told",
    [
        ("/tmp/x/text.jpg: not an image", "text.jpg: not an image."),
        ("my photo.jpg: not an image", "my photo.jpg: not an image."),
        ("visible_scale must be at least 0", "visible_scale must be at least 0."),
        ("steps must be at least 1", "steps must be at least 1."),
        ("choose a photo first", "Choose a photo first."),
    ],
)
def test_names_are_not_capitalised(text, told):
    assert sentence(text) == told
