"""The comparison of all methods on a miniature dataset: pictures, table, sheet."""

import csv
import functools
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from make_data import make_manifest_dataset
from PIL import Image

from benchmarks import by_scene, compare
from benchmarks.baselines import ip2p, report
from benchmarks.baselines.pictures import read_scenes
from benchmarks.baselines.pix2pix import Pix2Pix
from benchmarks.baselines.regression import Regression
from benchmarks.baselines.training import finished
from diffv2ir.data import read_examples
from diffv2ir.efficientnet import has_frechet_weights
from diffv2ir.evaluate import OVERALL, Score
from diffv2ir.metrics import psnr, ssim
from diffv2ir.training.config import load_config
from diffv2ir.training.phases import PhaseConfig


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
    history = [{"step": 2, "loss": 1.0, "seconds_per_step": 3.0}, {"step": 2, "psnr": 9.0}]
    history.append({"step": 5, "loss": 1.0, "seconds_per_step": 2.0})
    trained = {"config": {"loop": {"steps": 5, "batch_size": 4}}, "history": history}
    for stage in (
        *(run / "trainings" / "ip2p" / config.stem for config in ip2p.CONFIGS[:-1]),
        run / "trainings" / "ip2p",
    ):
        stage.mkdir(exist_ok=True)
        (stage / "history.json").write_text(json.dumps(trained))
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
    ours, theirs = (np.asarray(Image.open(compared / name / "scene6.png")) for name in ("ours", "ip2p"))
    assert not np.array_equal(ours, theirs)  # the same bundle here, without caption and map


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
    tasks = lines.index("") + 3
    assert [line.split("|")[1].strip() for line in lines[tasks : tasks + 7]] == ["real", *compare.METHODS]
    paired = [tuple(line.split("|")[n].split()[0] for n in (1, 2)) for line in lines[tasks + 10 : tasks + 30]]
    others = [method for method in compare.METHODS if method != report.OURS]
    assert paired == [(camera, method) for camera in cameras for method in others]


def test_the_record_says_what_was_scored_and_what_the_trainings_took(compared, data, bundle_folder, pipe):
    record = json.loads((compared / "scores.json").read_text())
    scenes = read_scenes(data, "test")
    images = record["methods"]["pix2pix"]["images"]
    assert {key: row["source"] for key, row in images.items()} == {s.example.id: s.example.source for s in scenes}
    assert set(record["pictures"]) == set(images) and record["bundle_sha256"] == pipe.bundle_sha256
    assert set(record["real"]) == {"even", "new", "odd", OVERALL}
    assert list(record["trainings"]) == ["regression", "pix2pix", "ip2p"]
    stages = len(ip2p.CONFIGS)
    all_stages = {"steps": stages * 5, "batch_size": 4, "seconds": stages * (2 * 3 + 3 * 2)}
    assert record["trainings"]["ip2p"] == all_stages
    trained = finished(compared / "trainings" / "pix2pix")
    took = {"steps": trained["step"], "batch_size": 1, "seconds": trained["seconds"], "pairs": 3}
    assert record["trainings"]["pix2pix"] == took and took["steps"] >= 1


def test_scores_are_read_by_scene_those_of_before_too(compared, data):
    before = Path(compare.__file__).parent / "baselines" / "results" / "scores.json"
    scenes = {example.id: (example.source, example.scene) for example in read_examples(data, "test")}
    for path, scene_of in ((compared / "scores.json", scenes), (before, None)):
        methods = {name: own["images"] for name, own in json.loads(path.read_text())["methods"].items()}
        known = scene_of or {key: ("camera", key) for key in methods["ours"]}
        assert by_scene.to_markdown(methods, known).count("\n") == 1 + len(compare.METHODS)


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
    assert "of the scenes" in capsys.readouterr().err.splitlines()[-1]


def test_a_training_that_is_not_the_one_asked_for_is_refused(compared, data, bundle_folder, tmp_path, capsys):
    def refused(method, *arguments, data=data):
        flags = ["--data", str(data), "--bundle", str(bundle_folder), "--device", "cpu", "--run", str(compared)]
        assert compare.main([*flags, "--methods", method, *arguments]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "pix2pix was trained for 1e-05 minutes, not for 30 minutes" in refused("pix2pix", "--minutes", "30")
    half = load_config(ip2p.CONFIGS[0], PhaseConfig).loop.steps // 2
    assert f"phase2 was trained for 5 steps, and a share of 0.5 is {half}" in refused("ip2p", "--share", "0.5")
    other = shutil.copytree(data, tmp_path / "other")
    picture = other / "images" / "0.png"
    Image.eval(Image.open(picture), lambda level: 255 - level).save(picture)
    assert "regression was trained on other pairs than those of the dataset" in refused("regression", data=other)


# The report, on figures that are known


def scores(psnr_value, frechet, images):
    values = {"psnr": psnr_value, "ssim": 0.5, "frechet_efficientnet_lite0": frechet}
    values |= {"edge_f1": 0.25, "edge_f1_visible": 0.5, "person_contrast": None}
    intervals = {"psnr": (psnr_value - 1, psnr_value + 1), "ssim": (0.4, 0.6), "edge_f1": (0.2, 0.3)}
    if frechet is not None:
        intervals["frechet_efficientnet_lite0"] = (frechet - 5, frechet + 5)
    value = Score(2, 0, values, intervals)
    rows = {key: {"source": "a", "psnr": value, "ssim": 0.5} for key, value in images.items()}
    return report.MethodScores({"a": value, OVERALL: value}, rows)


REAL = {OVERALL: Score(2, 1, {"edge_f1_visible": 0.75, "person_contrast": 9.0}, {"person_contrast": (8.0, 10.0)})}


def test_the_best_is_bold_and_ours_is_compared_image_by_image():
    methods = {"constant": scores(9.0, None, {"a": 9.0, "b": 9.0})}
    methods |= {"other": scores(12.0, 90.0, {"a": 10.0, "b": 14.0}), "ours": scores(13.0, 95.5, {"a": 13.0, "b": 13.0})}
    table = report.to_markdown(methods, REAL).splitlines()
    assert table[5] == "| all (2) | constant | 9.00 (8.00 to 10.00) | **0.500** (0.400 to 0.600) | - |"
    assert table[6].endswith("other | 12.00 (11.00 to 13.00) | **0.500** (0.400 to 0.600) | **90.0** (85.0 to 95.0) |")
    assert table[7].endswith("| **13.00** (12.00 to 14.00) | **0.500** (0.400 to 0.600) | 95.5 (90.5 to 100.5) |")
    assert table[9].startswith("| all (2; people on 1) | edge F1 (95 %) |")
    assert table[11] == "| real | - | 0.750 | 9.0 (8.0 to 10.0) | - |"
    assert table[14] == "| ours | 0.250 (0.200 to 0.300) | 0.500 | - | - |"
    paired = "+1.00 (-1.00 to +3.00) | 50% | +0.000 (+0.000 to +0.000) | 50% |"
    assert table[-3] == f"| a (2) | other | {paired}" and table[-1] == f"| all (2) | other | {paired}"
    rows = list(csv.DictReader(report.to_csv(methods).splitlines()))
    ends = ("frechet_efficientnet_lite0", "frechet_efficientnet_lite0_low", "frechet_efficientnet_lite0_high")
    assert [rows[-1][end] for end in ends] == ["95.50", "90.50", "100.50"] and not any(rows[0][end] for end in ends)


def test_fid_has_a_column_of_its_own():
    methods = {"other": scores(12.0, 90.0, {"a": 10.0}), "ours": scores(13.0, 95.5, {"a": 13.0})}
    for value, own in zip((70.0, 60.0), methods.values(), strict=True):
        own.cameras[OVERALL].values["fid"], own.cameras[OVERALL].intervals["fid"] = value, (value - 5, value + 5)
    table = report.to_markdown(methods, REAL).splitlines()
    assert table[0].endswith("| Fréchet (95 %) | FID (95 %) |") and table[1].count("---") == 6
    assert table[4].endswith("| **90.0** (85.0 to 95.0) | 70.0 (65.0 to 75.0) |")
    assert table[5].endswith("| 95.5 (90.5 to 100.5) | **60.0** (55.0 to 65.0) |")
    rows = list(csv.DictReader(report.to_csv(methods).splitlines()))
    assert rows[-1]["fid"] == "60.00" and rows[-1]["fid_high"] == "65.00"


@pytest.mark.skipif(not has_frechet_weights(), reason="the feature network is not installed")
def test_equal_pictures_have_no_distance_between_sets(data):
    scenes = [scene for split in ("train", "test") for scene in read_scenes(data, split)][:2]
    made = {"constant": [Image.new("L", (256, 256), 90)] * 2, "visible_gray": [s.visible.convert("L") for s in scenes]}
    methods, _ = report.score_pictures(scenes, made)
    distances = {name: own.cameras[OVERALL].frechet_efficientnet_lite0 for name, own in methods.items()}
    assert distances["constant"] is None and distances["visible_gray"] > 0


def test_equal_images_are_null_in_json():
    equal = {"ours": scores(math.inf, None, {"a": math.inf, "b": 3.0})}
    values = json.loads(json.dumps(report.to_json(equal), allow_nan=False))["ours"]
    assert (
        values["images"]["a"] == {"source": "a", "psnr": None, "ssim": 0.5}
        and values["cameras"][OVERALL]["psnr"] is None
    )
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
