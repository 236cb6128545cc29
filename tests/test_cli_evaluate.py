"""`evaluate` as a command: what is refused before a model is loaded, and what a second run draws."""

import json
from collections import Counter

import pytest
from make_data import make_manifest_dataset
from PIL import Image

from diffv2ir import cli, cli_evaluate, scores
from diffv2ir.pipeline import DiffV2IRPipeline

QUICK = ("--split", "train", "--steps", "1", "--sampler", "ddim")


@pytest.fixture
def data(tmp_path):
    """Three pairs of two cameras, and an infrared image."""
    return make_manifest_dataset(tmp_path / "data", pairs=4, infrared=1)


@pytest.fixture
def drawn(pipe, monkeypatch):
    """Counts pictures that are drawn with the mini bundle."""
    counts = Counter()
    generate = DiffV2IRPipeline.generate_batch

    def counted(self, conditionings, *arguments, **options):
        counts["pictures"] += len(conditionings)
        if counts["pictures"] > counts["most"] > 0:
            raise KeyboardInterrupt
        return generate(self, conditionings, *arguments, **options)

    monkeypatch.setattr(DiffV2IRPipeline, "generate_batch", counted)
    monkeypatch.setattr(cli_evaluate, "load_pipeline", lambda options: pipe)
    return counts


def evaluate(data, *arguments) -> int:
    return cli.main(["evaluate", "--data", str(data), *QUICK, *map(str, arguments)])


def test_infrared_alone_is_refused_before_a_model_is_loaded(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_evaluate, "load_pipeline", lambda options: pytest.fail("loaded before the check"))
    assert evaluate(data, "--kind", "infrared", "--json", tmp_path / "scores.json") == 2
    message = "--kind infrared cannot be scored: scene4: an evaluation needs a visible and an infrared image"
    assert message in capsys.readouterr().err
    assert evaluate(data, "--kind", "infrared", "--outputs", tmp_path) == 2


def test_a_run_that_fails_leaves_no_empty_file(data, drawn, tmp_path):
    drawn["most"] = 1
    assert evaluate(data, "--json", tmp_path / "scores.json", "--sheet", tmp_path / "sheet.png") == 130
    assert not (tmp_path / "scores.json").exists() and not (tmp_path / "sheet.png").exists()
    (tmp_path / "scores.json").write_text("older")
    assert evaluate(data, "--json", tmp_path / "scores.json") == 130
    assert (tmp_path / "scores.json").read_text() == "older"


def test_a_second_run_draws_what_is_not_there(data, drawn, tmp_path):
    places = ("--save-outputs", tmp_path / "pictures", "--batch-size", "1")
    drawn["most"] = 2
    assert evaluate(data, *places) == 130
    assert sorted(path.name for path in (tmp_path / "pictures").glob("*.png")) == ["scene0.png", "scene1.png"]
    drawn.clear()
    assert evaluate(data, *places, "--json", tmp_path / "resumed.json") == 0
    assert drawn["pictures"] == 1
    assert evaluate(data, "--json", tmp_path / "whole.json") == 0
    resumed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("resumed", "whole"))
    assert resumed == whole

    drawn.clear()
    assert evaluate(data, *places) == 0 and drawn["pictures"] == 0
    assert evaluate(data, *places, "--sheet", tmp_path / "sheet.png", "--sheet-scenes", 2) == 0
    assert drawn["pictures"] == 2  # the sheet's maps are not kept


def test_scenes_of_the_sheet_are_drawn_by_a_seed(data, drawn, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "diffv2ir.evaluate.save_sheet", lambda scenes, path: shown.append([s.example.id for s in scenes])
    )
    sheet = ("--sheet", tmp_path / "sheet.png", "--sheet-scenes", 2)
    for seed in (0, 0, 1, 2, 3):
        assert evaluate(data, *sheet, "--sheet-seed", seed) == 0
    assert shown[0] == shown[1] == sorted(shown[0]) and len({tuple(ids) for ids in shown}) > 1
    assert all(len(set(ids)) == 2 for ids in shown)


@pytest.mark.parametrize("change", ["setting", "condition", "photo", "picture", "bundle"])
def test_a_picture_of_something_else_is_drawn_anew(data, drawn, pipe, tmp_path, monkeypatch, change):
    places = ("--save-outputs", tmp_path / "pictures")
    assert evaluate(data, *places) == 0
    drawn.clear()
    expected, arguments = 3, ()
    if change == "setting":
        arguments = ("--text-scale", 2)
    elif change == "condition":
        arguments = ("--without", "map")
    elif change == "bundle":
        monkeypatch.setitem(vars(pipe), "bundle_sha256", "another")
    else:
        expected = 1
        path = data / "images" / "1.png" if change == "photo" else tmp_path / "pictures" / "scene1.png"
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert evaluate(data, *places, *arguments) == 0
    assert drawn["pictures"] == expected


def test_one_camera_is_scored_once(data, drawn, monkeypatch, tmp_path, capsys):
    images = []
    monkeypatch.setattr(scores, "mean_interval", lambda values: images.append(len(values)) or (0.0, 0.0))
    assert evaluate(data, "--source", "even", "--json", tmp_path / "scores.json") == 0
    lines = [line for line in capsys.readouterr().out.split("\n\n")[0].splitlines() if " model " in line]
    assert [line.split()[:2] for line in lines] == [["even", "2"], ["all", "2"]]
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["model"]["all"] == record["model"]["even"] and record["model"]["all"]["count"] == 2
    alone = len(images)
    images.clear()
    assert evaluate(data) == 0
    assert len(images) >= 3 * alone * 0.9  # two cameras, and both together
