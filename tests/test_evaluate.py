"""Scores per camera of a bundle on a small dataset."""

import dataclasses
import json
import statistics

import numpy as np
import pytest
from make_data import make_manifest_dataset
from PIL import Image, ImageFilter

from diffv2ir.data import read_examples
from diffv2ir.efficientnet import has_frechet_weights
from diffv2ir.evaluate import (
    EVALUATION_SIZE,
    OVERALL,
    central_square,
    example_seed,
    save_sheet,
    score,
    spread,
    translate_examples,
)
from diffv2ir.metrics import psnr, ssim
from diffv2ir.settings import MAX_SEED, GenerationSettings

SETTINGS = GenerationSettings(steps=1, resolution=64, sampler="ddim", seed=3)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Three pairs: two of the camera "even", one of "odd"."""
    folder = make_manifest_dataset(tmp_path_factory.mktemp("data") / "set", pairs=4, infrared=0)
    return read_examples(folder, "train", ["pairs"])


@pytest.fixture(scope="module")
def translations(_loaded, examples):
    _loaded.set_style("general")
    return translate_examples(_loaded, examples, SETTINGS, batch_size=2)


@pytest.fixture(scope="module")
def report(translations):
    return score(translations, SETTINGS)


def test_translations(translations, examples):
    assert [translation.example for translation in translations] == examples
    for translation in translations:
        assert translation.infrared.mode == translation.real.mode == "L"
        for image in (translation.visible, translation.infrared, translation.real):
            assert image.size == (EVALUATION_SIZE, EVALUATION_SIZE)
        assert isinstance(translation.caption, str)
    expected = central_square(Image.open(examples[0].infrared).convert("L"))
    assert np.array_equal(np.asarray(translations[0].real), np.asarray(expected))


def test_batch_size_changes_nothing(pipe, examples, translations):
    done = []
    others = translate_examples(pipe, examples, SETTINGS, batch_size=3, progress=lambda *counts: done.append(counts))
    assert done == [(3, 3)]
    for one, other in zip(translations, others, strict=True):
        assert np.array_equal(np.asarray(one.infrared), np.asarray(other.infrared))


def test_each_is_asked_for_in_the_band_of_its_camera(pipe, examples, monkeypatch):
    asked = []
    generate = pipe.generate_batch

    def noted(conditionings, settings, **options):
        asked.append((len(conditionings), pipe.band(settings)))
        return generate(conditionings, settings, **options)

    monkeypatch.setattr(pipe, "generate_batch", noted)
    near = [dataclasses.replace(examples[0], band="NIR"), dataclasses.replace(examples[1], band="MWIR"), examples[2]]
    assert [translation.example for translation in translate_examples(pipe, near, SETTINGS)] == near
    assert asked == [(1, "NIR"), (2, "LWIR")]  # those of one band together
    asked.clear()
    translate_examples(pipe, near, SETTINGS.replace(band="LWIR"))
    assert {band for _, band in asked} == {"LWIR"}


def test_an_example_scores_the_same_among_others(pipe, examples, translations):
    (alone,) = translate_examples(pipe, examples[2:], SETTINGS)
    assert np.array_equal(np.asarray(alone.infrared), np.asarray(translations[2].infrared))


def test_scores_are_means_per_camera(translations, report):
    assert list(report.model) == list(report.visible_gray) == list(report.constant) == ["even", "odd", OVERALL]
    assert [report.model[camera].count for camera in report.model] == [2, 1, 3]
    groups = {"even": [0, 2], "odd": [1], OVERALL: [0, 1, 2]}
    for camera, rows in groups.items():
        chosen = [translations[row] for row in rows]
        ours, gray = report.model[camera], report.visible_gray[camera]
        assert ours.psnr == pytest.approx(statistics.fmean(psnr(t.infrared, t.real) for t in chosen))
        assert ours.ssim == pytest.approx(statistics.fmean(ssim(t.infrared, t.real) for t in chosen))
        assert gray.psnr == pytest.approx(statistics.fmean(psnr(t.visible.convert("L"), t.real) for t in chosen))
        assert (ours.frechet_efficientnet_lite0 is not None) == (has_frechet_weights() and len(rows) > 1)


def test_perfect_translations(translations):
    perfect = [dataclasses.replace(translation, infrared=translation.real) for translation in translations]
    report = score(perfect, SETTINGS)
    assert report.model[OVERALL].ssim == pytest.approx(1)
    if has_frechet_weights():
        assert report.model[OVERALL].frechet_efficientnet_lite0 == pytest.approx(0, abs=1e-3)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["model"][OVERALL]["psnr"] is None  # infinite, which JSON does not know
    assert "inf" in report.table()


def test_table_and_json(report):
    pictures, tasks, note = report.table().split("\n\n")
    methods = ("model", "visible_gray", "constant")
    wanted = [(camera, method) for camera in ("even", "odd", OVERALL) for method in methods]
    lines = pictures.splitlines()
    assert [(line.split()[0], line.split()[2]) for line in lines[1:]] == wanted
    overall = report.model[OVERALL]
    assert lines[-3].split()[1:4] == ["3", "model", f"{overall.psnr:.2f}"]
    assert f"{overall.ssim:.3f}" in lines[-3] and f"({overall.intervals['psnr'][0]:.2f} to" in lines[-3]
    assert [line.split()[2] for line in tasks.splitlines()[1:5]] == ["real", *methods]
    assert "not comparable with FID" in note
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert GenerationSettings.from_dict(values["settings"]) == SETTINGS
    assert values["model"]["even"]["psnr"] == report.model["even"].psnr
    assert values["visible_gray"]["odd"]["count"] == 1 and "256 px" in values["protocol"]


def test_intervals_hold_the_mean_and_images_are_kept(translations, report):
    names = ["psnr", "ssim", "edge_f1"]
    names += ["perceptual_efficientnet_lite0", "kernel_efficientnet_lite0"] if has_frechet_weights() else []
    for camera, value in report.model.items():
        for name in names:
            if value.values[name] is None:
                assert value.count == 1 and name not in value.intervals
                continue
            low, high = value.intervals[name]
            assert low <= value.values[name] <= high, (camera, name)
            assert low < high or value.count < 3
        assert (value.intervals["psnr"][0] < value.intervals["psnr"][1]) == (value.count > 1)
    rows = report.to_dict()["images"]
    for t in translations:
        row = rows[t.example.id]
        assert (row["source"], row["psnr"]) == (t.example.source, psnr(t.infrared, t.real))
        assert row["ssim"] == ssim(t.infrared, t.real) and row["person_contrast"] is None
    gray = report.to_dict()["baseline_images"]["visible_gray"]
    assert [row["edge_f1_visible"] for row in gray.values()] == [1.0] * 3


@pytest.mark.skipif(not has_frechet_weights(), reason="the feature network is not installed")
def test_distances_of_sets_and_pictures(translations):
    """Of blurred real images: small, grow with the blur, and the features of a batch are those of its pictures."""
    few, many = (
        score([dataclasses.replace(t, infrared=t.real.filter(ImageFilter.GaussianBlur(b))) for t in translations], None)
        for b in (1, 6)
    )
    for name in ("frechet", "kernel", "perceptual"):
        name += "_efficientnet_lite0"
        assert few.model[OVERALL].values[name] < many.model[OVERALL].values[name], name
    assert few.constant[OVERALL].values["frechet_efficientnet_lite0"] is None
    assert few.constant[OVERALL].values["perceptual_efficientnet_lite0"] > 0.1
    assert few.to_dict()["settings"] is None and "fid" not in few.to_dict()["model"][OVERALL]


def test_people_are_counted(translations):
    """One of three captions names somebody: the real infrared's hottest region is theirs."""
    captions = ["two discs", "A woman at night", "a manhole"]
    named = [
        dataclasses.replace(t, example=dataclasses.replace(t.example, caption=text), infrared=t.real)
        for t, text in zip(translations, captions, strict=True)
    ]
    report = score(named, SETTINGS)
    assert [value.people for value in report.model.values()] == [0, 1, 1]
    overall = report.to_dict()["model"][OVERALL]
    assert overall["person_error"] == 0 and overall["person_contrast"] > 0 and overall["person_sign"] == 1
    assert overall["person_contrast"] == report.to_dict()["real"][OVERALL]["person_contrast"]
    assert report.to_dict()["constant"][OVERALL]["person_sign"] == 0
    assert report.model["even"].values["person_contrast"] is None
    people = report.table().split("\n\n")[2].splitlines()
    assert [line.split()[:3] for line in people[1:3]] == [["odd", "1", "real"], ["odd", "1", "model"]]


def test_the_constant_is_the_mean_of_its_camera(translations, report):
    groups = {"even": [0, 2], "odd": [1]}
    for camera, rows in groups.items():
        real = [np.asarray(translations[row].real) for row in rows]
        level = np.full_like(real[0], round(np.mean(real)))
        assert report.constant[camera].psnr == pytest.approx(
            statistics.fmean(psnr(level, image.copy()) for image in real)
        )
        assert report.constant[camera].frechet_efficientnet_lite0 is None


def test_conditions_can_be_left_out(pipe, examples, translations):
    one = translate_examples(pipe, examples[1:2], SETTINGS, without=("caption", "map"))[0]
    assert one.caption == "" and one.segmentation.getcolors() == [(EVALUATION_SIZE**2, (0, 0, 0))]
    assert not np.array_equal(np.asarray(one.infrared), np.asarray(translations[1].infrared))


def test_sheet(translations, tmp_path):
    save_sheet(translations, tmp_path / "sheet.png", tile=20, blocks=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        # Two scenes a row of four tiles each and a margin between; two rows below the titles.
        assert sheet.size == (2 * 4 * 20 + 12, 22 + 2 * 20)
        last = sheet.crop((3 * 20, 22 + 20, 4 * 20, 22 + 40))  # "real" of the third scene
    expected = translations[2].real.convert("RGB").resize((20, 20), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(last), np.asarray(expected))
    save_sheet(translations[:1], tmp_path / "one.png", tile=20, blocks=3)
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.size == (80, 42)
    save_sheet([dataclasses.replace(translations[0], segmentation=None)], tmp_path / "bare.png", tile=20)
    with Image.open(tmp_path / "bare.png") as sheet:
        assert sheet.size == (60, 42)


def test_deep_and_turned_images_are_read_as_a_person_sees_them(pipe, examples, tmp_path):
    """16-bit infrared is scaled, and the orientation of a photo is applied."""
    visible, real = Image.open(examples[0].visible), Image.open(examples[0].infrared)
    exif = Image.Exif()
    exif[0x0112] = 3
    visible.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "visible.png", exif=exif)
    Image.fromarray(np.asarray(real).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    example = dataclasses.replace(examples[0], visible=tmp_path / "visible.png", infrared=tmp_path / "deep.png")
    one, other = translate_examples(pipe, [example, examples[0]], SETTINGS)
    for name in ("visible", "real", "infrared"):
        assert np.array_equal(np.asarray(getattr(one, name)), np.asarray(getattr(other, name)))


def test_half_an_example_is_refused(pipe, examples):
    for missing in ("visible", "infrared"):
        with pytest.raises(ValueError, match="scene0: an evaluation needs"):
            translate_examples(pipe, [dataclasses.replace(examples[0], **{missing: None})], SETTINGS)


def test_central_square():
    image = Image.new("L", (30, 10))
    image.paste(255, (10, 0, 20, 10))
    assert np.asarray(central_square(image, 10)).min() == 255
    assert central_square(image.transpose(Image.Transpose.ROTATE_90), 7).size == (7, 7)


def test_spread(examples):
    numbers = list(range(10))
    assert spread(numbers, 3) == [0, 3, 6] and spread(numbers, 10) == spread(numbers, None) == spread(numbers, 99)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        spread(numbers, 0)


def test_example_seeds(examples):
    seeds = {example_seed(example, 0) for example in examples}
    assert len(seeds) == 3
    assert all(0 <= example_seed(example, MAX_SEED) <= MAX_SEED for example in examples)
    assert example_seed(examples[0], 1) == (example_seed(examples[0], 0) + 1) % (MAX_SEED + 1)
