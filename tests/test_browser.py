"""The page in a real browser: what a person sees and does. Screenshots go to `screenshots/`.

Needs Debian's Chromium and Playwright; without them these tests are skipped, unless DIFFV2IR_REQUIRE_BROWSER is set.
"""

import dataclasses
import io
import os
import re
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
from make_data import draw_scene
from PIL import Image

from diffv2ir.metadata import restore, save_png

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("DIFFV2IR_REQUIRE_BROWSER"))
SCREENSHOTS = Path(__file__).resolve().parent.parent / "screenshots"
SECONDS = 1000

if REQUIRED:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM:
        pytest.skip("Chromium is not installed", allow_module_level=True)

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, served):
    yield from open_page(browser, served[0].local_url)


def open_page(browser, url, width=1280, height=1100, **options):
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
    context.set_default_timeout(60 * SECONDS)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("button", name="Translate", exact=True).wait_for()
    yield page
    context.close()


@pytest.fixture
def photos(tmp_path):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"scene{number}.png")
        draw_scene(number)[0].save(paths[-1])
    return paths


def shoot(page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def wait_for_status(page, pattern: str) -> str:
    """The status line of the open tab once it matches."""
    handle = page.wait_for_function(
        "(pattern) => [...document.querySelectorAll('.status')].filter((line) => line.offsetParent)"
        ".map((line) => line.innerText.trim()).find((line) => RegExp(pattern).test(line))",
        arg=pattern,
    )
    return handle.json_value()


def upload(page, path) -> str:
    page.locator("#photo input[type=file]").first.set_input_files(str(path))
    return wait_for_status(page, "^Done")


def held_up(pipe, monkeypatch) -> tuple[threading.Event, threading.Event]:
    """An event for when a picture is begun, and one that lets it go on."""
    reached, go, generate = threading.Event(), threading.Event(), pipe.generate

    def wait_and_generate(*arguments, **options):
        reached.set()
        go.wait(60)
        return generate(*arguments, **options)

    monkeypatch.setattr(pipe, "generate", wait_and_generate)
    return reached, go


def unfold(page, name: str) -> None:
    page.get_by_role("button", name=name).click()


def set_number(page, label: str, value) -> None:
    """Type into the number field of a slider, again if the fold it is in was still mounting and reset it."""
    box = page.get_by_role("spinbutton", name=re.compile(re.escape(label))).first
    for _ in range(20):
        box.fill(str(value))
        box.press("Tab")
        page.wait_for_timeout(300)
        if box.input_value() == str(value):
            return
    raise AssertionError(f"{label!r} does not keep the value {value}")


def caption_box(page):
    return page.get_by_label(re.compile("Caption\\s*Written by the model"))


def picture(page, label: str) -> Image.Image:
    """The picture in the field of this label, as the browser got it."""
    source = page.locator(".block", has=page.get_by_text(label, exact=True)).locator("img").first.get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body()))


def test_upload_gives_caption_map_and_picture(page, photos):
    assert re.search(r"seed \d+ · style general", upload(page, photos[0]))
    assert caption_box(page).input_value()
    size = Image.open(photos[0]).size
    assert picture(page, "Segmentation map").size == size
    assert picture(page, "Infrared").size == size
    assert page.locator("#viewer img").count() >= 2
    shoot(page, "desktop")


def test_a_slider_does_not_caption_again(page, served, photos, monkeypatch):
    upload(page, photos[1])
    asked = []
    generate = served[1].captioner.generate
    monkeypatch.setattr(served[1].captioner, "generate", lambda *a, **k: asked.append(1) or generate(*a, **k))
    unfold(page, "Guidance, sampling and style")
    before = picture(page, "Infrared").tobytes()
    set_number(page, "Visible scale", 4)
    page.get_by_role("button", name="Translate", exact=True).click()
    details = page.locator(".status details", has_text="16 evaluations")  # four branches, where it had been three
    details.wait_for()
    assert not asked
    assert picture(page, "Infrared").tobytes() != before


def test_stop_keeps_what_was_reached(page, photos):
    upload(page, photos[0])
    unfold(page, "Guidance, sampling and style")
    set_number(page, "Steps", 200)
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "Step")
    page.keyboard.press("Escape")
    assert re.search(r"^Stopped after step \d+ of 200", wait_for_status(page, "^Stopped"))
    assert picture(page, "Infrared").size == Image.open(photos[0]).size


def test_a_saved_picture_restores_its_settings(page, photos, tmp_path):
    upload(page, photos[0])
    unfold(page, "Guidance, sampling and style")
    set_number(page, "Visible scale", 3)
    caption_box(page).fill("a tall tree")
    page.get_by_role("button", name="Translate", exact=True).click()
    prompt = "turn the visible image of a tall tree into infrared"
    page.wait_for_function("(text) => document.querySelector('.prompt textarea').value === text", arg=prompt)
    image = page.locator(".block", has=page.get_by_text("Infrared", exact=True)).locator("img").first
    saved = tmp_path / "result.png"
    saved.write_bytes(page.request.get(image.get_attribute("src")).body())
    record = restore(saved)
    assert record.settings.visible_scale == 3
    # As the command line takes it: beyond the page's slider.
    record = dataclasses.replace(record, settings=record.settings.replace(visible_scale=20))
    save_png(Image.open(saved), saved, record)
    page.reload()
    page.locator("#photo input[type=file]").first.set_input_files(str(saved))
    wait_for_status(page, "restored")
    assert caption_box(page).input_value() == "a tall tree"
    unfold(page, "Guidance, sampling and style")
    # The fold mounts its sliders when it is opened, and their values come a moment later.
    playwright.expect(page.get_by_role("spinbutton", name=re.compile("Visible scale")).first).to_have_value("20")
    upload(page, photos[0])


def test_the_keys_belong_to_the_open_tab(page, photos):
    upload(page, photos[0])
    unfold(page, "Guidance, sampling and style")
    set_number(page, "Steps", 200)
    page.get_by_role("tab", name="Grid").click()
    page.get_by_role("tabpanel").filter(visible=True).first.get_by_label("Values of the columns").fill("1, 2")
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "^Cell 1 of")
    page.get_by_role("tab", name="Translate").click()
    page.get_by_label("Palette", exact=False).last.click()
    page.keyboard.press("Escape")  # closes the list alone
    page.get_by_role("tab", name="Grid").click()
    page.wait_for_timeout(1000)
    assert wait_for_status(page, "^Cell|^Stopped").startswith("Cell")
    page.keyboard.press("Escape")
    wait_for_status(page, "^Stopped")


def test_leaving_the_palette_keeps_the_view(page, photos):
    upload(page, photos[0])
    assert page.locator(".colour-bar").count() == 0
    page.get_by_label("Palette", exact=False).last.focus()
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    assert page.get_by_role("radio", name="Infrared").is_checked()


def test_a_photo_taken_away_takes_its_picture_along(page, photos):
    upload(page, photos[0])
    page.locator("#photo").get_by_role("button", name=re.compile("Clear|Remove")).click()
    wait_for_status(page, "^Choose a photo to begin")
    page.get_by_role("radio", name="Segmentation").check()
    page.wait_for_timeout(1000)
    assert page.locator("#viewer img").count() == 0


def test_the_status_is_in_sight(browser, served, photos):
    for page in open_page(browser, served[0].local_url, 1400, 900):
        upload(page, photos[0])
        assert page.locator(".status").filter(visible=True).first.bounding_box()["y"] < 900
        chips = page.get_by_role("button", name="at night").bounding_box()
        viewer = page.locator("#viewer").bounding_box()
        assert chips["x"] < viewer["x"]
        shoot(page, "desktop-1400")


def test_the_view_is_switched(page, photos):
    upload(page, photos[2])
    for view in ("Palette", "Segmentation", "Visible"):
        before = page.locator("#viewer img").last.evaluate("image => image.src")
        page.get_by_role("radio", name=view).check()
        page.wait_for_function(
            "(before) => [...document.querySelectorAll('#viewer img')].some((image) => image.src === before) === false",
            arg=before,
        )
        shoot(page, f"view-{view.lower()}")


def test_a_cell_of_a_grid_gives_its_settings(page, photos):
    upload(page, photos[0])
    page.get_by_role("tab", name="Grid").click()
    grid = page.get_by_role("tabpanel").filter(visible=True).first
    grid.get_by_label("Values of the columns").fill("0.5, 3")
    grid.get_by_label("Values of the rows").fill("1-2")
    wait_for_status(page, "^4 cells, ")
    shoot(page, "grid-cost")
    grid.get_by_role("button", name="Start").click()
    wait_for_status(page, "^Done: 4 of 4 cells")
    cells = grid.locator("button.gallery-item, .thumbnail-item, .grid-container button").filter(visible=True)
    assert cells.count() == 4
    shoot(page, "grid")
    cells.nth(1).click()
    wait_for_status(page, "now has: .*s_T 3,")
    page.get_by_role("tab", name="Translate").click()
    unfold(page, "Guidance, sampling and style")
    assert page.get_by_role("spinbutton", name=re.compile("Text scale")).first.input_value() == "3"


def test_a_batch_names_the_broken_file_and_zips_the_rest(page, photos, tmp_path):
    broken = tmp_path / "note.png"
    broken.write_text("not a picture")
    page.get_by_role("tab", name="Batch").click()
    batch = page.get_by_role("tabpanel").filter(visible=True).first
    batch.locator("input[type=file]").first.set_input_files([str(path) for path in (*photos, broken)])
    batch.get_by_role("button", name="Translate all").click()
    wait_for_status(page, "^Done: 3 of 4 photos translated, 1 failed")
    assert "note.png" in batch.inner_text()
    shoot(page, "batch")
    with page.expect_download() as download:
        batch.locator('a[href$=".zip"]').first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
    assert {name for name in names if name.endswith("_ir.png")} == {f"{path.stem}_ir.png" for path in photos}


def test_a_stop_reaches_what_waits_for_the_model(browser, served, photos, monkeypatch):
    reached, go = held_up(served[1], monkeypatch)
    for other in open_page(browser, served[0].local_url):
        other.locator("#photo input[type=file]").first.set_input_files(str(photos[0]))
        assert reached.wait(60)
        for page in open_page(browser, served[0].local_url):
            page.get_by_role("tab", name="Batch").click()
            batch = page.get_by_role("tabpanel").filter(visible=True).first
            batch.locator("input[type=file]").first.set_input_files([str(path) for path in photos])
            batch.get_by_role("button", name="Translate all").click()
            wait_for_status(page, "^Waiting for the model")
            with page.expect_response(re.compile("/run/")):
                batch.get_by_role("button", name="Stop").click()
            wait_for_status(page, "^Stopping …")
            go.set()
            wait_for_status(page, "^Stopped: 0 of 3 photos")


def test_who_comes_when_the_queue_is_full_is_told(page, served, photos, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(served[0]._queue, "max_size", 0)
        page.locator("#photo input[type=file]").first.set_input_files(str(photos[2]))
        wait_for_status(page, "Not begun")
    page.get_by_role("button", name="Translate", exact=True).click()
    wait_for_status(page, "^Done")


def test_what_is_asked_for_while_it_works_is_done_after_it(page, photos, served, monkeypatch):
    upload(page, photos[0])
    unfold(page, "Guidance, sampling and style")
    reached, go = held_up(served[1], monkeypatch)
    translate = page.get_by_role("button", name="Translate", exact=True)
    translate.click()
    assert reached.wait(60)
    caption_box(page).fill("a tall tree")
    translate.click()
    page.wait_for_timeout(500)
    go.set()
    prompt = "turn the visible image of a tall tree into infrared"
    page.wait_for_function("(text) => document.querySelector('.prompt textarea').value === text", arg=prompt)


@pytest.mark.parametrize("name, width, scheme", [("phone", 390, "light"), ("phone-dark", 390, "dark")])
def test_it_fits_a_phone(browser, served, photos, name, width, scheme):
    for page in open_page(
        browser, f"{served[0].local_url}?__theme={scheme}", width, 844, is_mobile=True, has_touch=True
    ):
        upload(page, photos[0])
        shoot(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        order = [page.locator(f"#{name}").bounding_box()["y"] for name in ("photo", "translate", "viewer")]
        assert sorted(order) == order and page.get_by_role("button", name="at night").bounding_box()["y"] > order[-1]
        button = page.get_by_role("button", name="Translate", exact=True).bounding_box()
        assert button["x"] >= 0 and button["x"] + button["width"] <= width


def test_dark_theme_is_dark(browser, served):
    for page in open_page(browser, f"{served[0].local_url}?__theme=dark"):
        colour = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
        assert max(int(value) for value in re.findall(r"\d+", colour)[:3]) < 80
        shoot(page, "desktop-dark")


def test_sessions_do_not_see_each_other(browser, served, photos):
    for first in open_page(browser, served[0].local_url):
        for second in open_page(browser, served[0].local_url):
            upload(first, photos[0])
            assert second.locator("#viewer img").count() == 0
            upload(second, photos[1])
            assert picture(first, "Infrared").tobytes() != picture(second, "Infrared").tobytes()
            for page in (first, second):
                page.get_by_role("tab", name="History").click()
                assert (
                    page.get_by_role("tabpanel").locator("button.thumbnail-item, .grid-container button").count() == 1
                )


def test_a_broken_file_is_one_sentence(page, tmp_path):
    broken = tmp_path / "note.png"
    broken.write_text("not a picture")
    page.locator("#photo input[type=file]").first.set_input_files(str(broken))
    message = page.get_by_role("alert").or_(page.locator(".toast-body")).first
    message.wait_for()
    assert "not an image" in message.inner_text()
    assert str(tmp_path) not in message.inner_text()
