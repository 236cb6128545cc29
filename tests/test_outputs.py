"""Any method's folder of pictures, scored by the whole protocol and compared with scikit-image's numbers for it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from make_data import make_manifest_dataset
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffv2ir import cli
from diffv2ir.data import DataError, read_examples
from diffv2ir.evaluate import Translation, central_square, gray_square
from diffv2ir.outputs import output_path, read_outputs, save_outputs


@pytest.fixture
def data(tmp_path):
    """Two pairs of 96x72 px; one id has a slash and a dot."""
    folder = make_manifest_dataset(tmp_path / "data", pairs=3, infrared=0)
    manifest = folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"id": "scene1"', '"id": "night/scene.1"'))
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Another method's: a full frame of 16 bits at another size, and a coloured JPEG of the square."""
    folder = tmp_path / "pictures"
    (folder / "night").mkdir(parents=True)
    ys, xs = np.mgrid[:54, :72]
    Image.fromarray((xs * 700 + ys * 200).astype(np.uint16)).save(folder / "scene0.png")
    Image.effect_noise((100, 100), 80).convert("RGB").save(folder / "night" / "scene.1.JPG")
    return folder


def by_hand(path) -> np.ndarray:
    """A picture as the protocol has it, without the library: gray by Rec. 601, the square cut, 256 px by Lanczos."""
    array = np.asarray(Image.open(path)).astype(np.int64)
    if array.max() > 255:
        array = np.round(array / 257).astype(np.int64)
    if array.ndim == 3:
        array = (array[..., 0] * 19595 + array[..., 1] * 38470 + array[..., 2] * 7471 + 0x8000) >> 16
    side = min(array.shape)
    top, left = ((length - side) // 2 for length in array.shape)
    square = Image.fromarray(array[top : top + side, left : left + side].astype(np.uint8))
    return np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))


def evaluate(data, *arguments) -> int:
    return cli.main(["evaluate", "--data", str(data), "--split", "train", *map(str, arguments)])


def test_the_protocol_by_an_independent_library(data, pictures, tmp_path, capsys):
    assert evaluate(data, "--outputs", pictures, "--json", tmp_path / "a.json", "--sheet", tmp_path / "a.png") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["bundle"] is None and record["settings"] is None and record["outputs"] == str(pictures)
    values = []
    for key, name, number in (("scene0", "scene0.png", 0), ("night/scene.1", "night/scene.1.JPG", 1)):
        made, real = by_hand(pictures / name), by_hand(data / "images" / f"{number}_ir.png")
        gray = by_hand(data / "images" / f"{number}.png")
        psnr = peak_signal_noise_ratio(real, made, data_range=255)
        ssim = structural_similarity(real, made, data_range=255)
        row = record["images"][key]
        assert (row["psnr"], row["ssim"]) == (pytest.approx(psnr, abs=1e-6), pytest.approx(ssim, abs=1e-6))
        baseline = record["baseline_images"]["visible_gray"][key]
        # Here the visible image is gray before it is resized, there after it: a level of rounding.
        assert baseline["psnr"] == pytest.approx(peak_signal_noise_ratio(real, gray, data_range=255), abs=0.05)
        assert baseline["ssim"] == pytest.approx(structural_similarity(real, gray, data_range=255), abs=0.02)
        values.append((psnr, ssim))
    overall = record["model"]["all"]
    assert [overall["psnr"], overall["ssim"]] == pytest.approx(np.mean(values, axis=0), abs=1e-6)
    assert f"{overall['psnr']:.2f}" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width == 2 * 3 * 160 + 12  # no maps


def test_all_wrong_pictures_are_in_one_error(data, pictures, capsys):
    (pictures / "scene0.png").unlink()
    (pictures / "night" / "scene.1.png").write_text("no picture")
    assert evaluate(data, "--outputs", pictures) == 2
    error = capsys.readouterr().err
    assert "2 of 2 pictures" in error and "scene0: missing" in error
    assert "night/scene.1: there are several, scene.1.JPG, scene.1.png" in error
    (pictures / "night" / "scene.1.JPG").unlink()
    Image.new("L", (40, 10)).save(pictures / "scene0.webp")
    assert evaluate(data, "--outputs", pictures) == 2
    error = capsys.readouterr().err
    assert "scene.1.png: not an image" in error
    assert "scene0.webp: has 40x10 pixels, which is neither a square nor the shape of its photo, 96x72" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "3"], "--steps can change nothing"),
        (["--without", "map", "--save-outputs", "x"], "--save-outputs, --without can change nothing"),
    ],
)
def test_flags_of_the_model_do_not_go_with_pictures(data, pictures, capsys, flags, message):
    assert evaluate(data, "--outputs", pictures, *flags) == 2
    assert message in capsys.readouterr().err


def test_no_folder_is_said(data, tmp_path, capsys):
    assert evaluate(data, "--outputs", tmp_path / "absent") == 2
    assert "absent is not a folder" in capsys.readouterr().err


def test_saved_pictures_are_read_back_as_they_were(data, tmp_path):
    examples = read_examples(data, "train")
    visible = central_square(Image.open(examples[0].visible))
    made = [
        Translation(example, visible, visible, gray_square(example.visible), gray_square(example.infrared), "")
        for example in examples
    ]
    save_outputs(made, tmp_path / "ours")
    assert (tmp_path / "ours" / "night" / "scene.1.png").is_file()
    for one, other in zip(made, read_outputs(tmp_path / "ours", examples), strict=True):
        assert np.array_equal(np.asarray(one.infrared), np.asarray(other.infrared))
        assert np.array_equal(np.asarray(one.real), np.asarray(other.real))


@pytest.mark.parametrize("wrong", ["../up", "/root", "a/../../b", ""])
def test_ids_stay_in_the_folder(data, tmp_path, wrong):
    with pytest.raises(ValueError, match="must be a relative path"):
        output_path(tmp_path, wrong)
    example = dataclasses.replace(read_examples(data, "train")[0], id=wrong)
    with pytest.raises(DataError, match="missing"):
        read_outputs(tmp_path, [example])


def test_a_bundles_pictures_are_written_and_score_the_same(pipe, bundle_folder, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFV2IR_TINY", str(bundle_folder))
    flags = ["--limit", 1, "--steps", 1, "--sampler", "ddim"]
    assert evaluate(data, *flags, "--save-outputs", tmp_path / "ours", "--json", tmp_path / "a.json") == 0
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["pictures.jsonl", "scene0.png"]
    assert evaluate(data, "--limit", 1, "--outputs", tmp_path / "ours", "--json", tmp_path / "b.json") == 0
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert one["images"] == other["images"] and one["model"] == other["model"]
    assert one["bundle_sha256"] == pipe.bundle_sha256 and other["bundle_sha256"] is None
    assert one["pictures"] == other["pictures"] and list(one["pictures"]) == ["scene0"]


# Two files are compared only where they are of the same pictures


@pytest.fixture
def scored(data, pictures, tmp_path):
    """The places of an evaluation's file, and of another's after `change(data)`."""

    def scored(change):
        places = [str(tmp_path / f"{name}.json") for name in "ab"]
        assert evaluate(data, "--outputs", pictures, "--json", places[0]) == 0
        change(data)
        assert evaluate(data, "--outputs", pictures, "--json", places[1]) == 0
        return places

    return scored


def edit(place, **changes):
    """Another version's or protocol's file: with other entries, without those that are None."""
    path = Path(place)
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def test_equal_names_of_other_pictures_are_not_compared(scored, capsys):
    def change(data):
        path = data / "images" / "0_ir.png"
        Image.eval(Image.open(path), lambda level: level // 2).save(path)

    places = scored(change)
    assert cli.main(["compare", *places]) == 2
    error = capsys.readouterr().err
    assert "were not scored on the same pictures: the real one of scene0 differs, and so for 1 of 2 names" in error
    assert cli.main(["compare", places[0], f"{places[0]}:visible_gray"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_some_of_the_same_pictures_are_compared(scored, data, capsys):
    places = scored(lambda data: None)
    assert evaluate(data, "--outputs", data.parent / "pictures", "--limit", 1, "--json", places[1]) == 0
    assert cli.main(["compare", *places]) == 0
    printed = capsys.readouterr()
    assert "1 images of 2 and 1" in printed.out and "warning" not in printed.err


def test_another_protocol_is_not_compared_and_an_older_file_is_with_a_warning(scored, capsys):
    places = scored(lambda data: None)
    edit(places[1], protocol="whole frames, 512 px")
    assert cli.main(["compare", *places]) == 2
    error = capsys.readouterr().err
    assert (
        "by different protocols: " in error
        and "central square, 256 px" in error
        and "is not 'whole frames, 512 px'" in error
    )
    edit(places[1], protocol=None, pictures=None)
    assert cli.main(["compare", *places]) == 0
    error = capsys.readouterr().err
    assert "warning: " in error and "b.json cannot tell which pictures were scored" in error and "a.json" not in error
