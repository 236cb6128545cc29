"""`python -m train.ablate` at the smallest size: what is scored, what a restart finds, and what is written."""

import csv
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import make_manifest_dataset, make_start_folder
from matplotlib import pyplot
from PIL import Image

from diffv2ir import evaluate
from diffv2ir.data import DataError, read_examples, split_validation
from diffv2ir.phases import draw_phases
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training import learnt, phases
from diffv2ir.training.ablation import cells, leakage, phase_sheet, phase_table, report, scoring, sweep, trainings
from diffv2ir.training.ablation.trainings import Trainings, shrunk
from diffv2ir.training.captioner import _folds
from diffv2ir.training.config import load_config
from diffv2ir.training.phases import PhaseConfig, train_phase
from diffv2ir.training.tiny import GENERAL
from train import ablate

COMMON = "loop: {steps: 2, batch_size: 2, warmup_steps: 1, ema_decay: 0.5}\nview: {resize: 18, crop: 16, variants: 1}\n"
LORA = "lora: {rank: 2, alpha: 2, targets: [to_q, conv1]}\n"
CONFIGS = {
    "phase1": 'phase: "1"\n' + LORA + COMMON,
    "phase2": 'phase: "2"\ndefaults: {steps: 1, sampler: ddim, resolution: 64}\n' + COMMON,
    "phase3": 'phase: "3"\nstyle: dusk\nsources: [even]\n' + LORA + COMMON.replace("steps: 2", "steps: 1"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve pairs in four scenes of three, one of them held out, and two infrared images."""
    folder = make_manifest_dataset(tmp_path_factory.mktemp("ablation") / "data", pairs=12, infrared=2)
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    scenes = ["s7", "s0", "s1", "s2"]  # `split_validation` holds out the first
    for number, record in enumerate(records):
        record |= {"split": "train", "source": "even", "scene": scenes[number // 3 % 4]}
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def finished(bundle_folder, configs, data, tmp_path_factory):
    """A run with base, phase 1 and the understanding models."""
    run = tmp_path_factory.mktemp("finished")
    base = make_start_folder(bundle_folder, run / "base" / "result")
    shutil.copytree(bundle_folder, run / "vlum")
    config = load_config(configs / "phase1.yaml", PhaseConfig)
    train, _ = split_validation(read_examples(data, "train"))
    train_phase(config, train, base, run / "phase1", cache=run / "cache", vlum=run / "vlum")
    learnt.record_examples(run / "phase1", train)
    return run


@pytest.fixture
def work(monkeypatch):
    """Counts what costs time: prepared photos, scored cells and optimizer loops."""
    counts = Counter()

    def counting(owner, name, kind):
        original = getattr(owner, name)

        def counted(*arguments, **options):
            counts[kind] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    counting(DiffV2IRPipeline, "prepare", "photos")
    for module in (sweep, leakage, phase_table):
        counting(module, "score_cell", "cells")
    counting(phases.Loop, "run", "trainings")
    counting(phase_sheet, "draw_phases", "pictures")
    monkeypatch.setattr("diffv2ir.scores.has_frechet_weights", lambda: False)
    return counts


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the command line, without plots if asked; returns the rows of its CSV file."""

    def command(name, *arguments, plots=True):
        if not plots:
            monkeypatch.setattr(report, "_save", lambda figure, path: pyplot.close(figure))
        output = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["ablate", name, "--output", str(output), *map(str, arguments)])
        ablate.main()
        with (output / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        lines = [line for line in (output / f"{name}.md").read_text().splitlines() if line.startswith("| ")]
        assert len(lines) - 2 == len(rows)  # heading and rule
        return rows

    return command


def plots(folder):
    """Names of the plots, each of which shows something."""
    for path in folder.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5, path
    return {path.name for path in folder.glob("*.png")}


# Table 4

FEW = ("--steps", "1,2", "--visible-scale", "0.5,2", "--segmentation-scale", "1.5", "--text-scale", "0")


def test_table_4_has_every_value_and_a_restart_computes_only_what_is_new(command, work, bundle_folder, data, tmp_path):
    arguments = ("--bundle", bundle_folder, "--data", data, "--limit", 1, *FEW)
    rows = command("table4", *arguments)
    values = {axis: [row["value"] for row in rows if row["axis"] == axis] for axis in ("steps", "s_V", "s_S", "s_T")}
    # Those of the bundle's defaults, 4 steps and 1.5 / 1.5 / 3, are there too.
    assert values == {"steps": ["1", "2", "4"], "s_V": ["0.5", "1.5", "2"], "s_S": ["1.5"], "s_T": ["0", "3.0"]}
    assert sum(row["default"] == "True" for row in rows) == 4
    assert plots(tmp_path / "table4") == {"scales.png", "steps.png", "time.png"}
    assert work["photos"] == 1 and work["cells"] == 6  # the defaults are one cell

    work.clear()
    assert command("table4", *arguments, plots=False) == rows
    assert not work
    more = command("table4", *arguments, "--steps", "1,2,3", plots=False)
    assert work["cells"] == 1 and work["photos"] == 1
    assert [row for row in more if row["value"] != "3"] == rows


class Levels:
    """A network of the literature that can be had: it sees the mean and the spread of an image."""

    frechet, kernel, perceptual = "fid", "kid", "lpips"

    def see(self, images):
        levels = torch.stack([torch.from_numpy(np.array(image.convert("L"), dtype=np.float32)) for image in images])
        return torch.stack([levels.mean(dim=(1, 2)), levels.std(dim=(1, 2))], dim=1), levels

    def distances(self, one, other):
        return (one - other).abs().mean(dim=(1, 2))


def test_fid_is_a_column_of_its_own_and_other_cells(command, work, bundle_folder, data, tmp_path, monkeypatch):
    few = ("--steps", "1", "--visible-scale", "1.5", "--segmentation-scale", "1.5", "--text-scale", "3")
    arguments = ("--bundle", bundle_folder, "--data", data, "--split", "train", "--limit", 2, *few)
    without = command("table4", *arguments, plots=False)
    assert not any(row.get("fid") for row in without) and work["cells"] == 2
    asked = []
    monkeypatch.setattr("train.ablate.distance_views", lambda fid: asked.append(fid) or [Levels()])
    rows = command("table4", *arguments, "--fid")
    assert asked == [True] and work["cells"] == 4
    assert all(float(row[name]) >= 0 for row in rows for name in ("fid", "kid", "lpips"))
    assert [row["psnr"] for row in rows] == [row["psnr"] for row in without]
    header = next(line for line in (tmp_path / "table4" / "table4.md").read_text().splitlines() if "PSNR" in line)
    assert "| FID | KID | LPIPS |" in header


def test_a_table_shows_its_plots_and_keeps_what_a_person_wrote(tmp_path):
    rows = [{"psnr": 1.0, "psnr_low": 0.5, "psnr_high": 2.0, "psnr_difference": None}]
    rows += [{"psnr": 0.25, **report.difference_fields(*({k: {"psnr": v} for k, v in own.items()} for own in PSNR))}]
    columns, text = ["psnr", "psnr_difference"], ["Before.", "After."]
    (tmp_path / "notes.md").write_text("What it says.\n")
    path = report.write_table(tmp_path, "t", rows, columns, text, ["a.png", "b.png"])
    first, table, *rest = path.read_text().split("\n\n")
    assert first == "Before." and rest == ["After.", "![a](a.png)\n![b](b.png)", "What it says.\n"]
    assert table.splitlines()[2:] == ["| 1.00 (0.50–2.00) | – |", "| 0.25 | -0.75 (-1.00 to -0.25) |"]


PSNR = ({"a": 3.0, "b": 4.0, "c": 4.0, "d": None}, {"a": 4.0, "b": 5.0, "c": 5.0, "d": None})


@pytest.mark.parametrize("name", ["table1", "table3", "table4"])
def test_committed_tables_have_their_plots_and_notes(name):
    folder = Path(__file__).parents[1] / "benchmarks" / "tiny" / name
    text = (folder / f"{name}.md").read_text()
    assert text.endswith("\n\n" + (folder / "notes.md").read_text())
    assert all(f"({plot.name})" in text for plot in folder.glob("*.png"))


def test_a_cell_that_measured_less_is_computed_again(tmp_path, monkeypatch):
    store, key = cells.Cells(tmp_path), {"settings": 1}
    monkeypatch.setattr(cells, "MEASURES", {"psnr": None})
    assert store.get(key, lambda: {"psnr": 1}) == store.get(key, lambda: {"psnr": 2}) == {"psnr": 1}
    monkeypatch.setattr(cells, "MEASURES", {"psnr": None, "ssim": None})
    assert store.get(key, lambda: {"psnr": 1, "ssim": 3}) == {"psnr": 1, "ssim": 3}


def test_a_cell_is_what_evaluate_says(work, pipe, data):
    examples = scoring.choose_pairs(data, limit=2)
    settings = pipe.default_settings.replace(seed=4, steps=2)
    photos = scoring.Photos(pipe, examples, settings)
    for without in ((), ("caption", "map")):
        cell = scoring.score_cell(photos, settings, scoring.generating(pipe, settings, without))
        translations = evaluate.translate_examples(pipe, examples, settings, without=without)
        expected = json.loads(json.dumps(evaluate.score(translations, settings).to_dict()))
        assert json.loads(json.dumps(cell["methods"]["model"])) == expected["model"]
        assert cell["images"] == expected["images"]
    assert cell["evaluations"] == 2 * 2 and cell["seconds"] > 0 and cell["cpu_seconds"] > 0


def test_another_model_or_other_pairs_are_other_cells(bundle_folder, data, tmp_path):
    changed = shutil.copytree(bundle_folder, tmp_path / "changed")
    assert cells.model_hash(changed) == cells.model_hash(bundle_folder)
    schedule = changed / "scheduler" / "scheduler_config.json"
    schedule.write_text(schedule.read_text().replace("0.012", "0.013"))
    assert cells.model_hash(changed) != cells.model_hash(bundle_folder)
    examples = read_examples(data, kinds=["pairs"])
    known = learnt.examples_hash(examples)
    assert learnt.examples_hash(examples[::-1]) == known != learnt.examples_hash(examples[1:])
    for change in ({"band": "NIR"}, {"caption": "somebody"}, {"kind": "crops"}, {"segmentation": examples[1].visible}):
        assert learnt.examples_hash([replace(examples[0], **change), *examples[1:]]) != known, change


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model_index.json", {"map_style": "union"}),
        ("model_index.json", {"bands": {"general": "NIR"}}),
        ("model_index.json", {"defaults": {"steps": 3}}),
        ("tokenizer/tokenizer_config.json", {"do_lower_case": False}),
        ("captioner_processor/processor_config.json", {"image_mean": [0, 0, 0]}),
    ],
)
def test_the_same_weights_used_otherwise_are_another_model(bundle_folder, tmp_path, file, change):
    changed = shutil.copytree(bundle_folder, tmp_path / "changed")
    path = changed / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert cells.model_hash(changed) != cells.model_hash(bundle_folder)


def test_other_code_draws_other_cells(tmp_path, monkeypatch):
    store, key = cells.Cells(tmp_path), {"settings": 1}
    assert store.get(key, lambda: {"psnr": 1}) == {"psnr": 1}
    monkeypatch.setattr(cells, "code_hash", lambda: "99")
    assert store.get(key, lambda: {"psnr": 2}) == {"psnr": 2}


def test_a_limit_draws_by_seed_and_a_larger_one_draws_more(data):
    def drawn(limit, seed):
        return {example.id for example in scoring.choose_pairs(data, "train", limit=limit, seed=seed)}

    assert len(drawn(4, 0)) == 4 and drawn(4, 0) == drawn(4, 0) < drawn(6, 0)
    assert drawn(4, 0) != drawn(4, 1)
    assert len(scoring.choose_pairs(data)) == 3  # the held-out scene
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        scoring.choose_pairs(data, limit=0)


# Table 1


def test_the_random_split_shares_scenes_but_no_image_and_the_other_shares_neither(data):
    examples = read_examples(data, kinds=["pairs"])
    random, by_scene = leakage.make_splits(examples, 0.25)
    for split in (random, by_scene):
        train, test = ({example.id for example in part} for part in (split.train, split.test))
        assert not train & test and train | test == {example.id for example in examples}
        assert len(test) == 3
    scenes = [{part.scene for part in by_scene.train}, {part.scene for part in by_scene.test}]
    assert not scenes[0] & scenes[1] and not by_scene.seen
    assert random.seen and {e.scene for e in random.seen} <= {e.scene for e in random.train}


def test_a_scene_that_two_cameras_show_is_tested_or_trained_on_as_a_whole(data):
    own = read_examples(data, kinds=["pairs"])
    others = [replace(example, id=f"other-{example.id}", source="other") for example in own]
    scenes = sorted({example.scene for example in own})
    examples = [replace(e, joined=f"joined/{e.scene}") if e.scene in scenes[:3] else e for e in own + others]
    for seed in range(4):
        _, by_scene = leakage.make_splits(examples, 0.25, seed)
        assert not {e.place for e in by_scene.train} & {e.place for e in by_scene.test} and not by_scene.seen
    folds = _folds(examples, 2)
    assert not {e.place for e in folds[0]} & {e.place for e in folds[1]} and sum(map(len, folds)) == len(examples)


def test_a_split_that_would_show_nothing_is_refused(data):
    examples = read_examples(data, kinds=["pairs"])
    with pytest.raises(DataError, match="no camera has two scenes"):
        leakage.make_splits(examples[:3], 0.25)
    with pytest.raises(DataError, match="choose cameras with larger scenes"):
        leakage.make_splits(examples[::3], 0.25)
    with pytest.raises(ValueError, match="test-fraction must lie between 0 and 1, got 1"):
        leakage.make_splits(examples, 1)


def test_test_images_with_a_copy_in_train_have_a_row_of_their_own(data):
    first, *_, last = read_examples(data, kinds=["pairs"])
    copy = replace(first, id="copy", scene="elsewhere")
    split = leakage.Split("random", [first], [copy, last])
    assert split.copied() == ["copy"]
    images = {"copy": {"psnr": 20.0, "ssim": 0.5}, last.id: {"psnr": 10.0, "ssim": 0.4}}
    result = {"methods": {name: {evaluate.OVERALL: {}} for name in leakage._METHODS}, "images": images}
    rows = {row["images"]: (row["count"], row["psnr"]) for row in leakage._rows(split, result, {"copy"})[3:]}
    assert rows == {"copy trained on": (1, 20), "no copy": (1, 10)}
    assert len(leakage._rows(split, result, set())) == 3


def test_table_1_trains_and_scores_both_splits_once(command, work, finished, configs, data, tmp_path):
    start = finished / "phase1" / "result"
    arguments = ("--data", data, "--start", start, "--vlum", finished / "vlum", "--config", configs / "phase2.yaml")
    rows = command("table1", *arguments, "--steps-factor", "0.5")
    whole = {(row["split"], row["method"]): row["count"] for row in rows if row["images"] == "all"}
    assert whole == {
        (split, method): "3" for split in ("random", "by scene") for method in ("ours", "visible, gray", "constant")
    }
    assert any(row["images"] == "scene trained on" and row["split"] == "random" for row in rows)
    assert plots(tmp_path / "table1") == {"table1.png"}
    assert work["trainings"] == work["cells"] == 2
    assert "(1 steps" in (tmp_path / "table1" / "table1.md").read_text()

    work.clear()
    assert command("table1", *arguments, "--steps-factor", "0.5", plots=False) == rows
    assert not work


# Table 3


def test_table_3_has_all_combinations_and_shares_their_stages(
    command, work, finished, configs, data, tmp_path, monkeypatch
):
    starts = []

    def recording(config, examples, start, output, **options):
        starts.append((config, start, output))
        return train_phase(config, examples, start, output, **options)

    monkeypatch.setattr(trainings, "train_phase", recording)
    arguments = ("--data", data, "--run", finished, "--configs", configs, "--limit", 1, "--trained")
    rows = command("table3", *arguments)
    combinations = Counter(tuple(row[f"phase {number}"] for number in (1, 2, 3)) for row in rows)
    without_pairs = [("no", "no", "no"), ("yes", "no", "no")]
    assert len(combinations) == 8 and all(combinations[phases] == 1 for phases in without_pairs)
    assert combinations["yes", "yes", "yes"] == 4 + 3
    assert sorted(set(combinations.values())) == [1, 4, 7]
    switches = {(row["map"], row["caption"]) for row in rows if row["phase 2"] == "yes"}
    assert len(switches) == 4 + 3 and ("never", "on") in switches and ("off", "off") in switches
    assert plots(tmp_path / "table3") == {"table3.png"}
    assert "![table3](table3.png)" in (tmp_path / "table3" / "table3.md").read_text()
    full = [row for row in rows if not row["psnr_difference"]]
    assert [list(row.values())[:5] for row in full] == [["yes", "yes", "yes", "on", "on"]]
    for row in rows:  # of one photo: the difference is that of the rows
        wanted = float(row["psnr"]) - float(full[0]["psnr"])
        assert row in full or float(row["psnr_difference"]) == pytest.approx(wanted)
    # Phase 1 is the run's own; phase 2 from base and from phase 1, 3 after each of them, 3 alone on each, and three
    # times both without a condition.
    assert work["trainings"] == 2 + 2 + 2 + 3 * 2
    assert work["cells"] == len(rows) == 2 + 6 * 4 + 3
    first = {start for config, start, _ in starts if config.phase == "2" and config.sources is None}
    assert first == {finished / "base" / "result", finished / "phase1" / "result"}
    never = {(config.without_map, config.fixed_prompt) for config, *_ in starts}
    assert never == {(False, None), (True, None), (False, ""), (True, "")}

    work.clear()
    assert command("table3", *arguments, plots=False) == rows
    assert not work


def test_a_finished_stage_is_taken_only_if_it_is_the_same_training(finished, configs, data, tmp_path):
    config = load_config(configs / "phase1.yaml", PhaseConfig)
    own = Trainings(tmp_path, tmp_path / "cache", finished / "vlum", finished)
    base, result = finished / "base" / "result", finished / "phase1" / "result"
    train, held_out = split_validation(read_examples(data, "train"))
    assert own.result("phase1", config, train, base) == result
    assert own._finished("phase1", shrunk(config, 2), train, base) is None
    assert own._finished("phase1", config, train, result) is None
    assert own._finished("phase1", config, [*train, *held_out], base) is None
    learnt.record_examples(finished / "phase1", held_out)
    assert own._finished("phase1", config, train, base) is None
    (finished / "phase1" / "examples.json").unlink()  # nobody knows what it learnt from
    assert own._finished("phase1", config, train, base) is None
    learnt.record_examples(finished / "phase1", train)
    history = finished / "phase1" / "history.json"
    before = history.read_text()
    for value, expected in ((None, result), (0.5, None)):  # a setting of another version, not in use and in use
        stored = json.loads(before)
        stored["config"]["critic"] = value
        history.write_text(json.dumps(stored))
        assert own._finished("phase1", config, train, base) == expected
    history.write_text(before)
    with pytest.raises(ValueError, match="steps-factor must be greater than 0, got 0"):
        shrunk(config, 0)


def test_without_a_base_it_says_what_is_missing(command, configs, data, tmp_path):
    with pytest.raises(SystemExit, match="has no base/result: --run wants the output folder of train.tiny"):
        command("table3", "--data", data, "--run", tmp_path, "--configs", configs)


def test_training_without_a_condition_never_shows_it(finished, configs, data, tmp_path):
    config = load_config(configs / "phase2.yaml", PhaseConfig)
    seen = []

    class Recording(phases.DiffusionObjective):
        def __call__(self, unet, draws, targets, prompts, conditions, **losses):
            seen.extend(zip(prompts, conditions, strict=True))
            return super().__call__(unet, draws, targets, prompts, conditions, **losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "DiffusionObjective", Recording)
        train_phase(
            replace(config, without_map=True, fixed_prompt=""), read_examples(data, "train"),
            finished / "base" / "result", tmp_path / "run", cache=tmp_path / "cache", vlum=finished / "vlum",
        )  # fmt: skip
    assert {prompt for prompt, _ in seen} == {""}
    assert all(not condition[4:].any() and condition[:4].any() for _, condition in seen)


# Figure I


def test_photos_through_the_phases(command, work, finished, bundle_folder, photo_file, photo, tmp_path, pipe):
    early = shutil.copytree(bundle_folder, tmp_path / "bundle")
    shutil.copytree(finished / "base" / "result" / "unet", early / "phases" / "base")
    shutil.copytree(finished / "phase1" / "result" / "styles" / "infrared", early / "phases" / "infrared")
    real = tmp_path / "real.png"
    photo.convert("L").save(real)
    rows = command("phases", photo_file, "--real", real, "--bundle", early, "--set", "steps=1", "sampler=ddim")
    assert [row["phase"] for row in rows] == ["base", "phase 1", "phase 2", "phase 3, night"]
    assert work["pictures"] == 4 and work["photos"] == 1
    sheet = Image.open(tmp_path / "phases" / "phases.png")
    assert sheet.width == 6 * phase_sheet.TILE  # visible, four phases, real
    drawn = Image.open(tmp_path / "phases" / rows[2]["file"])
    settings = pipe.default_settings.replace(steps=1, sampler="ddim", seed=0)
    square = evaluate.central_square(photo)
    assert np.array_equal(np.asarray(drawn), np.asarray(pipe(square, settings).image))

    work.clear()
    assert command("phases", photo_file, "--real", real, "--bundle", early, "--set", "steps=1", "sampler=ddim") == rows
    assert not work


def test_every_seed_has_its_own_picture(command, work, bundle_folder, photo_file, tmp_path):
    def drawn(seed):
        rows = command("phases", photo_file, "--bundle", bundle_folder, "--seed", seed, "--set", "steps=1", plots=False)
        return [np.asarray(Image.open(tmp_path / "phases" / row["file"])).tobytes() for row in rows]

    zero, one = drawn(0), drawn(1)
    work.clear()
    assert drawn(0) == zero != one and not work


def test_a_bundle_of_all_phases_is_packed_anew_of_other_results_or_styles(finished, bundle_folder, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for name in (GENERAL, "phase3-night"):
        shutil.copytree(bundle_folder, run / name / "result")
    first = ablate._packed(run, [], tmp_path)
    made = (first / "model_index.json").stat().st_mtime_ns
    styled = ablate._packed(run, ["night"], tmp_path)
    shutil.copytree(bundle_folder / "unet", run / "base" / "result" / "unet", dirs_exist_ok=True)
    other = ablate._packed(run, [], tmp_path)
    assert len({first, styled, other}) == 3
    shutil.copytree(finished / "base" / "result" / "unet", run / "base" / "result" / "unet", dirs_exist_ok=True)
    assert ablate._packed(run, [], tmp_path) == first
    assert (first / "model_index.json").stat().st_mtime_ns == made


def test_one_phase_is_the_same_alone(pipe, conditioning):
    settings = pipe.default_settings.replace(steps=1, seed=1)
    (alone,) = draw_phases(pipe, conditioning, settings, only="phase 3, night")
    together = {picture.name: picture.image for picture in draw_phases(pipe, conditioning, settings)}
    assert np.array_equal(np.asarray(alone.image), np.asarray(together["phase 3, night"]))
    with pytest.raises(ValueError, match="the phase must be one of phase 2, phase 3, night, got 'base'"):
        next(draw_phases(pipe, conditioning, settings, only="base"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "--set wants NAME=VALUE, got 'steps'"),
        ("stepz=3", "unknown settings: stepz"),
        ("steps=0", "steps must"),
    ],
)
def test_a_wrong_setting_is_named(command, bundle_folder, photo_file, change, message):
    with pytest.raises(SystemExit, match=message):
        command("phases", photo_file, "--bundle", bundle_folder, "--set", change)


def test_the_device_is_named_with_its_threads():
    assert cells.device_name(torch.device("cpu")).endswith("1 thread")
