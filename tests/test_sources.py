"""Every adapter on a miniature tree of its layout."""

import json
import re
import shutil
from pathlib import Path

import pytest
from make_data import draw_scene
from PIL import Image

from diffv2ir.data import DataError, read_examples
from diffv2ir.data.build import build, find
from diffv2ir.data.cleaning import CleaningConfig
from diffv2ir.data.shards import LONGEST_KEY
from diffv2ir.data.sources import SOURCES, table
from diffv2ir.data.splits import block
from train.data import main

# Files of each data set, and what of the first in order of name is expected: name, scene, split, visible, infrared.
TREES = {
    "m3fd": (
        ["Vis/00000.png", "Ir/00000.png", "Vis/00123.png", "Ir/00123.png"],
        ("00000", "0", None, "Vis/00000.png", "Ir/00000.png"),
    ),
    "flir": (
        [
            "images_thermal_train/data/video-A-frame-000000-x.jpg",
            "images_thermal_val/data/video-B-frame-000007-y.jpg",
            "video_thermal_test/data/video-C-frame-000000-z.jpg",
            "images_rgb_train/data/video-A-frame-000000-w.jpg",
        ],
        (
            "images_thermal_train/video-A-frame-000000-x",
            "video-A",
            "train",
            None,
            "images_thermal_train/data/video-A-frame-000000-x.jpg",
        ),
    ),
    "flir-aligned": (
        [
            "JPEGImages/FLIR_00013_RGB.jpg",
            "JPEGImages/FLIR_00013_PreviewData.jpeg",
            "JPEGImages/FLIR_08913_RGB.jpg",
            "JPEGImages/FLIR_08913_PreviewData.jpeg",
        ],
        ("FLIR_00013", "FLIR_0", "train", "JPEGImages/FLIR_00013_RGB.jpg", "JPEGImages/FLIR_00013_PreviewData.jpeg"),
    ),
    "llvip": (
        [f"{kind}/{name}.jpg" for kind in ("visible", "infrared") for name in ("train/010001", "test/190002")],
        ("010001", "01", "train", "visible/train/010001.jpg", "infrared/train/010001.jpg"),
    ),
    "kaist": (
        [f"images/{place}/{band}/I00000.jpg" for place in ("set00/V000", "set06/V001") for band in ("visible", "lwir")],
        (
            "set00/V000/I00000",
            "set00/V000",
            "train",
            "images/set00/V000/visible/I00000.jpg",
            "images/set00/V000/lwir/I00000.jpg",
        ),
    ),
    "msrs": (
        [f"{name.format(k)}.png" for name in ("train/{}/00633D", "test/{}/00537N") for k in ("vi", "ir")],
        ("00537N", "5N", "test", "test/vi/00537N.png", "test/ir/00537N.png"),
    ),
    "roadscene": (
        ["crop_LR_visible/FLIR_05164.jpg", "cropinfrared/FLIR_05164.jpg", "crop_HR_visible/FLIR_05164.jpg"],
        ("FLIR_05164", "FLIR_51", None, "crop_LR_visible/FLIR_05164.jpg", "cropinfrared/FLIR_05164.jpg"),
    ),
    "aviid": (
        [f"AVIID-1/{kind}/{split}/7.png" for kind in ("visible", "infrared") for split in ("train", "test")],
        (
            "AVIID-1/test/7",
            "AVIID-1/0",
            "test",
            "AVIID-1/visible/test/7.png",
            "AVIID-1/infrared/test/7.png",
        ),
    ),
    "dronevehicle": (
        [f"{name}/{name}{kind}/00001.jpg" for name in ("train", "val", "test") for kind in ("img", "imgr")],
        ("test/00001", "test/0", "test", "test/testimg/00001.jpg", "test/testimgr/00001.jpg"),
    ),
    "vtuav": (
        [f"{part}/000000.jpg" for part in ("train_ST_001/bus_1/rgb", "train_ST_001/bus_1/ir",
                                           "test_LT_002/car_9/rgb", "test_LT_002/car_9/ir")],
        (
            "test_LT_002/car_9/000000",
            "car_9",
            "test",
            "test_LT_002/car_9/rgb/000000.jpg",
            "test_LT_002/car_9/ir/000000.jpg",
        ),
    ),
    "lsotb-tir": (
        ["TrainingData/TIR_training_001/dog_1/00000001.jpg", "sequences/car_D_002/img/0001.jpg"],
        (
            "TIR_training_001/dog_1/00000001",
            "TIR_training_001/dog_1",
            "train",
            None,
            "TrainingData/TIR_training_001/dog_1/00000001.jpg",
        ),
    ),
    "raytron": (
        ["sea/ships/img_00231.png", "sea/boats.png"],
        ("sea/boats", "sea/boats", None, None, "sea/boats.png"),
    ),
    "hit-uav": (
        [f"normal_json/{split}/0_60_30_0_01614.jpg" for split in ("train", "val", "test")],
        ("0_60_30_0_01614", "0_60_30_0_16", "test", None, "normal_json/test/0_60_30_0_01614.jpg"),
    ),
    "ir500k": (
        [f"{kind}/{name}.png" for kind in ("rgb", "ir", "seg") for name in ("000000", "000001", "000002")],
        ("000000", "0", "train", "rgb/000000.png", "ir/000000.png"),
    ),
    "folder": (
        ["rgb/a.png", "ir/a.png"],
        ("a", "a", "train", "rgb/a.png", "ir/a.png"),
    ),
}  # fmt: skip
NEEDED = {
    "m3fd": "Ir",
    "flir": "images_thermal_val",
    "flir-aligned": "JPEGImages",
    "llvip": "infrared/test",
    "kaist": "images/set00/V000/lwir",
    "msrs": "test/ir",
    "roadscene": "crop_LR_visible",
    "aviid": "AVIID-1/infrared",
    "dronevehicle": "val/valimgr",
    "vtuav": "train_ST_001/bus_1/ir",
    "lsotb-tir": "sequences/car_D_002/img",
    "hit-uav": "normal_json/val",
    "ir500k": "ir",
}


@pytest.fixture
def tree(tmp_path):
    """Makes the tree of a data set, with an empty file for each image: adapters read no pixels."""

    def make(key: str) -> Path:
        for name in TREES[key][0]:
            path = tmp_path / key / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if key == "flir-aligned":
            (tmp_path / key / "align_train.txt").write_text("FLIR_00013_PreviewData\n")
            (tmp_path / key / "align_validation.txt").write_text("FLIR_08913_PreviewData\n")
        if key == "ir500k":
            (tmp_path / key / "seeds.json").write_text(json.dumps(["000000", ["000001", ["7"]]]))
        return tmp_path / key

    return make


def test_every_source_has_a_tree():
    assert TREES.keys() == SOURCES.keys()


@pytest.mark.parametrize("key", TREES)
def test_layout_is_read(key, tree):
    root = tree(key)
    found = sorted(SOURCES[key].find(root), key=lambda one: (one.name, str(one.infrared)))
    first = found[0]
    visible = first.visible.relative_to(root).as_posix() if first.visible else None
    infrared = first.infrared.relative_to(root).as_posix()
    assert (first.name, first.scene, first.split, visible, infrared) == TREES[key][1]
    assert all(one.infrared.is_file() and (one.visible is None or one.visible.is_file()) for one in found)


@pytest.mark.parametrize("key", TREES)
def test_what_a_mac_leaves_is_no_image(key, tree):
    root = tree(key)
    found = list(SOURCES[key].find(root))
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").touch()
        shadow = root / "__MACOSX" / path.relative_to(root)
        shadow.parent.mkdir(parents=True, exist_ok=True)
        shadow.with_name(f"._{path.name}").touch()
        shadow.with_name(path.name).touch()
        beside = path.parent / "__MACOSX"
        beside.mkdir(exist_ok=True)
        (beside / path.name).touch()
    assert list(SOURCES[key].find(root)) == found


def test_two_files_of_one_name_are_named(tree):
    root = tree("m3fd")
    (root / "Vis/00123.jpg").touch()
    with pytest.raises(DataError, match=r"Vis/00123.jpg and 00123.png have one name"):
        list(SOURCES["m3fd"].find(root))


def test_aviid_is_read_as_its_users_have_it(tmp_path):
    for name in ("trainA/1.png", "trainB/1.png", "testA/205.png", "testB/205.png"):
        path = tmp_path / "AVIID3" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "AVIID1-unpaired-5").mkdir()
    found = {one.split: one for one in SOURCES["aviid"].find(tmp_path)}
    assert found["train"].visible == tmp_path / "AVIID3/trainA/1.png" and found["train"].scene == "AVIID3/0"
    assert found["test"].infrared == tmp_path / "AVIID3/testB/205.png" and found["test"].name == "AVIID3/test/205"
    shutil.rmtree(tmp_path / "AVIID3" / "testB")
    with pytest.raises(DataError, match="testB"):
        list(SOURCES["aviid"].find(tmp_path))


@pytest.mark.parametrize("key", NEEDED)
def test_missing_folder_is_named(key, tree):
    root = tree(key)
    shutil.rmtree(root / NEEDED[key])
    with pytest.raises(DataError, match=Path(NEEDED[key]).name):
        list(SOURCES[key].find(root))


def test_missing_partner_is_named(tree):
    root = tree("m3fd")
    (root / "Vis/00123.png").unlink()
    with pytest.raises(DataError, match="1 image.*no partner.*00123"):
        list(SOURCES["m3fd"].find(root))


def test_a_set_that_holds_nothing_is_named(tmp_path):
    for key, pattern in (
        ("kaist", r"set"),
        ("vtuav", r"train\|test"),
        ("raytron", "no image"),
        ("lsotb-tir", "nothing"),
    ):
        with pytest.raises(DataError, match=pattern):
            list(SOURCES[key].find(tmp_path))


def test_of_ir500k_only_some_have_a_visible_partner(tree):
    root = tree("ir500k")
    (root / "rgb/000001.png").unlink()
    found = {one.name: one.visible for one in SOURCES["ir500k"].find(root)}
    assert found == {"000000": root / "rgb/000000.png", "000001": None}
    (root / "ir/000000.png").unlink()
    with pytest.raises(DataError, match="1 image.* of rgb/ have no partner in ir/: 000000$"):
        list(SOURCES["ir500k"].find(root))


def test_seeds_choose_the_examples_and_name_what_is_missing(tree):
    root = tree("ir500k")
    found = list(SOURCES["ir500k"].find(root))
    assert [one.name for one in found] == ["000000", "000001"]
    assert found[1].segmentation == root / "seg/000001.png"
    (root / "seeds.json").write_text('["000000", "000009"]')
    with pytest.raises(DataError, match="names 1 image.*000009"):
        list(SOURCES["ir500k"].find(root))
    (root / "seeds.json").write_text('[{"a": 1}]')
    with pytest.raises(DataError, match="no list of names"):
        list(SOURCES["ir500k"].find(root))


def test_official_split_of_flir_aligned_needs_its_lists(tree):
    root = tree("flir-aligned")
    assert {one.name: one.split for one in SOURCES["flir-aligned"].find(root)} == {
        "FLIR_00013": "train",
        "FLIR_08913": "test",
    }
    (root / "align_validation.txt").unlink()
    with pytest.raises(DataError, match="align_validation.txt"):
        list(SOURCES["flir-aligned"].find(root))


@pytest.mark.parametrize(
    "stem, scene", [("00537D", "5D"), ("FLIR_05164", "FLIR_51"), ("0_60_30_0_01614", "0_60_30_0_16"), ("cat", "cat")]
)
def test_blocks_of_numbers(stem, scene):
    assert block(stem) == scene


def test_frames_that_two_sources_show_are_one_scene(tree):
    roads, aligned = tree("roadscene"), tree("flir-aligned")
    for name in ("crop_LR_visible/FLIR_00017.jpg", "cropinfrared/FLIR_00017.jpg", "crop_LR_visible/c.jpg"):
        (roads / name).touch()
    (roads / "cropinfrared" / "c.jpg").touch()
    places = {one.id: one.scene for one in find([("roadscene", roads), ("flir-aligned", aligned)])}
    assert places["roadscene-FLIR_00017"] == places["flir-aligned-FLIR_00013"] == "flir-adas-v1/FLIR_0"
    assert places["roadscene-c"] == "roadscene/c" and len(set(places.values())) == 4
    # Built one by one, they are still one.
    for key, root in (("roadscene", roads), ("flir-aligned", aligned)):
        for number, path in enumerate(sorted(root.rglob("*.jp*g"))):
            Image.new("RGB", (16, 16), (number, 9, 9)).save(path)
        lenient = CleaningConfig(8, skip=("constant", "duplicate", "misaligned"))
        build([(key, root)], root.parent / f"built-{key}", lenient)
    built = {
        e.id: e.place for key in ("roadscene", "flir-aligned") for e in read_examples(roads.parent / f"built-{key}")
    }
    assert built["roadscene-FLIR_00017"] == built["flir-aligned-FLIR_00013"] == "flir-adas-v1/FLIR_0"


def test_images_of_raytron_are_scenes_by_folder_and_number(tmp_path):
    (tmp_path / "road2").mkdir()
    wanted = {"00001": "0", "00099": "0", "00100": "1", "boats": "boats", "road2/0001": "road2/0", "road2/a": "road2/a"}
    for name in wanted:
        (tmp_path / f"{name}.png").touch()
    assert {found.name: found.scene for found in SOURCES["raytron"].find(tmp_path)} == wanted


def test_docs_hold_the_table_of_sources():
    assert table() in (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--test-fraction", "1.5", r"test_fraction must lie in \[0, 1\), got 1.5"),
        ("--shard-length", "0", "a shard must hold at least 1 example, got 0"),
        ("--smallest", "-1", "smallest must be at least 0 pixels, got -1"),
        ("--contrast", "nan", r"contrast must lie in \[0, 128\), got nan"),
        ("--black", "0", r"black must lie in \(0, 1\], got 0.0"),
        ("--near", "300", r"near must lie in \[0, 256\), got 300"),
        ("--alignment", "2", r"alignment must lie in \[-1, 1\], got 2.0"),
        ("--workers", "0", "workers must be at least 1, got 0"),
    ],
)
def test_options_are_checked_before_an_image_is_read(flag, value, message, tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffv2ir.data.build.measure_all", None)
    monkeypatch.setattr("diffv2ir.data.audit.measure_all", None)
    assert main(["build", "--source", f"m3fd={tree('m3fd')}", "--to", str(tmp_path / "out"), flag, value]) == 1
    assert re.search(message, capsys.readouterr().err)


KEY = r"raytron-[\w-]+-[0-9a-f]{8}"


def test_keys_tell_apart_what_becomes_one_name_and_what_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("diffv2ir.data.build.measure_all", None)
    long = "/".join(["a" * 40] * 3)
    names = ["船/1.png", "车/1.png", "a_b/1.png", "a/b_1.png", f"{long}/1.png", f"{long}/2.png", "x/1.png", "y.png",
             "y.jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    keys = {c.found.infrared.relative_to(tmp_path).as_posix(): c.key for c in find([("raytron", tmp_path)])}
    assert keys.keys() == set(names) and len(set(keys.values())) == len(names)
    assert keys["x/1.png"] == "raytron-x_1"
    assert all(re.fullmatch(KEY, key) and len(key) <= LONGEST_KEY for name, key in keys.items() if name != "x/1.png")
    again = {c.found.infrared.relative_to(tmp_path).as_posix(): c.key for c in find([("raytron", tmp_path)])}
    assert again == keys
    with pytest.raises(DataError, match="have the same id.*was a source named twice"):
        find([("raytron", tmp_path), ("raytron", tmp_path)])


def test_command_names_what_is_wrong(tmp_path, capsys):
    assert main(["build", "--source", "mfd=.", "--to", str(tmp_path / "out")]) == 1
    assert "there is no source 'mfd'; known are m3fd" in capsys.readouterr().err
    assert main(["build", "--source", f"m3fd={tmp_path}", "--to", str(tmp_path / "out")]) == 1
    assert "has no folder Vis/ or vi/; there: nothing" in capsys.readouterr().err
    draw_scene(0)[0].save(tmp_path / "a.png")
    assert main(["build", "--source", f"raytron={tmp_path}", "--to", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
