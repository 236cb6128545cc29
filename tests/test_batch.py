"""Many photos: what is reported, what is written, and where it stops."""

import csv
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffv2ir import imaging
from diffv2ir.batch import PhotoResult, ResultsZip, output_stems, translate_photos
from diffv2ir.metadata import restore


@pytest.fixture
def settings(pipe):
    return pipe.default_settings.replace(steps=2, seed=3)


@pytest.fixture
def photos(photo, tmp_path):
    """Two photos of one name with a broken file between them."""
    folder = tmp_path / "secret"
    (folder / "other").mkdir(parents=True)
    photo.save(folder / "street.png")
    (folder / "broken.png").write_text("no picture")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "other" / "street.png")
    return [folder / "street.png", folder / "broken.png", folder / "other" / "street.png"]


def test_a_broken_file_is_reported_and_the_rest_goes_on(pipe, photos, settings):
    results = list(translate_photos(pipe, photos, settings))
    assert [(result.number, result.name, result.status) for result in results] == [
        (0, "street.png", "done"),
        (1, "broken.png", "failed"),
        (2, "street.png", "done"),
    ]
    assert results[1].error == "not an image, or of an unknown format" and results[1].output is None
    expected = pipe(photos[2], settings)
    assert results[2].output.image.tobytes() == expected.image.tobytes()
    assert results[0].error == "" and results[0].seconds > 0


@pytest.mark.parametrize("name", ["gone.png", "cut.png", "folder"])
def test_no_error_names_a_folder(pipe, photo, settings, tmp_path, name):
    photo.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    (tmp_path / "folder").mkdir()
    (result,) = translate_photos(pipe, [tmp_path / name], settings)
    assert result.status == "failed" and result.error
    assert str(tmp_path) not in result.error and tmp_path.name not in result.error


def test_too_many_pixels_fail_and_as_many_as_allowed_pass(pipe, settings, photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # both are what `limit_pixels` sets
    monkeypatch.setattr(imaging, "_max_pixels", imaging.pixel_limit())
    for limit, error in ((6300, ""), (6299, "has 90x70 pixels, more than"), (1000, "has more than")):
        imaging.limit_pixels(limit)
        (result,) = translate_photos(pipe, photos[:1], settings)
        assert result.error.startswith(error) and (result.status == "done") == (not error)


def test_each_photo_draws_its_own_seed(pipe, settings, photos):
    results = translate_photos(pipe, [photos[0], photos[2]], settings.replace(seed=None))
    seeds = [result.output.seed for result in results]
    assert len(set(seeds)) == 2


def test_a_drawn_seed_gives_the_caption_too(pipe, settings, photos):
    """Of a bundle whose captions are drawn: with the seed that is told comes the same picture."""
    drawn = settings.replace(captioning="sampled", seed=None)
    made = next(translate_photos(pipe, photos[:1], drawn)).output
    again = next(translate_photos(pipe, photos[:1], drawn.replace(seed=made.seed))).output
    assert (again.caption, again.image.tobytes()) == (made.caption, made.image.tobytes())
    once = pipe(photos[0], drawn)
    again = pipe(photos[0], once.settings)
    assert (again.caption, again.image.tobytes()) == (once.caption, once.image.tobytes())


def test_a_style_that_is_not_there_is_no_matter_of_a_photo(pipe, settings, photos):
    with pytest.raises(ValueError, match="style"):
        list(translate_photos(pipe, photos, settings.replace(style="absent")))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((0, 0), []),
        ((0, 1), ["stopped"]),
        ((2, 0), ["done", "failed"]),
        ((2, 1), ["done", "failed", "stopped"]),
        ((9, 9), ["done", "failed", "done"]),
    ],
)
def test_it_stops_between_photos_and_within_one(pipe, settings, photos, last, expected):
    results = list(translate_photos(pipe, photos, settings, callback=lambda number, step, steps: (number, step) < last))
    assert [result.status for result in results] == expected
    assert all((result.output is None) == (result.status != "done") for result in results)


def test_it_stops_between_understanding_and_denoising(pipe, settings, photos, monkeypatch):
    calls = []
    monkeypatch.setattr(pipe, "generate", lambda *arguments: pytest.fail("denoised after the stop"))

    def callback(number, step, steps):
        calls.append((number, step, steps))
        return len(calls) < 2

    (result,) = translate_photos(pipe, photos, settings, callback=callback)
    assert result.status == "stopped" and calls == [(0, 0, 2), (0, 0, 2)]


def test_equal_stems_get_numbers(tmp_path):
    photos = [tmp_path / name for name in ("a/x.png", "b/X.jpg", "x-2.png", "x_ir.png")]
    assert output_stems(photos) == ["x", "X-2", "x-2-2", "x_ir"]
    assert output_stems([tmp_path / "x.png", tmp_path / "x_ir.png"], tmp_path) == ["x-2", "x_ir"]


def rows_of(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read("results.csv").decode("utf-8"))))


def test_zip_holds_pictures_and_a_row_for_each_photo(pipe, photos, settings, tmp_path):
    with ResultsZip(tmp_path / "all.zip", photos, settings) as results:
        kept = []
        for result in translate_photos(pipe, photos, settings, caption="a tree, in öl"):
            results.add(result)
            kept.append(result)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert sorted(archive.namelist()) == sorted(
            ["street_ir.png", "street_map.png", "street-2_ir.png", "street-2_map.png", "results.csv"]
        )
        archive.extractall(tmp_path / "all")
        rows = rows_of(archive)
    assert [(row["file"], row["status"], row["infrared"]) for row in rows] == [
        ("street.png", "done", "street_ir.png"),
        ("broken.png", "failed", ""),
        ("street.png", "done", "street-2_ir.png"),
    ]
    assert rows[0]["caption"] == "a tree, in öl" and rows[1]["error"].startswith("not an image")
    assert (rows[0]["seed"], rows[0]["steps"], rows[0]["sampler"], rows[0]["map"]) == (
        "3",
        "2",
        "dpmpp_2m",
        "street_map.png",
    )
    assert restore(tmp_path / "all" / "street-2_ir.png").settings.to_dict() == settings.to_dict()
    for stem, result in (("street", kept[0]), ("street-2", kept[2])):
        written = np.asarray(Image.open(tmp_path / "all" / f"{stem}_ir.png"))
        assert np.array_equal(written, np.asarray(result.output.image))
        drawn = Image.open(tmp_path / "all" / f"{stem}_map.png").convert("RGB")
        assert drawn.tobytes() == result.output.segmentation.convert("RGB").tobytes()


def test_zip_is_complete_after_an_error(pipe, photos, settings, tmp_path):
    with pytest.raises(RuntimeError, match="power"):
        with ResultsZip(tmp_path / "some.zip", photos, settings) as results:
            for result in translate_photos(pipe, photos, settings, segmentation=False):
                results.add(result)
                raise RuntimeError("power")
    with zipfile.ZipFile(tmp_path / "some.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["results.csv", "street_ir.png"]
        assert len(rows_of(archive)) == 1


def test_a_stopped_photo_leaves_no_picture(settings, tmp_path):
    with ResultsZip(tmp_path / "none.zip", ["a.png"], settings) as results:
        results.add(PhotoResult(0, "a.png", "stopped", None, "", 1.0))
    with zipfile.ZipFile(tmp_path / "none.zip") as archive:
        assert archive.namelist() == ["results.csv"]
        assert rows_of(archive)[0]["status"] == "stopped"
