"""The Batch and Video tabs, driven over HTTP with the real pipeline behind them, and how long work is followed."""

import csv
import io
import threading
import time
import zipfile

import cv2
import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from diffv2ir import imaging
from diffv2ir.metadata import restore
from diffv2ir.ui import Limits, Model
from diffv2ir.ui import batch as batch_tab
from diffv2ir.ui import video as video_tab
from diffv2ir.ui.background import Progress, follow, settle
from diffv2ir.ui.page import Page
from diffv2ir.ui.session import Session
from diffv2ir.video import ClipLimits


@pytest.fixture
def client(served, tmp_path) -> Client:
    return Client(served[0].local_url, verbose=False, download_files=tmp_path / "downloads")


@pytest.fixture
def photos(photo, tmp_path):
    photo.save(tmp_path / "street.png")
    (tmp_path / "broken.png").write_text("no picture")
    photo.rotate(180).save(tmp_path / "tree.jpg")
    return [tmp_path / name for name in ("street.png", "broken.png", "tree.jpg")]


@pytest.fixture
def clip_file(tmp_path):
    path = tmp_path / "walk.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 8, (96, 64))
    for number in range(4):
        writer.write(np.full((64, 96, 3), 40 * number, np.uint8))
    writer.release()
    return path


def files(paths):
    return [handle_file(path) for path in paths]


def batch(client, photos, **changes):
    wish = {"photos": photos and files(photos), "folder": None, "steps": 1, "sampler": "ddim", "seed": 3, **changes}
    return client.predict(api_name="/batch", **wish)


def video(client, clip, **changes):
    wish = {"clip": clip and handle_file(clip), "steps": 1, "sampler": "ddim"}
    return client.predict(api_name="/video", **{**wish, **changes})


def test_batch_gives_a_zip_and_reports_the_broken_file(client, photos, photo, tmp_path):
    status, table, gallery, archive = batch(client, photos)
    assert "Done: 2 of 3 photos translated, 1 failed" in status
    assert [row[:2] for row in table["data"]] == [
        ["street.png", "done"],
        ["broken.png", "failed: Not an image, or of an unknown format."],
        ["tree.jpg", "done"],
    ]
    assert len(gallery) == 2 and {item["caption"] for item in gallery} == {"street.png", "tree.jpg"}
    with zipfile.ZipFile(archive) as opened:
        names = sorted(opened.namelist())
        opened.extractall(tmp_path / "all")
        rows = list(csv.DictReader(io.StringIO(opened.read("results.csv").decode())))
    assert names == ["results.csv", "street_ir.png", "street_map.png", "tree_ir.png", "tree_map.png"]
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert Image.open(tmp_path / "all" / "tree_ir.png").size == photo.size
    assert restore(tmp_path / "all" / "street_ir.png").settings.to_dict()["seed"] == 3
    assert "/" not in rows[1]["error"]


def test_batch_uses_the_settings_of_the_page(client, photos, tmp_path):
    archive = batch(client, photos[:1], use_map=False, style="night", new_seed=True)[-1]
    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist()) == ["results.csv", "street_ir.png"]
        opened.extractall(tmp_path)
    settings = restore(tmp_path / "street_ir.png").settings.to_dict()
    assert settings["style"] == "night" and settings["seed"] != 3


def test_batch_and_video_use_no_caption_where_the_page_does_not(client, photos, clip_file, tmp_path):
    _, table, _, archive = batch(client, photos[:1], use_caption=False)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
        [row] = csv.DictReader(io.StringIO(opened.read("results.csv").decode()))
    assert table["data"][0][2] == row["caption"] == restore(tmp_path / "street_ir.png").caption == ""
    assert row["map"] == "street_map.png"
    for caption in ("", "a car"):
        status = video(client, clip_file, clip_caption=caption, every=4, use_caption=False)[0]
        assert "Done: 1 frame" in status and "Caption" not in status


def test_the_table_of_a_batch_names_what_was_used(client, served, photos, photo, tmp_path):
    rows = {}
    for use_map in (True, False):
        with zipfile.ZipFile(batch(client, photos[:1], use_map=use_map)[-1]) as opened:
            [rows[use_map]] = csv.DictReader(io.StringIO(opened.read("results.csv").decode()))
            assert (rows[use_map]["map"] in opened.namelist()) == use_map
    assert rows[True]["caption"] == rows[False]["caption"] == served[1].prepare(photo).caption != ""
    assert rows[False]["map"] == ""


def test_batch_takes_the_pictures_of_a_folder(client, photos, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    status, table, *_ = batch(client, None, folder=files([*photos[::2], tmp_path / "notes.txt"]))
    assert [row[0] for row in table["data"]] == ["street.png", "tree.jpg"]
    assert "1 other file of the folder skipped" in status


def test_batch_tells_how_far_it_is(client, photos):
    job = client.submit(files(photos), None, steps=2, api_name="/batch")
    job.result()
    told = [update[0] for update in job.outputs()]
    assert "Photo 1 of 3" in told[0] and any("Photo 3 of 3, step 2 of 2, about" in line for line in told)
    assert all("<progress" in line for line in told[:-1])
    assert job.outputs()[0][1]["data"][1][1] == "waiting"


def stop_at(number, session, pipe, monkeypatch):
    """Press Stop while the pipeline generates for the given time, counted from 1."""
    calls, generate = [], pipe.generate

    def generate_and_stop(*arguments):
        calls.append(1)
        if len(calls) == number:
            session.stop()
        return generate(*arguments)

    monkeypatch.setattr(pipe, "generate", generate_and_stop)


@pytest.fixture
def tab_data(served):
    """Makes a tab and the values its handler would get."""
    page = Page(Model.ready(served[1]))
    page.build()

    def make(tab, **changes):
        tab.page, session = page, Session()
        inputs = batch_tab.shared_inputs(page)
        values = {name: component.value for name, component in inputs.items()}
        return session, {**values, "session": session, "request": session.begin(), "steps": 2, "seed": 3, **changes}

    return make


def test_a_stopped_batch_gives_the_zip_of_what_is_finished(tab_data, served, photos, monkeypatch):
    tab = batch_tab.BatchTab(None)
    session, data = tab_data(tab, photos=[str(path) for path in photos], folder=None)
    stop_at(2, session, served[1], monkeypatch)  # the broken photo is none of them
    for event in tab.translate_all(data):
        status, table, _, archive = event
        if isinstance(archive, str):
            with zipfile.ZipFile(archive) as opened:
                names = sorted(opened.namelist())
    assert "Stopped: 1 of 3 photos translated, 1 failed" in status
    assert names == ["results.csv", "street_ir.png", "street_map.png"] and table[2][1] == "stopped"


def test_a_batch_heeds_a_stop_since_its_click_and_no_other(tab_data, photos):
    tab = batch_tab.BatchTab(None)
    session, data = tab_data(tab, photos=[str(photos[0])], folder=None)
    session.stop()  # while it waits for the model
    newer = {**data, "request": session.begin()}
    assert "Stopped: 0 of 1" in list(tab.translate_all(data))[-1][0]
    assert "Done: 1 of 1" in list(tab.translate_all(newer))[-1][0]


def test_what_is_stopped_does_not_revive(tab_data, photos, clip_file):
    tab = batch_tab.BatchTab(None)
    session, data = tab_data(tab, photos=[str(photos[0])], folder=None)
    batch = tab.translate_all(data)
    next(batch)
    session.stop()
    session.begin()  # of another tab
    assert "Stopped: 0 of 1" in list(batch)[-1][0]
    tab = video_tab.VideoTab(None)
    session, data = tab_data(tab, clip=str(clip_file), clip_caption="", every=1)
    session.stop()
    session.begin()
    assert "before the first frame" in list(tab.translate_clip(data))[-1][0]


def test_another_photo_of_the_first_tab_ends_no_batch(tab_data, photos):
    tab = batch_tab.BatchTab(None)
    session, data = tab_data(tab, photos=[str(photos[0])], folder=None)
    batch = tab.translate_all(data)
    next(batch)
    session.forget()
    assert "Done: 1 of 1" in list(batch)[-1][0]


def test_a_click_is_numbered_at_once_and_an_error_takes_the_place_of_the_waiting(served):
    page = Page(Model.ready(served[1]))
    calls = page.build().fns.values()
    clicks = [call for call in calls if call.fn and call.fn.__name__ == "begin"]
    assert len(clicks) == 3  # grid, batch, video
    for click in clicks:
        session, (number, line) = Session(), click.outputs
        [work] = [call for call in calls if call.trigger_after == click._id]
        assert not click.queue and work.inputs[-1] is number
        request, told = click.fn(session)
        assert request == session.request == 1 and "Waiting for the model" in told
        values = {page.session: session, number: request}
        answer = work.fn(*(values.get(component, component.value) for component in work.inputs))
        assert "⚠️ Choose" in next(answer)[line]
        with pytest.raises(gr.Error, match="^'Choose"):
            next(answer)


def test_a_stopped_clip_gives_the_finished_frames(tab_data, served, clip_file, monkeypatch):
    tab = video_tab.VideoTab(None)
    session, data = tab_data(tab, clip=str(clip_file), clip_caption="", every=1)
    stop_at(3, session, served[1], monkeypatch)
    for event in tab.translate_clip(data):
        status, preview, film = event
        if isinstance(film, str):
            frames = int(cv2.VideoCapture(film).get(cv2.CAP_PROP_FRAME_COUNT))
    assert "Stopped after frame 2 of 4" in status and frames == 2 and preview.size == (96, 64)


def test_a_clip_stopped_at_once_gives_none(tab_data, clip_file):
    tab = video_tab.VideoTab(None)
    session, data = tab_data(tab, clip=str(clip_file), clip_caption="", every=1)
    events = tab.translate_clip(data)
    next(events)
    session.stop()
    status, preview, film = list(events)[-1]
    assert "before the first frame" in status and preview is None and film is None


def test_video_gives_an_infrared_clip(client, clip_file):
    status, preview, film = video(client, clip_file, clip_caption="a car", every=2, seed=5)
    assert "Done: 2 frames" in status and "Seed 5" in status and "Caption: a car." in status
    assert Image.open(preview).size == (96, 64)
    path = film["video"] if isinstance(film, dict) else film
    reader = cv2.VideoCapture(path)
    assert (reader.get(cv2.CAP_PROP_FRAME_COUNT), reader.get(cv2.CAP_PROP_FPS)) == (2, 4)
    assert path.endswith("walk_ir.mp4")


def test_video_shows_each_frame(client, clip_file):
    job = client.submit(handle_file(clip_file), "", 1, steps=2, api_name="/video")
    job.result()
    told = [update[0] for update in job.outputs() if isinstance(update[0], str)]
    assert any("Frame 1 of 4" in line for line in told) and any("Frame 4 of 4, about" in line for line in told)


def test_nothing_chosen_is_one_sentence(client):
    with pytest.raises(Exception, match="Choose photos or a folder first"):
        batch(client, None)
    with pytest.raises(Exception, match="Choose a clip first"):
        video(client, None)


def test_too_many_photos_are_refused_with_the_limit(client, served, photos, monkeypatch):
    monkeypatch.setattr(served[0].page, "limits", Limits(photos=2))
    with pytest.raises(Exception, match="These are 3 photos and a batch takes at most 2"):
        batch(client, photos)


def test_too_many_pixels_fail_with_the_limit(client, photos, monkeypatch):
    monkeypatch.setattr(imaging, "_max_pixels", 1000)
    _, table, _, archive = batch(client, photos[:1])
    assert table["data"][0][1] == "failed: Has 90x70 pixels, more than the 1,000 that are allowed; make it smaller."


def test_the_tab_tells_the_limit_of_the_server(served, monkeypatch):
    monkeypatch.setattr(imaging, "_max_pixels", 1_200_000)
    blocks = Page(Model.ready(served[1])).build().blocks.values()
    told = [block.value for block in blocks if isinstance(block, gr.Markdown) and block.value]
    assert any("photos of up to 1,200,000 pixels" in text for text in told)


def test_a_clip_tells_minutes_as_a_batch_does(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 60.0)
    assert "Frame 2 of 11, about 10 min left" in video_tab._status(Progress(2, 0, 4), 11, started=0.0)
    assert "Frame 2 of 2, about 60 s left" in video_tab._status(Progress(2, 0, 4), 2, started=0.0)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (ClipLimits(frames=3), "at most 3 are translated"),
        (ClipLimits(seconds=0.25), r"at most 0\.25 s"),
        (ClipLimits(pixels=1000), r"at most 0\.001 million pixels"),
    ],
)
def test_a_clip_beyond_a_limit_is_refused_with_it(client, served, clip_file, limits, words, monkeypatch):
    monkeypatch.setattr(served[0].page, "limits", Limits(clip=limits))
    with pytest.raises(Exception, match=words):
        video(client, clip_file)


def test_no_clip_names_no_path(client, tmp_path):
    path = tmp_path / "note.mp4"
    path.write_text("not a clip")
    with pytest.raises(Exception, match="This is no video of a known kind") as error:
        video(client, path)
    assert "/" not in str(error.value)


def test_follow_gives_all_events_in_order():
    def work(tell):
        for number in range(3):
            assert tell(("told", number))
            yield number

    assert list(follow(work)) == [("told", 0), 0, ("told", 1), 1, ("told", 2), 2]


def test_follow_raises_what_the_work_raises():
    def work(tell):
        yield 1
        raise ValueError("broken")

    events = follow(work)
    assert next(events) == 1
    with pytest.raises(ValueError, match="broken"):
        next(events)


def test_work_ends_when_nobody_follows():
    ended = threading.Event()

    def work(tell):
        while tell("on"):
            time.sleep(0.001)
        ended.set()
        yield "end"

    events = follow(work)
    next(events)
    events.close()
    settle()
    assert ended.is_set()
    assert list(follow(work, cancelled=lambda: True)) == ["on", "end"]
