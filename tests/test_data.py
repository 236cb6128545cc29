import json
from dataclasses import replace
from pathlib import Path

import pytest
from make_data import draw_scene, make_manifest_dataset

from diffv2ir.data import DataError, Example, check_examples, read_examples, read_parts, split_validation
from diffv2ir.data.build import build
from diffv2ir.data.cleaning import CleaningConfig
from diffv2ir.data.examples import near_frames


@pytest.fixture
def manifest(tmp_path):
    return make_manifest_dataset(tmp_path / "data")


def test_manifest_is_filtered_by_split_kind_and_source(manifest):
    assert len(read_examples(manifest)) == 12
    assert {e.id for e in read_examples(manifest, split="test")} == {"scene7"}
    assert all(e.visible is None for e in read_examples(manifest, kinds=["infrared"]))
    assert {e.source for e in read_examples(manifest, sources=["odd"])} == {"odd"}


def test_empty_selection_names_what_there_is(manifest):
    with pytest.raises(DataError, match=r"split='validation'.*\['test', 'train'\]"):
        read_examples(manifest, split="validation")


def test_missing_partner_is_named(manifest):
    (manifest / "images" / "3_ir.png").unlink()
    with pytest.raises(DataError, match="scene3: no file .*3_ir.png"):
        read_examples(manifest)


def test_malformed_line_is_named(manifest):
    with (manifest / "manifest.jsonl").open("a") as file:
        file.write("\n{broken\n")
    with pytest.raises(DataError, match="line 13"):
        read_examples(manifest)


def test_equal_ids_are_named(manifest):
    text = (manifest / "manifest.jsonl").read_text()
    (manifest / "manifest.jsonl").write_text(f"{text}\n{text.splitlines()[3]}")
    with pytest.raises(DataError, match="the id 'scene3' is there 2 times"):
        read_examples(manifest)


def test_pair_without_visible_image_is_refused(manifest):
    lines = (manifest / "manifest.jsonl").read_text().splitlines()
    record = json.loads(lines[2])
    del record["visible"]
    (manifest / "manifest.jsonl").write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]]))
    with pytest.raises(DataError, match="scene2: kind 'pairs' needs a visible and an infrared image"):
        read_examples(manifest)


def test_broken_and_unequal_images_are_all_named(manifest):
    (manifest / "images" / "1.png").write_bytes(b"not an image")
    draw_scene(0, (40, 40))[1].save(manifest / "images" / "2_ir.png")
    with pytest.raises(DataError) as error:
        check_examples(read_examples(manifest))
    assert "2 problem(s)" in str(error.value)
    assert "1.png: not an image" in str(error.value)
    assert "scene2: sizes differ: visible 96x72, infrared 40x40" in str(error.value)


def test_folder_layout_pairs_by_name_and_reads_captions(tmp_path):
    for name in ("rgb", "ir"):
        (tmp_path / name).mkdir()
    visible, thermal = draw_scene(1)
    visible.save(tmp_path / "rgb" / "a.jpg")
    thermal.save(tmp_path / "ir" / "a.png")
    (tmp_path / "captions.json").write_text(json.dumps({"a": "a car"}))
    (example,) = read_examples(tmp_path, split="train")
    assert (example.id, example.kind, example.caption) == ("a", "pairs", "a car")
    (tmp_path / "ir" / "a.png").unlink()
    with pytest.raises(DataError, match=r"rgb/a.jpg has no partner in ir/"):
        read_examples(tmp_path)


def test_damaged_png_is_named(manifest):
    path = manifest / "images" / "1.png"
    whole = path.read_bytes()
    for damaged in (whole[:300], whole[:60] + b"\0" * 40 + whole[100:], whole[: whole.index(b"IDAT")] + b"????"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"1\.png: "):
            check_examples(read_examples(manifest))


@pytest.mark.parametrize("line", ["[1, 2]", "7", '{"id": "x"}', '{"id": "x", "visible": 3}'])
def test_record_of_another_kind_is_named(manifest, line):
    with (manifest / "manifest.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(DataError, match="manifest.jsonl line 13"):
        read_examples(manifest)


def test_infrared_without_partner_is_taken_alone_and_damaged_captions_are_named(tmp_path):
    for name in ("rgb", "ir"):
        (tmp_path / name).mkdir()
        draw_scene(1)[0].save(tmp_path / name / "a.png")
    draw_scene(1)[1].save(tmp_path / "ir" / "b.png")
    (tmp_path / "rgb" / "._a.png").write_bytes(b"of a Mac")
    (tmp_path / "ir" / "._c.png").write_bytes(b"of a Mac")
    assert [(e.id, e.kind, e.visible is None) for e in read_examples(tmp_path)] == [
        ("a", "pairs", False),
        ("b", "infrared", True),
    ]
    (tmp_path / "ir" / "b.jpg").touch()
    with pytest.raises(DataError, match=r"ir/b.jpg and ir/b.png have one name"):
        read_examples(tmp_path)
    (tmp_path / "ir" / "b.jpg").unlink()
    (tmp_path / "captions.json").write_text("{")
    with pytest.raises(DataError, match="captions.json is not JSON"):
        read_examples(tmp_path)


def test_folder_of_infrared_alone_and_given_maps(tmp_path):
    for name in ("ir", "seg"):
        (tmp_path / name).mkdir()
        draw_scene(1)[1].save(tmp_path / name / "a.png")
    (example,) = read_examples(tmp_path)
    assert (example.kind, example.visible, example.segmentation) == ("infrared", None, tmp_path / "seg" / "a.png")


def test_numbered_files_of_a_folder_are_scenes_of_fifty_on_end(tmp_path):
    (tmp_path / "ir").mkdir()
    for name in ["cat", "night_0050", *(f"day_{number:04}" for number in range(300))]:
        (tmp_path / "ir" / f"{name}.png").touch()
    examples = read_examples(tmp_path)
    scenes = {example.id: example.scene for example in examples}
    assert [scenes[name] for name in ("day_0049", "day_0050", "day_0099", "night_0050", "cat")] == [
        "day_0", "day_1", "day_1", "night_1", "cat",
    ]  # fmt: skip
    train, held_out = split_validation(examples)
    assert train and held_out and not {e.scene for e in train} & {e.scene for e in held_out}


def test_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a dataset"):
        read_examples(tmp_path)


def scenes_of(source, counts):
    """Examples of one source; scene number n has `counts[n]` of them."""
    return [
        Example(f"{source}{scene}-{n}", "pairs", source, f"s{scene}", "train", Path("v.png"), Path("i.png"))
        for scene, count in enumerate(counts)
        for n in range(count)
    ]


def test_a_source_of_few_scenes_has_one_held_out_unless_that_is_too_much_of_it():
    many, few, lopsided = scenes_of("many", [1] * 300), scenes_of("few", [10] * 5), scenes_of("two", [9, 9])
    train, held_out = split_validation(many + few + lopsided, 0.001)
    assert len({e.scene for e in held_out if e.source == "few"}) == 1
    assert not [e for e in held_out if e.source == "two"]  # half of the source
    assert len(train) + len(held_out) == 368
    alone = split_validation(few, 0.001)[1]
    assert alone == [e for e in held_out if e.source == "few"]  # whatever other sources there are
    assert split_validation(many + few, 0.0)[1] == []


def test_validation_split_keeps_scenes_together_and_does_not_depend_on_the_rest(manifest):
    examples = read_examples(manifest)
    train, held_out = split_validation(examples, 0.5)
    assert {e.id for e in train} | {e.id for e in held_out} == {e.id for e in examples}
    assert not {(e.source, e.scene) for e in train} & {(e.source, e.scene) for e in held_out}
    part = examples[3:9]
    assert split_validation(part, 0.5)[1] == [e for e in held_out if e in part]


def test_a_scene_of_several_sources_is_held_out_whole_and_the_others_as_before():
    plain = scenes_of("one", [2] * 60) + scenes_of("two", [2] * 60)
    joined = [
        replace(e, joined=f"one/s{e.scene[1:]}") if e.scene in {f"s{n}" for n in range(0, 60, 2)} else e for e in plain
    ]
    train, held_out = split_validation(joined, 0.2)
    held = {e.joined for e in held_out if e.joined}
    assert held and {e.joined for e in train if e.joined} and not held & {e.joined for e in train}
    assert {e.source for e in held_out if e.joined in held and e.joined} == {"one", "two"}
    before = {e.id for e in split_validation(plain, 0.2)[1]}
    assert {e.id for e in held_out if not e.joined} == before & {e.id for e in joined if not e.joined}
    alone = split_validation([e for e in joined if e.source == "two"], 0.2)[1]
    assert alone == [e for e in held_out if e.source == "two"]


def test_a_source_of_few_scenes_has_none_held_out_that_others_show_too():
    few = [replace(e, joined=f"few/{e.scene}") if e.scene != "s3" else e for e in scenes_of("few", [10] * 6)]
    assert {e.scene for e in split_validation(few, 0.001)[1]} == {"s3"}
    assert split_validation([e for e in few if e.joined], 0.001)[1] == []


def test_crops_of_near_frames_are_one_scene_and_that_of_a_pair_beside_them(manifest):
    lines = (manifest / "manifest.jsonl").read_text().splitlines()
    record = {key: value for key, value in json.loads(lines[0]).items() if key not in ("scene", "id")}
    pair = record | {"kind": "pairs", "source": "roadscene", "scene": "r7", "split": "train"}
    lines.append(json.dumps(pair | {"id": "roadscene_FLIR_01130"}))
    lines.append(json.dumps(pair | {"id": "roadscene_FLIR_09000", "split": "test", "scene": "r35"}))
    crop = record | {"kind": "crops", "source": "flir", "split": "train"}
    numbers = ["01120_0", "01180_3", "01181_0", "04351_0", "04351_5", "04399_2", "04400_1", "09001_1"]
    names = [f"flir_day_train_car_{number}" for number in numbers] + ["a_car"]
    lines += [json.dumps(crop | {"id": name, "scene": name}) for name in names]
    lines.append(json.dumps(crop | {"id": "flir_day_train_car_01121_0", "scene": "bridge"}))
    (manifest / "manifest.jsonl").write_text("\n".join(lines))
    assert [e.place for e in read_examples(manifest, kinds=["crops"]) if e.source == "flir"] == [
        "roadscene/r7", "roadscene/r7", "flir/flir_23", *["flir/flir_87"] * 3, "flir/flir_88",
        "flir/flir_180", "flir/a_car", "flir/bridge",
    ]  # fmt: skip


def test_shards_keep_the_scenes_of_crops_and_their_frames(tmp_path):
    folder = make_manifest_dataset(tmp_path / "data", pairs=10, infrared=0)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        frame = 1000 * (number // 2) + 10
        if number % 2:
            line |= {"kind": "crops", "source": "flir", "id": f"flir_day_train_car_{frame + 3:05d}_0"}
        else:
            line |= {"kind": "pairs", "source": "roadscene", "id": f"roadscene_FLIR_{frame:05d}"}
        line |= {"split": "train", "scene": line["id"] if number % 2 else f"r{number}"}
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build(
        [("folder", folder)], tmp_path / "shards", CleaningConfig(8, skip=("duplicate", "misaligned")), test_fraction=0
    )
    plain, sharded = ({e.id: e.place for e in read_examples(source)} for source in (folder, tmp_path / "shards"))
    assert plain == sharded and len(set(plain.values())) == 5
    parts = [[{e.id for e in part} for part in read_parts(source, 0.5)] for source in (folder, tmp_path / "shards")]
    assert parts[0] == parts[1] and all(parts[0])


def test_what_is_held_out_does_not_depend_on_what_is_chosen(manifest):
    records = [json.loads(line) for line in (manifest / "manifest.jsonl").read_text().splitlines()]
    image = {name: next(r[name] for r in records if r.get(name)) for name in ("visible", "infrared")}
    common = {"source": "s", "split": "train", "kind": "pairs", **image}
    lines = [{**common, "id": f"{scene}-{n}", "scene": f"s{scene}"} for scene in range(6) for n in range(10)]
    lines += [{**common, "id": f"ir-{n}", "scene": "only", "kind": "infrared", "visible": None} for n in range(10)]
    (manifest / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    whole = [{e.id for e in part if e.kind == "pairs"} for part in read_parts(manifest, 0.001)]
    pairs = [{e.id for e in part} for part in read_parts(manifest, 0.001, lambda e: e.kind == "pairs")]
    assert whole == pairs and len(whole[0]) + len(whole[1]) == 60


def test_frames_on_both_sides_of_a_split_are_found():
    pairs = [Example(f"roadscene_FLIR_{n}", "pairs", "roadscene", "r", "train", None, None) for n in ("00100", "00900")]
    crops = [Example(f"flir_day_val_car_{n}_1", "crops", "flir", "f", "test", None, None) for n in ("00150", "00151")]
    others = [Example("cidis_1", "pairs", "cidis", "c", "test", None, None), replace(crops[0], id="a_crop")]
    assert near_frames([*crops, *others], pairs) == {"flir_day_val_car_00150_1"}
    assert near_frames(pairs, crops) == {"roadscene_FLIR_00100"}
    assert near_frames(crops, crops) == set()


def test_manifest_names_a_joined_scene(manifest):
    lines = (manifest / "manifest.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"joined": "even/place0"})
    (manifest / "manifest.jsonl").write_text("\n".join(lines))
    first, second = read_examples(manifest)[:2]
    assert first.place == "even/place0" and second.place == "odd/place0"
