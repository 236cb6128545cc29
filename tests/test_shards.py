"""Shards: what `build` writes, how it is read, and that a training cannot tell them from the folder behind them."""

import hashlib
import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_data import draw_scene, make_manifest_dataset
from PIL import Image

from diffv2ir.data import DataError, check_examples, read_examples
from diffv2ir.data.audit import audit, random_split
from diffv2ir.data.build import build
from diffv2ir.data.cleaning import CleaningConfig
from diffv2ir.data.shards import COLUMNS, OPTIONAL, Entry, read_table, write_shards, write_table
from diffv2ir.imaging import ImageError, open_image
from diffv2ir.members import TarMember
from diffv2ir.training.cache import file_hash
from diffv2ir.training.loop import LoopConfig, Sampler
from train.data import main

LENIENT = CleaningConfig(smallest=8, skip=("duplicate", "misaligned"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset folder of 6 pairs and 2 infrared images."""
    return make_manifest_dataset(tmp_path_factory.mktemp("folder") / "data", pairs=6, infrared=2)


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    """The same examples in shards of three."""
    target = tmp_path_factory.mktemp("shards") / "data"
    build([("folder", folder)], target, LENIENT, shard_length=3)
    return target


def test_examples_come_in_the_order_of_the_folder(folder, shards):
    order = [example.id for example in read_examples(folder)]
    assert [example.id for example in read_examples(shards)] == order
    assert [row["id"] for row in read_table(shards / "manifest.parquet", COLUMNS)] != order


def by_id(examples):
    return {example.id: example for example in examples}


def test_examples_are_those_of_the_folder(folder, shards):
    before, after = by_id(read_examples(folder)), by_id(read_examples(shards))
    assert before.keys() == after.keys()
    for name, example in before.items():
        for role in ("visible", "infrared"):
            one, other = getattr(example, role), getattr(after[name], role)
            assert (one is None) == (other is None)
            assert one is None or one.read_bytes() == other.read_bytes()
        plain = {role: None for role in ("visible", "infrared")}
        assert replace(example, **plain) == replace(after[name], **plain)
    check_examples(after.values())


def test_same_input_makes_the_same_bytes(folder, shards, tmp_path):
    build([("folder", folder)], tmp_path / "again", LENIENT, shard_length=3, workers=2)
    names = [path.relative_to(shards) for path in shards.rglob("*") if path.is_file()]
    assert len([name for name in names if name.suffix == ".tar"]) == 3
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (shards / name).read_bytes(), name


def test_shards_are_webdataset(shards):
    with tarfile.open(shards / "shards" / "00000.tar") as tar:
        names = tar.getnames()
        keys = [name.split(".")[0] for name in names]
        assert keys == sorted(keys, key=keys.index) and len(set(keys)) == 3
        assert {name.split(".", 1)[1] for name in names} <= {"visible.png", "infrared.png", "json"}
        described = json.load(tar.extractfile(f"{keys[0]}.json"))
    row = next(row for row in read_table(shards / "manifest.parquet", COLUMNS) if row["id"] == keys[0])
    assert {row[key] for key in described} == set(described.values()) and row["shard"] == "00000.tar"
    assert (row["width"], row["height"]) == (96, 72)


def test_damaged_shards_are_named(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy")
    first = copy / "shards" / "00000.tar"
    whole = first.read_bytes()
    first.write_bytes(whole[:2000])
    with pytest.raises(DataError, match="00000.tar has 2,000 bytes, the manifest names"):
        read_examples(copy)
    first.unlink()
    with pytest.raises(DataError, match="lacks the shard shards/00000.tar"):
        read_examples(copy)
    (copy / "manifest.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_examples(copy)


def test_member_of_a_tar_is_read_like_a_file(shards, tmp_path):
    member = read_examples(shards)[0].infrared
    assert member.is_file() and open_image(member).size == (96, 72)
    assert not replace(member, tar=tmp_path / "none.tar").is_file()
    with pytest.raises(ImageError, match="none.tar:.*no such file"):
        open_image(replace(member, tar=tmp_path / "none.tar"))
    with pytest.raises(ImageError, match="not an image"):
        open_image(replace(member, offset=0))
    with pytest.raises(OSError, match="ends before x"):
        TarMember(member.tar, "x", 0, 10**6).read_bytes()


def test_hashes_are_those_of_the_manifest(shards, monkeypatch):
    members = [file for example in read_examples(shards) for file in (example.visible, example.infrared) if file]
    wanted = [hashlib.sha256(member.read_bytes()).hexdigest() for member in members]
    monkeypatch.setattr(TarMember, "read_bytes", None)  # would be called, were anything read
    file_hash.cache_clear()
    assert list(map(file_hash, members)) == wanted


def test_a_member_is_named_like_a_file():
    assert TarMember(Path("a.tar"), "scenes/0001.visible.webp", 0, 1).stem == "0001.visible"


def test_names_too_long_for_a_tar_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot hold xxx"):
        write_shards([Entry({"id": "x" * 300}, {"infrared": (b"", ".png")})], tmp_path)


def test_cleaning_is_counted_and_shown(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    (source / "images" / "1.png").write_bytes(b"no")
    Image.new("L", (96, 72), 7).save(source / "images" / "2_ir.png")
    shutil.copy(source / "images" / "4.png", source / "images" / "5.png")
    shutil.copy(source / "images" / "4_ir.png", source / "images" / "5_ir.png")
    report = build([("folder", source)], tmp_path / "built", replace(LENIENT, skip=("misaligned",)))
    assert {stage: count for stage, count in report["dropped"].items() if count} == {
        "unreadable": 1,
        "constant": 1,
        "duplicate": 1,
    }
    assert json.loads((tmp_path / "built" / "cleaning.json").read_text()) == json.loads(json.dumps(report))
    sheets = sorted(path.name for path in (tmp_path / "built" / "sheets").iterdir())
    assert sheets == ["1-unreadable.jpg", "4-constant.jpg", "6-duplicate.jpg"]
    assert Image.open(tmp_path / "built" / "sheets" / sheets[0]).size[0] > 320
    assert {e.id for e in read_examples(tmp_path / "built")} == {f"scene{k}" for k in (0, 3, 4, 6, 7)}


def test_border_is_cut_off_losslessly(tmp_path):
    for name in ("train", "val", "test"):
        for number, (kind, image) in enumerate(zip(("img", "imgr"), draw_scene(ord(name[0])), strict=True)):
            place = tmp_path / "drone" / name / f"{name}{kind}"
            place.mkdir(parents=True)
            framed = Image.new(image.mode, (296, 272), "white")
            framed.paste(image, (100, 100))
            framed.save(place / "00001.png")
            assert number < 2
    build([("dronevehicle", tmp_path / "drone")], tmp_path / "built", LENIENT)
    example = by_id(read_examples(tmp_path / "built"))["dronevehicle-val_00001"]
    assert open_image(example.visible).tobytes() == draw_scene(ord("v"))[0].tobytes()
    assert (example.split, example.scene, example.band) == ("train", "val/0", "LWIR")


def test_scenes_with_copies_end_on_one_side(tmp_path):
    """Two sources show one frame under two names, and their official splits disagree."""
    for name, split in (("one", "train"), ("two", "test")):
        place = tmp_path / name
        place.mkdir()
        for number, image in enumerate(draw_scene(k + (name == "two") * 5)[1] for k in (0, 1)):
            image.save(place / f"{number}.png")
        draw_scene(9)[1].save(place / "same.png")
        lines = [{"id": f"{name}{k}", "kind": "infrared", "source": name, "split": split, "scene": "yard",
                  "infrared": f"{k}.png"} for k in (0, 1, "same")]  # fmt: skip
        (place / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = CleaningConfig(smallest=8)
    report = build([("folder", tmp_path / "one"), ("folder", tmp_path / "two")], tmp_path / "built", config)
    examples = read_examples(tmp_path / "built")
    assert report["joined_scenes"] == 1 and report["dropped"]["duplicate"] == 1
    assert len(examples) == 5 and len({e.split for e in examples}) == 1
    assert {e.source for e in examples} == {"one", "two"} and {e.place for e in examples} == {"one/yard"}
    build([("folder", tmp_path / "built")], tmp_path / "again", config)
    assert {e.place for e in read_examples(tmp_path / "again")} == {"one/yard"}


def msrs(folder, count=16, tested=4):
    """Numbered frames of which every fourth is in the authors' test part: all are one block of 100."""
    for number in range(count):
        split = "test" if number % (count // tested) == 0 else "train"
        for kind, image in zip(("vi", "ir"), draw_scene(number), strict=True):
            place = folder / split / kind
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:05d}D.png")
    return folder


def test_a_lost_official_split_is_counted_and_can_be_kept(tmp_path, capsys):
    source = f"msrs={msrs(tmp_path / 'msrs')}"
    options = ["--skip", "duplicate", "--skip", "misaligned"]
    assert main(["build", "--source", source, "--to", str(tmp_path / "anew"), *options]) == 0
    errors = capsys.readouterr().err
    assert "warning: the whole set has no test image" in errors
    assert "warning: msrs has no test image: its authors hold out 4" in errors and "--keep-official" in errors
    report = json.loads((tmp_path / "anew" / "cleaning.json").read_text())
    assert report["official_split"]["msrs"] == {
        "test": 4, "test_lost": 4, "moved": 4, "cut_images": 16, "cut_scenes": 1
    }  # fmt: skip
    assert report["kept"] == {"msrs/train": 16}
    assert main(["audit", str(tmp_path / "anew")]) == 1
    assert "nothing is held out, there is no split to audit: 16 examples, all in train" in capsys.readouterr().err
    assert main(["build", "--source", source, "--to", str(tmp_path / "kept"), "--keep-official", *options]) == 0
    assert "warning" not in capsys.readouterr().err
    report = json.loads((tmp_path / "kept" / "cleaning.json").read_text())
    assert report["kept"] == {"msrs/test": 4, "msrs/train": 12} and report["warnings"] == []
    assert report["official_split"]["msrs"]["cut_scenes"] == 1


def test_ids_of_a_folder_stay_and_14_bit_counts_are_spread(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    lines = (source / "manifest.jsonl").read_text().splitlines()
    for number, name in ((0, "night/0007"), (1, "night_0007")):
        lines[number] = json.dumps(json.loads(lines[number]) | {"id": name})
    (source / "manifest.jsonl").write_text("\n".join(lines))
    gray = np.asarray(Image.open(source / "images" / "0_ir.png"), dtype=np.uint16)
    Image.fromarray(7000 + 6 * gray).save(source / "images" / "0_ir.png")
    build([("folder", source)], tmp_path / "built", LENIENT)
    examples = read_examples(tmp_path / "built")
    assert [example.id for example in examples[:2]] == ["night/0007", "night_0007"]
    assert all(re.fullmatch(r"night_0007-[0-9a-f]{8}.visible.png", e.visible.name) for e in examples[:2])
    assert examples[0].visible.name != examples[1].visible.name
    assert np.asarray(open_image(examples[0].infrared)).std() > 30


def test_a_manifest_of_an_earlier_version_is_read(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy")
    rows = read_table(copy / "manifest.parquet", COLUMNS)
    write_table(rows, {k: v for k, v in COLUMNS.items() if k not in OPTIONAL}, copy / "manifest.parquet")
    assert by_id(read_examples(copy)).keys() == by_id(read_examples(shards)).keys()


def test_any_number_of_processes_draws_the_same_examples_of_an_epoch(shards):
    examples = read_examples(shards)
    config = LoopConfig(steps=4, batch_size=4, seed=5)
    sampler = Sampler(len(examples), config.seed)
    epoch = [draw.index for step in range(2) for draw in sampler.draws(step, 4)]
    assert sorted(examples[index].id for index in epoch) == sorted(by_id(examples))
    share, _ = config.share(2)
    split = [Sampler(len(read_examples(shards)), config.seed).draws(step, 4)[rank * share : (rank + 1) * share]
             for step in range(2) for rank in range(2)]  # fmt: skip
    assert [draw.index for part in split for draw in part] == epoch


def leaky(folder, tmp_path):
    """A copy whose test pair is a training pair, saved anew."""
    source = shutil.copytree(folder, tmp_path / "leaky")
    for name in ("{}.png", "{}_ir.png"):
        image = Image.open(source / "images" / name.format(2))
        image.resize((80, 60)).resize((96, 72)).save(source / "images" / name.format(5))
    return source


def test_audit_finds_a_copy_across_the_split(folder, tmp_path, capsys):
    source = leaky(folder, tmp_path)
    json_file, sheet = tmp_path / "audit.json", tmp_path / "audit.jpg"
    assert main(["audit", str(source), "--json", str(json_file), "--sheet", str(sheet), "--near", "12"]) == 1
    report = json.loads(json_file.read_text())
    assert report["leaks"] == [{"held_out": "scene5", "trained": "scene2", "same_scene": False}]
    assert report["as_split"]["overall"] == {"held_out": 1, "near_duplicates": 1, "same_scene": 0}
    assert Image.open(sheet).format == "JPEG"
    assert "| pairs/odd | 1 | 1 | 0 |" in capsys.readouterr().out
    (source / "images" / "3.png").write_bytes(b"no")
    assert main(["audit", str(source)]) == 1
    assert "1 image(s) cannot be read" in capsys.readouterr().err


def test_audit_of_shards_and_of_what_does_not_leak(shards, capsys):
    assert main(["audit", str(shards), "--near", "0"]) == 0
    assert "0 pair(s)" in capsys.readouterr().out


def test_validation_is_held_out_too(folder, tmp_path, capsys):
    source = leaky(folder, tmp_path)
    text = (source / "manifest.jsonl").read_text().replace('"split": "test"', '"split": "val"')
    (source / "manifest.jsonl").write_text(text)
    assert main(["audit", str(source), "--near", "12"]) == 1
    assert "| pairs/odd | 1 | 1 | 0 |" in capsys.readouterr().out


def test_random_split_holds_out_as_many_of_each_source(folder):
    examples = [replace(e, split="test" if k % 3 == 0 else "train") for k, e in enumerate(read_examples(folder))]
    drawn = random_split(examples, seed=1)
    groups = sorted({(e.kind, e.source) for e in examples})
    for kind, source in groups:
        counts = [sum(e.split == "test" for e in part if (e.kind, e.source) == (kind, source))
                  for part in (examples, drawn)]  # fmt: skip
        assert counts[0] == counts[1]
    assert [e.id for e in drawn] == [e.id for e in examples] and drawn != examples
    assert audit(examples[:0])[1]["examples"] == 0
