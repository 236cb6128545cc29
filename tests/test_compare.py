"""The comparison of all methods on a miniature dataset: pictures, table, sheet."""

import csv
import functools
import json
import math
import statistics

import numpy as np
import pytest
from make_data import make_manifest_dataset
from PIL import Image

from benchmarks import compare
from benchmarks.baselines import report
from benchmarks.baselines.pictures import read_scenes
from benchmarks.baselines.pix2pix import Pix2Pix
from benchmarks.baselines.regression import Regression
from diffv2ir.evaluate import OVERALL, Score
from diffv2ir.metrics import psnr, ssim


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of "even" and "odd"; three of them are for the test, one of a camera never trained on."""
    folder = make_manifest_dataset(tmp_path_factory.mktemp("data") / "set", pairs=8, infrared=0)
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for record in records[5:]:
        record["split"] = "test"
    records[7]["source"] = "new"
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture(scope="module")
def compared(data, bundle_folder, tmp_path_factory):
    """The folder of a comparison of all methods, regression and pix2pix trained for a moment."""
    run = tmp_path_factory.mktemp("run")
    (run / "trainings" / "ip2p").mkdir(parents=True)
    (run / "trainings" / "ip2p" / "result").symlink_to(bundle_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffv2ir.scores.has_frechet_weights", lambda: False)  # half of the time
        patch.setitem(compare.LEARNERS, "pix2pix", functools.partial(Pix2Pix, width=2))
        patch.setitem(compare.LEARNERS, "regression", functools.partial(Regression, widths=(8, 8)))
        patch.setattr(Regression, "batch_size", 1)
        arguments = ["--data", str(data), "--run", str(run), "--bundle", str(bundle_folder), "--device", "cpu"]
        assert compare.main([*arguments, "--minutes", "1e-5", "--sheet-scenes", "2"]) == 0
    return run


def test_every_method_has_a_picture_of_every_scene(compared, data):
    scenes = read_scenes(data, "test")
    assert len(scenes) == 3
    for method in compare.METHODS:
        for scene in scenes:
            with Image.open(compared / method / f"{scene.example.id}.png") as picture:
                assert (picture.mode, picture.size) == ("L", (256, 256)), method
    for scene in scenes:
        with Image.open(compared / "visible_gray" / f"{scene.example.id}.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(scene.visible.convert("L")))
    ours, ip2p = (np.asarray(Image.open(compared / name / "scene6.png")) for name in ("ours", "ip2p"))
    assert not np.array_equal(ours, ip2p)  # the same bundle here, without caption and map


def test_the_tables_hold_every_method_for_every_camera(compared, data):
    rows = list(csv.DictReader((compared / "table.csv").open()))
    cameras = ["even", "new", "odd", OVERALL]
    wanted = [(camera, method) for camera in cameras for method in compare.METHODS]
    assert [(row["camera"], row["method"]) for row in rows] == wanted
    scenes = read_scenes(data, "test")
    for method in compare.METHODS:
        made = [Image.open(compared / method / f"{scene.example.id}.png") for scene in scenes]
        (row,) = [row for row in rows if (row["camera"], row["method"]) == (OVERALL, method)]
        for name, metric in (("psnr", psnr), ("ssim", ssim)):
            mean = statistics.fmean(metric(image, scene.real) for image, scene in zip(made, scenes, strict=True))
            assert float(row[name]) == pytest.approx(mean, abs=1e-4)
            assert float(row[f"{name}_low"]) <= mean <= float(row[f"{name}_high"])
    lines = (compared / "table.md").read_text().splitlines()
    assert [tuple(line.split("|")[n].split()[0] for n in (1, 2)) for line in lines[2 : 2 + len(wanted)]] == wanted
    against = [line.split("|")[1].strip() for line in lines if "%" in line][1:]
    assert [name for name in against if name in compare.METHODS] == [m for m in compare.METHODS if m != report.OURS]
    record = json.loads((compared / "scores.json").read_text())
    assert set(record["methods"]["pix2pix"]["images"]) == {scene.example.id for scene in scenes}


def test_the_sheet_has_a_column_for_each_method(compared):
    with Image.open(compared / "sheet.jpg") as sheet:
        assert sheet.size == (84 + 192 * (len(compare.METHODS) + 2), 24 + 192 * 2)


def test_a_trained_method_is_loaded(compared, data, bundle_folder, monkeypatch):
    monkeypatch.setattr("diffv2ir.scores.has_frechet_weights", lambda: False)
    monkeypatch.setattr(compare, "train", None)
    before = (compared / "pix2pix" / "scene6.png").read_bytes()
    flags = ["--data", str(data), "--bundle", str(bundle_folder), "--device", "cpu", "--methods", "pix2pix"]
    assert compare.main([*flags, "--run", str(compared)]) == 0
    assert (compared / "pix2pix" / "scene6.png").read_bytes() == before


def test_what_cannot_be_compared_is_one_line(compared, data, bundle_folder, tmp_path, capsys):
    flags = ["--data", str(data), "--bundle", str(bundle_folder), "--device", "cpu", "--methods"]
    for method, option in (("regression", "--minutes"), ("ip2p", "--start")):
        assert compare.main([*flags, method, "--run", str(tmp_path)]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"give {option} to train it" in message and f"benchmarks.baselines.{method}" in message
    assert compare.main([*flags, "pix2pix", "--run", str(compared), "--split", "train"]) == 2
    assert "was trained on" in capsys.readouterr().err.splitlines()[-1]


# The report, on figures that are known


def scores(psnr_value, frechet, images):
    values = {"psnr": psnr_value, "ssim": 0.5, "frechet_efficientnet_lite0": frechet}
    value = Score(2, 0, values, {"psnr": (psnr_value - 1, psnr_value + 1), "ssim": (0.4, 0.6)})
    return report.MethodScores({OVERALL: value}, {k: {"psnr": v, "ssim": 0.5} for k, v in images.items()})


def test_the_best_is_bold_and_ours_is_compared_image_by_image():
    table = report.to_markdown(
        {"other": scores(12.0, 90.0, {"a": 10.0, "b": 14.0}), "ours": scores(13.0, 95.5, {"a": 13.0, "b": 13.0})}
    ).splitlines()
    assert table[2] == "| all (2) | other | 12.00 (11.00 to 13.00) | **0.500** (0.400 to 0.600) | **90.0** |"
    assert table[3] == "| all (2) | ours | **13.00** (12.00 to 14.00) | **0.500** (0.400 to 0.600) | 95.5 |"
    assert table[-1] == "| other | +1.00 (-1.00 to +3.00) | 50% | +0.000 (+0.000 to +0.000) | 50% |"


def test_equal_images_are_null_in_json():
    equal = {"ours": scores(math.inf, None, {"a": math.inf, "b": 3.0})}
    values = json.loads(json.dumps(report.to_json(equal), allow_nan=False))["ours"]
    assert values["images"]["a"] == {"psnr": None, "ssim": 0.5} and values["cameras"][OVERALL]["psnr"] is None
    assert report.to_csv(equal).splitlines()[1].endswith(",")  # no Fréchet distance


def test_scenes_come_from_each_camera_in_turn(data):
    scenes = [scene for split in ("train", "test") for scene in read_scenes(data, split)]
    cameras = [scenes[place].example.source for place in report.choose_scenes(scenes, 5, seed=1)]
    assert cameras == ["even", "new", "odd", "even", "odd"]
    chosen = {tuple(report.choose_scenes(scenes, 3, seed=seed)) for seed in range(6)}
    assert len(chosen) > 1
    assert report.choose_scenes(scenes, 99, seed=2) == report.choose_scenes(scenes, 99, seed=2)
    assert sorted(report.choose_scenes(scenes, 99, seed=2)) == list(range(len(scenes)))


def test_the_sheet_puts_ours_beside_the_real_picture(data):
    scenes = read_scenes(data, "test")
    levels = {"ours": 200, "other": 100}
    made = {name: [Image.new("L", (256, 256), level)] * 3 for name, level in levels.items()}
    sheet = report.draw_sheet(scenes, made, [2, 0], tile=10)
    row = [sheet.getpixel((84 + 10 * column + 5, 24 + 5)) for column in range(4)]
    assert row[1:3] == [(100,) * 3, (200,) * 3]
    expected = scenes[2].visible.resize((10, 10), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(sheet.crop((84, 24, 94, 34))), np.asarray(expected))
