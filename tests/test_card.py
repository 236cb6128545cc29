"""The model card: every number on it comes from the files of the run and of the evaluations."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffv2ir.training.card import STAGES, stage_table, write_card

NO_DISTANCE = {"frechet_efficientnet_lite0": None}  # of few images
DISTANCE = {"frechet_efficientnet_lite0": 93.4, "frechet_efficientnet_lite0_interval": [88.2, 99.7]}
TEMPLATE = Path(__file__).parent.parent / "train" / "card.md"


def score(psnr: float, distance: dict = NO_DISTANCE) -> dict:
    intervals = {"psnr_interval": [psnr - 1, psnr + 1], "ssim_interval": [0.4, 0.6]}
    return {"count": 4, "psnr": psnr, "ssim": 0.5, **distance, **intervals}


def write_scores(path: Path, cameras: dict[str, float], distance: dict = NO_DISTANCE) -> Path:
    model = {camera: score(psnr, distance) for camera, psnr in cameras.items()}
    gray = {camera: score(9.87) for camera in cameras}
    constant = {camera: score(10.25) for camera in cameras}
    scores = {"model": model, "visible_gray": gray, "constant": constant}
    path.write_text(json.dumps({"settings": {"steps": 8}, **scores}))
    return path


@pytest.fixture
def files(tmp_path) -> dict:
    for name in STAGES:
        (tmp_path / "run" / name).mkdir(parents=True)
        history = [
            {"step": step, "loss": 2.0 - step / 100, "seconds_per_step": 3.0} for step in (20, 40, 60, 80, 100)
        ] + [{"step": 100, "validation/psnr": 12.0, "validation/ssim": 0.3}]
        loop = {"steps": 100, "batch_size": 8}
        record = {"config": loop if name.startswith("teacher") else {"loop": loop}, "history": history}
        (tmp_path / "run" / name / "history.json").write_text(json.dumps(record))
    (tmp_path / "bundle" / "unet").mkdir(parents=True)
    save_file({"w": torch.zeros(1000, 1500).half()}, tmp_path / "bundle" / "unet" / "weights.safetensors")
    (tmp_path / "choice.md").write_text("| steps 8 | 13.21 |\n")
    return {
        "choice": tmp_path / "choice.md",
        "run": tmp_path / "run",
        "bundle": tmp_path / "bundle",
        "general": write_scores(tmp_path / "general.json", {"cidis": 12.34, "roadscene": 11.5, "all": 12.01}),
        "styles": {"campus": write_scores(tmp_path / "campus.json", {"cidis": 13.57, "all": 13.57}, DISTANCE)},
    }


def test_card_shows_the_measured_numbers(files):
    text = write_card(TEMPLATE, **files).read_text()
    assert "| cidis | 4 | 12.34 (11.3–13.3) | 0.500 (0.40–0.60) | – | 10.25 | 0.500 | 9.87 | 0.500 | – |" in text
    styles = "13.57 (12.6–14.6) | 0.500 (0.40–0.60) | 93 (88–100) | 12.34 (11.3–13.3) | 0.500 (0.40–0.60) | – |"
    assert f"| `campus` | cidis | 4 | {styles}" in text
    assert "| unet | 1.50 M | 3.0 |" in text
    assert "100 × 8 | 1.800 → 1.000 | 5 |" in text  # 100 steps of 3 s
    assert "| steps 8 | 13.21 |" in text
    assert (files["bundle"] / "curves.png").stat().st_size > 1000
    for name in ("stages", "sizes", "scores", "styles", "settings", "choice"):
        assert f"{{{name}}}" not in text


def test_a_stage_without_a_record_keeps_its_row(files):
    write_card(TEMPLATE, **files)
    for name in ("text", "base"):
        (files["run"] / name / "history.json").unlink()
    table = stage_table(files["run"], (files["bundle"] / "README.md").read_text())
    assert table == stage_table(files["run"], table) and table.count("100 × 8") == len(STAGES)
    assert stage_table(files["run"]).count("| no record was kept | | |") == 2
    assert table in write_card(TEMPLATE, **files).read_text()


def test_a_style_scored_on_several_cameras_is_refused(files, tmp_path):
    files["styles"]["campus"] = write_scores(tmp_path / "wide.json", {"cidis": 1.0, "msrs": 2.0, "all": 1.5})
    with pytest.raises(ValueError, match="one camera"):
        write_card(TEMPLATE, **files)


def test_a_missing_file_is_named(files, tmp_path):
    files["general"] = tmp_path / "absent.json"
    with pytest.raises(ValueError, match="absent.json"):
        write_card(TEMPLATE, **files)


def test_a_template_without_a_place_is_refused(files, tmp_path):
    template = tmp_path / "card.md"
    template.write_text(TEMPLATE.read_text().replace("{stages}", ""))
    with pytest.raises(ValueError, match="stages"):
        write_card(template, **files)
    assert not (files["bundle"] / "README.md").exists()


def test_new_scores_leave_the_stages_as_they_are(files, tmp_path):
    before = write_card(TEMPLATE, **files).read_text()
    curves = (files["bundle"] / "curves.png").read_bytes()
    files["general"] = write_scores(tmp_path / "new.json", {"cidis": 14.44, "roadscene": 11.5, "all": 12.01})
    text = write_card(TEMPLATE, **{**files, "run": None}).read_text()
    assert "| cidis | 4 | 14.44 " in text and "| cidis | 4 | 14.44 " not in before
    assert text.replace("14.44 (13.4–15.4)", "12.34 (11.3–13.3)").replace("14.44", "12.34") == before
    assert (files["bundle"] / "curves.png").read_bytes() == curves
    (files["bundle"] / "README.md").unlink()
    with pytest.raises(ValueError, match="has no table of stages: name the run folder"):
        write_card(TEMPLATE, **{**files, "run": None})
