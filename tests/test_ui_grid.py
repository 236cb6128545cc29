"""The Grid tab, driven over HTTP with the real pipeline behind it, and its handlers where a click is needed."""

import csv
import re
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from diffv2ir.axes import AXES
from diffv2ir.metadata import restore
from diffv2ir.ui import Model
from diffv2ir.ui.grid import GridTab
from diffv2ir.ui.page import Page
from diffv2ir.ui.session import Session


@pytest.fixture
def client(served, tmp_path) -> Client:
    return Client(served[0].local_url, verbose=False, download_files=tmp_path / "downloads")


def axes(columns=("text_scale", "0, 3"), rows=("none", ""), sheets=("none", "")):
    pairs = {"columns": columns, "rows": rows, "sheets": sheets}
    return {
        f"{name}_{part}": pair[number] for name, pair in pairs.items() for number, part in enumerate(("axis", "values"))
    }


def wish(photo_file, **changes):
    return {
        "photo": handle_file(photo_file), "steps": 2, "seed": 3, "caption": "a tree", **axes(), **changes,
    }  # fmt: skip


def grid(client, photo_file, **changes):
    return client.predict(api_name="/grid", **wish(photo_file, **changes))


def cell_of(archive, name, folder):
    with zipfile.ZipFile(archive) as opened:
        opened.extract(name, folder)
    return folder / name


def test_a_grid_gives_cells_a_picture_and_files(client, served, photo_file, photo, tmp_path):
    status, gallery, sheet, files = grid(
        client, photo_file, **axes(("text_scale", "0, 3"), ("style", "night, general"), ("map", "on, off"))
    )
    assert "Done: 8 of 8 cells" in status
    assert [item["caption"] for item in gallery][:3] == [
        "s_T 0, style night, map on", "s_T 3, style night, map on", "s_T 0, style general, map on",
    ]  # fmt: skip
    assert [Path(file).name for file in files] == ["diffv2ir-grid.png", "diffv2ir-cells.zip", "diffv2ir-grid.csv"]
    assert Image.open(sheet).size == Image.open(files[0]).size
    path = cell_of(files[1], "2-1-2.png", tmp_path)
    pipe = served[1]
    settings = pipe.default_settings.replace(steps=2, seed=3, text_scale=3, style="night")
    assert restore(path).settings == settings
    expected = pipe.generate(pipe.prepare(photo, "a tree", False), settings)
    assert Image.open(path).tobytes() == expected.image.tobytes()
    rows = list(csv.DictReader(Path(files[2]).open(encoding="utf-8")))
    assert [row["cell"] for row in rows][:3] == ["1-1-1", "2-1-1", "1-2-1"] and {row["seed"] for row in rows} == {"3"}


def test_the_default_axes_need_no_words(client, photo_file):
    status, gallery, *_ = client.predict(photo=handle_file(photo_file), steps=1, api_name="/grid")
    assert "Done: 9 of 9 cells" in status and len(gallery) == 9


def test_the_model_writes_a_caption_that_is_left_out(client, served, photo_file, photo):
    *_, files = client.predict(photo=handle_file(photo_file), steps=1, **axes(), api_name="/grid")
    rows = list(csv.DictReader(Path(files[2]).open(encoding="utf-8")))
    assert rows[0]["caption"] == served[1].prepare(photo).caption != ""


def test_the_real_picture_marks_the_best(client, photo_file, tmp_path):
    *_, files = grid(client, photo_file, **axes(("seed", "1, 2")))
    real = cell_of(files[1], "2.png", tmp_path)
    for measure, number in (("ssim", "SSIM 1.000, best"), ("psnr", "PSNR inf dB, best")):
        _, gallery, _, files = grid(
            client, photo_file, real=handle_file(real), measure=measure, **axes(("seed", "1, 2"))
        )
        assert gallery[1]["caption"] == f"seed 2: {number}" and "best" not in gallery[0]["caption"]
        rows = list(csv.DictReader(Path(files[2]).open(encoding="utf-8")))
        assert [row["best"] for row in rows] == ["", measure]


def test_cost_is_told_before_and_progress_after(client, photo_file):
    job = client.submit(api_name="/grid", **wish(photo_file, visible_scale=1, segmentation_scale=1))
    job.result()
    told = [update[0] for update in job.outputs() if isinstance(update[0], str)]
    # s_T 0: one prediction; s_T 3: two. Two steps each.
    assert "2 cells, 6 evaluations of the UNet; the time is unknown until" in told[0]
    assert any("Cell 2 of 2, step 1 of 2, about" in line for line in told)
    again = client.submit(api_name="/grid", **wish(photo_file))
    again.result()
    assert re.search(r"evaluations of the UNet, about \d+ s<", again.outputs()[0][0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"photo": None}, "Choose a photo"),
        (axes(("text_scale", "much")), "s_T: 'much' is neither a number nor a range"),
        (axes(("steps", "1"), ("steps", "2")), "steps is on two axes"),
        (axes(("seed", "1-65")), "65 cells are more than the 64"),
        ({"caption": " ", **axes(("caption", "on, off"))}, "there is none to switch on"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(client, photo_file, changes, words):
    with pytest.raises(Exception, match=words):
        grid(client, photo_file, **changes)


@pytest.fixture
def tab(served, photo_file):
    """The tab of a page of its own, and the values its handlers would get."""
    page = Page(Model.ready(served[1]))
    made = []
    build = GridTab.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridTab, "build", lambda self: (made.append(self), build(self))[1])
        page.build()
    [tab] = made
    values = {name: component.value for name, component in tab.inputs.items()}
    session = Session()
    given = {"session": session, "request": session.begin(), "photo": str(photo_file), "steps": 2, "seed": 3}
    given["caption"] = "a tree"
    return tab, {**values, **given, **axes(("text_scale", "0, 1, 2, 3"))}


def test_a_stop_keeps_the_finished_cells(tab, served, monkeypatch):
    tab, data = tab
    session, calls, generate = data["session"], [], served[1].generate_batch

    def generate_and_stop(*arguments):
        calls.append(1)
        if len(calls) == 3:
            session.stop()
        return generate(*arguments)

    monkeypatch.setattr(served[1], "generate_batch", generate_and_stop)
    *_, (status, gallery, sheet, files) = tab.draw(data)
    assert "Stopped: 2 of 4 cells" in status and len(gallery) == 2
    with zipfile.ZipFile(files[1]) as archive:
        assert archive.namelist() == ["1.png", "2.png"]
    assert len(Path(files[2]).read_text(encoding="utf-8").splitlines()) == 3


def test_a_grid_stopped_at_once_gives_none(tab):
    tab, data = tab
    events = tab.draw(data)
    next(events)
    data["session"].stop()
    *_, (status, gallery, sheet, files) = events
    assert "Stopped before the first cell" in status and (gallery, sheet, files) == ([], None, None)


def test_a_grid_heeds_a_stop_since_its_click_and_no_other(tab):
    tab, data = tab
    data["session"].stop()  # while it waits for the model
    newer = {**data, "request": data["session"].begin()}
    assert "Stopped before the first cell" in list(tab.draw(data))[-1][0]
    assert "Done: 4 of 4" in list(tab.draw(newer))[-1][0]


def test_programs_are_told_all_axes(served):
    endpoint = served[0].get_api_info()["named_endpoints"]["/grid"]
    assert not [name for name in AXES if not re.search(rf"\b{name}\b", endpoint["description"])]
    assert "request" not in [parameter["parameter_name"] for parameter in endpoint["parameters"]]


def test_a_click_takes_the_cell_over(tab):
    tab, data = tab
    list(tab.draw({**data, **axes(("style", "night, general"), ("map", "off, on"), ("caption", "off"))}))
    translate = tab.page.translate
    # Cells are drawn style by style; the gallery has them in their places.
    changes = tab.take_over({"session": data["session"], "chosen": 1})
    assert changes[translate.settings["style"]] == "general" and changes[translate.settings["seed"]] == 3
    assert changes[translate.use_map] is False and changes[translate.use_caption] is False
    assert changes[translate.controls.new_seed] is False
    assert "style general" in changes[tab.status] and "map off" in changes[tab.status]
    with pytest.raises(ValueError, match="draw a grid first"):
        tab.take_over({"session": Session(), "chosen": 0})


def test_a_session_keeps_only_small_pictures(tab):
    tab, data = tab
    list(tab.draw(data))
    assert all(result.output.levels is None and result.output.segmentation is None for result in data["session"].grid)


def test_a_new_seed_is_one_for_all_cells(tab):
    tab, data = tab
    list(tab.draw({**data, "new_seed": True}))
    seeds = {result.output.seed for result in data["session"].grid}
    assert len(seeds) == 1 and seeds != {3}


def test_the_cost_follows_the_axes(tab):
    tab, data = tab
    assert "4 cells, 32 evaluations" not in tab.tell_cost({**data, "use_map": False})
    assert "1 cell, 2 evaluations of the UNet" in tab.tell_cost(
        {**data, "use_caption": False, "use_map": False, "visible_scale": 1, **axes(("seed", "1"))}
    )
    assert "s_T: &#x27;x&#x27; is neither a number nor a range" in tab.tell_cost({**data, **axes(("text_scale", "x"))})
    # Before there is a photo there is no caption yet, which is no fault.
    assert "2 cells" in tab.tell_cost({**data, "photo": None, "caption": "", **axes(("caption", "on, off"))})


def test_a_chosen_axis_comes_with_values(tab):
    tab, data = tab
    assert tab.suggest({**data, "axis": "style"}) == "general, night"
    assert tab.suggest({**data, "axis": "seed"}) == "3, 4, 5"
    assert tab.suggest({**data, "axis": "none"}) == ""


@pytest.mark.parametrize(
    ("wanted", "columns"),
    [
        (axes(("seed", "1-5"), ("text_scale", "0, 1")), 5),
        (axes(("seed", "1-12"), ("map", "on, off")), 12),
        (axes(("seed", "1-3")), 3),
        (axes(("seed", "1-12")), 8),  # no rows that could be torn apart
    ],
)
def test_the_gallery_has_a_column_for_each_value_of_x(tab, wanted, columns):
    tab, data = tab
    assert tab.lay_out({**data, **wanted})["columns"] == columns
    # A number would be a window of that height, and none one of about half the screen: both cut the last row.
    assert tab.gallery.height == "max-content"


def test_the_status_asks_for_a_photo_only_while_there_is_none(tab):
    tab, data = tab
    assert "Choose a photo" in tab.greet({**data, "photo": None}) and "Press Start" in tab.greet(data)
    list(tab.draw(data))
    assert tab.greet(data) == gr.skip()
