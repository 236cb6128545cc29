"""`python -m train.data build` and `audit`: going on after a stop, and folders without a split."""

import json
import shutil
from dataclasses import replace

import numpy as np
from make_data import draw_scene, make_manifest_dataset
from PIL import Image

from diffv2ir.data import DataError, audit, build, contact, read_examples
from diffv2ir.data import measure as measure_module
from train.data import main

LENIENT = ("--smallest", "8", "--skip", "misaligned")


def plain(folder, seeds):
    """A folder of pairs without a manifest."""
    for name in ("rgb", "ir"):
        (folder / name).mkdir(parents=True)
    for seed in seeds:
        for name, image in zip(("rgb", "ir"), draw_scene(seed), strict=True):
            image.save(folder / name / f"{seed}.png")
    return folder


def test_a_build_that_was_stopped_goes_on(tmp_path, capsys, monkeypatch):
    source, target = make_manifest_dataset(tmp_path / "source", pairs=5, infrared=1), tmp_path / "data"
    original, seen = measure_module.measure, []

    def stopped(*job):
        seen.append(job)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(*job)

    monkeypatch.setattr(measure_module, "measure", stopped)
    command = ["build", "--source", f"folder={source}", "--to", str(target), *LENIENT]
    assert main(command) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "stopped: give the same command again, and what is measured is not measured again"
    assert (tmp_path / ".data.measures.jsonl").is_file() and not target.exists()
    assert main(command) == 0
    assert len(seen) == 4 + 3
    assert not (tmp_path / ".data.measures.jsonl").exists()
    monkeypatch.setattr(measure_module, "measure", original)
    assert main([*command[:4], str(tmp_path / "whole"), *LENIENT]) == 0
    for name in ("cleaning.json", "manifest.parquet", "shards/00000.tar"):
        assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_process_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    def killed(*arguments):
        raise DataError("one of 2 processes that read images was killed")
        yield

    monkeypatch.setattr(build, "measure_all", killed)
    source = make_manifest_dataset(tmp_path / "source", pairs=2, infrared=0)
    assert main(["build", "--source", f"folder={source}", "--to", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: one of 2 processes that read images was killed"


def test_a_duplicate_is_shown_beside_what_it_is_like(tmp_path, monkeypatch):
    source, sheets = plain(tmp_path / "source", [1, 2, 3]), {}
    for name in ("rgb", "ir"):
        shutil.copy(source / name / "2.png", source / name / "9.png")
    monkeypatch.setattr(build, "contact_sheet", lambda cells, path, columns: sheets.update({path.name: cells}))
    assert main(["build", "--source", f"folder={source}", "--to", str(tmp_path / "data"), *LENIENT, "--near", "4"]) == 0
    [(files, text)] = sheets["6-duplicate.jpg"]
    assert [file.name for file in files] == ["9.png", "9.png", "2.png", "2.png"] and text == "9 is like 2"
    contact.contact_sheet(sheets["6-duplicate.jpg"], tmp_path / "sheet.jpg", columns=2)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L"), dtype=int)
    first, second = pixels[6:166, 6:326], pixels[6:166, 326:646]
    assert first.std() > 20 and abs(first - second).mean() < 4


def test_plain_folders_are_audited_against_each_other(tmp_path, capsys):
    train, test = plain(tmp_path / "train", [1, 2, 3]), plain(tmp_path / "test", [3, 4])
    assert main(["audit", str(train), str(test)]) == 1
    assert "nothing is held out" in (error := capsys.readouterr().err) and "--held-out names a folder" in error
    report = tmp_path / "report.json"
    assert main(["audit", str(train), "--held-out", str(test), "--near", "4", "--json", str(report)]) == 1
    content = json.loads(report.read_text())
    assert content["as_split"]["overall"] == {"held_out": 2, "near_duplicates": 1, "same_scene": 0}
    assert content["leaks"] == [{"held_out": "3", "trained": "3", "same_scene": False}]
    other = plain(tmp_path / "other", [5, 6])
    assert main(["audit", str(train), "--held-out", str(other), "--near", "4"]) == 0


def test_a_sheet_of_leaks_is_spread_over_all(tmp_path, monkeypatch):
    example = read_examples(plain(tmp_path / "data", [1]))[0]
    leaks = [audit.Leak(replace(example, id=str(number)), example, False) for number in range(48)]
    texts = []
    monkeypatch.setattr(audit, "contact_sheet", lambda cells, path, columns: texts.extend(text for _, text in cells))
    audit.write_sheet(leaks, tmp_path / "sheet.jpg")
    assert texts == [f"train {number} | train 1" for number in range(0, 48, 2)]
