"""The command line, run in this process."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_data import make_manifest_dataset
from PIL import Image

from diffv2ir import cli, cli_evaluate
from diffv2ir.metadata import restore
from diffv2ir.settings import MAX_SEED

QUICK = ["--steps", "1", "--sampler", "ddim", "--seed", "5"]


@pytest.fixture(autouse=True)
def _bundle(bundle_folder, monkeypatch):
    """The bundle "tiny" is the mini one."""
    monkeypatch.setenv("DIFFV2IR_TINY", str(bundle_folder))


@pytest.fixture
def loaded(pipe, monkeypatch):
    """Spares the tests of everything but loading the seconds it takes."""
    for module in (cli, cli_evaluate):
        monkeypatch.setattr(module, "load_pipeline", lambda options: pipe)
    return pipe


@pytest.fixture
def photos(photo, tmp_path):
    folder = tmp_path / "photos"
    (folder / "other").mkdir(parents=True)
    photo.save(folder / "street.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("L").save(folder / "other" / "street.jpg")
    (folder / "text.png").write_text("no picture")
    return folder


def translate(*arguments) -> int:
    return cli.main(["translate", *map(str, arguments), *QUICK])


def test_translate_writes_pictures_and_prints(photos, photo, tmp_path, capsys):
    """With the bundle named "tiny", as a user has it."""
    out = tmp_path / "new" / "out"
    assert translate(photos / "street.png", "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["street_ir.png", "street_map.png"]
    with Image.open(out / "street_ir.png") as image:
        assert (image.mode, image.size) == ("L", photo.size)
        caption = image.text["Description"]
    with Image.open(out / "street_map.png") as image:
        assert (image.mode, image.size) == ("RGB", photo.size)
    metadata = restore(out / "street_ir.png").settings.to_dict()
    assert (metadata["steps"], metadata["sampler"], metadata["seed"], metadata["resolution"]) == (1, "ddim", 5, 64)
    assert metadata["text_scale"] == 3.0  # the bundle's own
    printed = capsys.readouterr().out
    assert f"street.png -> {out / 'street_ir.png'}" in printed and "seed: 5" in printed
    assert f"caption: {caption or '(off)'}" in printed
    assert all(f"{stage} " in printed for stage in ("caption", "segmentation", "text", "encode", "denoise", "decode"))


def test_sixteen_bits(loaded, photos, tmp_path):
    assert translate(photos / "street.png", "--out", tmp_path, "--bits", 16) == 0
    with Image.open(tmp_path / "street_ir.png") as image:
        assert np.asarray(image).dtype == np.uint16 and np.asarray(image).max() > 255


def test_unreadable_photos_are_named_and_skipped(loaded, photos, tmp_path, capsys):
    out = tmp_path / "out"
    code = translate(photos / "text.png", photos / "street.png", photos / "missing.png", photos, "--out", out)
    assert code == 1
    assert sorted(path.name for path in out.iterdir()) == ["street_ir.png", "street_map.png"]
    errors = capsys.readouterr().err
    assert "text.png: skipped" in errors and "missing.png: skipped" in errors and "is a folder" in errors
    assert "Traceback" not in errors


def test_a_name_that_is_no_text_is_printed_somehow(loaded, photo, tmp_path, monkeypatch):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/stra\xdfe.png"))
    photo.save(path)
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="utf-8", errors="strict"))
    assert translate(path, "--out", tmp_path / "out") == 0
    sys.stdout.flush()
    assert b"stra\\udcdfe.png -> " in output.getvalue()


def test_equal_stems_do_not_overwrite_each_other(loaded, photos, tmp_path):
    out = tmp_path / "out"
    assert translate(photos / "street.png", photos / "other" / "street.jpg", "--out", out) == 0
    names = {"street_ir.png", "street_map.png", "street-2_ir.png", "street-2_map.png"}
    assert {path.name for path in out.iterdir()} == names
    one, other = (np.asarray(Image.open(out / f"{stem}_ir.png")) for stem in ("street", "street-2"))
    assert not np.array_equal(one, other)


def test_results_never_overwrite_a_photo(loaded, photo, tmp_path):
    photo.save(tmp_path / "street.png")
    photo.save(tmp_path / "street_ir.png")
    before = (tmp_path / "street_ir.png").read_bytes()
    assert translate(tmp_path / "street.png", tmp_path / "street_ir.png", "--out", tmp_path) == 0
    assert (tmp_path / "street_ir.png").read_bytes() == before
    assert (tmp_path / "street-2_ir.png").is_file() and (tmp_path / "street_ir_ir.png").is_file()


def test_flags_become_settings(loaded, photos, tmp_path):
    flags = ["--style", "night", "--visible-scale", 2, "--segmentation-scale", "0", "--text-scale", "4.5"]
    flags += ["--branch-order", "svt", "--resolution-rule", "longer", "--captioning", "sampled", "--map-style", "union"]
    flags += ["--edge-radius", 3.5, "--gain-control", 0.25, "--band", "NIR"]
    assert translate(photos / "street.png", "--out", tmp_path, *flags, "--resolution", 96, "--caption", "a car") == 0
    metadata = restore(tmp_path / "street_ir.png").settings.to_dict()
    assert metadata == {
        "steps": 1,
        "visible_scale": 2.0,
        "segmentation_scale": 0.0,
        "text_scale": 4.5,
        "seed": 5,
        "sampler": "ddim",
        "resolution": 96,
        "edge_radius": 3.5,
        "gain_control": 0.25,
        "style": "night",
        "band": "NIR",
        "branch_order": "svt",
        "resolution_rule": "longer",
        "captioning": "sampled",
        "map_style": "union",
    }
    with Image.open(tmp_path / "street_ir.png") as image:
        assert image.text["Description"] == "a car"


def test_preset_lies_below_the_flags(loaded):
    options = cli.build_parser().parse_args(["translate", "x", "--out", "y", "--preset", "paper", "--steps", "3"])
    settings = cli.settings_from(options, loaded)
    assert (settings.sampler, settings.steps, settings.text_scale) == ("euler_ancestral", 3, 7.5)
    assert settings.resolution == 64


def test_photo_is_encoded_once(loaded, photos, tmp_path, monkeypatch):
    calls = []
    encode = loaded.encode_image
    monkeypatch.setattr(loaded, "encode_image", lambda image: calls.append(image.size) or encode(image))
    assert translate(photos / "street.png", "--out", tmp_path, "--resolution", 96) == 0
    assert calls == [(120, 96)] * 2


def test_conditions_off(loaded, photos, tmp_path, capsys):
    assert translate(photos / "street.png", "--out", tmp_path, "--caption", "", "--segmentation", "none") == 0
    assert (tmp_path / "street_ir.png").is_file() and not (tmp_path / "street_map.png").exists()
    assert "caption: (off)" in capsys.readouterr().out


def test_own_segmentation(loaded, photos, photo, tmp_path, capsys):
    Image.new("RGB", photo.size, "red").save(tmp_path / "map.png")
    out = tmp_path / "out"
    assert translate(photos / "street.png", "--out", out, "--segmentation", tmp_path / "map.png") == 0
    with Image.open(out / "street_map.png") as drawn:
        assert drawn.getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (10, 90)).save(tmp_path / "map.png")
    assert translate(photos / "street.png", "--out", out, "--segmentation", tmp_path / "map.png") == 1
    assert "another aspect ratio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "steps must be a whole number from 1 to 500, got 0"),
        (["--text-scale", "-1"], "text_scale must be a number, 0 or more, got -1.0"),
        (["--text-scale", "nan"], "text_scale must be"),
        (["--seed", "2147483648"], "seed must be"),
        (["--style", "noon"], "style 'noon' is not in this bundle, which has general, night"),
        (["--segmentation", "missing.png"], "missing.png: there is no such file"),
    ],
)
def test_wrong_values_end_with_2(loaded, photos, tmp_path, capsys, flags, message):
    assert cli.main(["translate", str(photos / "street.png"), "--out", str(tmp_path / "out"), *flags]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("diffv2ir translate: ") and message in errors
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["translate", "photo.png"],
        ["translate", "--out", "x"],
        ["translate", "photo.png", "--out", "x", "--steps", "many"],
        ["translate", "photo.png", "--out", "x", "--sampler", "heun"],
        ["evaluate"],
        ["paint"],
        [],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and "usage: diffv2ir" in capsys.readouterr().err


def test_one_map_does_not_fit_several_photos(photos, tmp_path, capsys):
    both = [photos / "street.png", photos / "other" / "street.jpg"]
    assert translate(*both, "--out", tmp_path, "--segmentation", photos / "street.png") == 2
    assert "fits one photo" in capsys.readouterr().err


def test_places_that_cannot_be_written(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        assert translate(photos / "street.png", "--out", tmp_path / place) == 2
        error = capsys.readouterr().err
        assert "is a file; name a folder" in error and f"--out {tmp_path / place}" in error and "Errno" not in error


def test_a_picture_that_is_replaced_is_told(loaded, photos, tmp_path, capsys):
    for told in (False, True):
        assert translate(photos / "street.png", "--out", tmp_path) == 0
        assert (f"{tmp_path / 'street_ir.png'} (replaced)\n" in capsys.readouterr().out) == told


def test_the_help_suits_a_command_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["translate", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "PHOTO picture files" in printed
    assert "without one, one is drawn" in printed and "empty draws" not in printed
    for words in (
        "with full-size models finer. 1 to 500.",
        "(s_V of Eq. 2 of the paper). 0 or more.",
        "over the whole range. 0 to 1.",
    ):
        assert words in printed
    assert f"one is drawn. 0 to {MAX_SEED}." in printed


def test_bundles_that_cannot_be_used(bundle_folder, photos, tmp_path, capsys):
    for name, message in ((tmp_path / "none", "no such folder"), (photos, "model_index.json is missing")):
        assert translate(photos / "street.png", "--out", tmp_path, "--bundle", name) == 2
        assert message in capsys.readouterr().err
    copy = shutil.copytree(bundle_folder, tmp_path / "copy")
    shutil.rmtree(copy / "captioner")
    assert translate(photos / "street.png", "--out", tmp_path, "--bundle", copy) == 2
    assert "- captioner: the folder is missing" in capsys.readouterr().err


def test_device_that_is_not_there(photos, tmp_path, capsys):
    assert translate(photos / "street.png", "--out", tmp_path, "--device", "abacus") == 2
    assert "device 'abacus' cannot be used" in capsys.readouterr().err


def test_interrupted(loaded, photos, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loaded, "generate", interrupt)
    assert translate(photos / "street.png", "--out", tmp_path) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_manifest_dataset(tmp_path_factory.mktemp("data") / "set", pairs=4, infrared=1)


def test_a_damaged_style_is_named(bundle_folder, photos, tmp_path, monkeypatch, capsys):
    damaged = shutil.copytree(bundle_folder, tmp_path / "damaged")
    (damaged / "styles" / "night" / "pytorch_lora_weights.safetensors").write_bytes(b"half of it")
    monkeypatch.setenv("DIFFV2IR_TINY", str(damaged))
    assert translate(photos / "street.png", "--out", tmp_path / "out", "--style", "night") == 2
    assert "style 'night' in " in (message := capsys.readouterr().err) and "does not fit this UNet" in message


def test_a_picture_that_is_not_finite_says_what_helps(loaded, data, monkeypatch, capsys):
    monkeypatch.setattr(loaded.vae, "decode", lambda latents: SimpleNamespace(sample=latents * float("nan")))
    assert evaluate(data, "--split", "train", "--limit", 1) == 2
    assert "load the bundle in float32" in capsys.readouterr().err


def evaluate(data, *arguments) -> int:
    return cli.main(["evaluate", "--data", str(data), *QUICK, *map(str, arguments)])


def test_evaluate(loaded, data, tmp_path, capsys):
    places = ["--json", tmp_path / "new" / "scores.json", "--sheet", tmp_path / "sheet.png"]
    assert evaluate(data, "--split", "train", "--limit", 2, *places) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.split("\n\n")[0].splitlines() if " model " in line]
    assert [line.split()[:2] for line in lines] == [["even", "1"], ["odd", "1"], ["all", "2"]]
    record = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert (record["bundle"], record["split"], record["kind"]) == ("tiny", "train", "pairs")
    assert record["model"]["all"]["count"] == 2 and record["settings"]["seed"] == 5
    assert f"{record['model']['all']['psnr']:.2f}" in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * 4 * 160 + 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "train", "--source", "third"], "which has even, odd"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--split", "holiday"], "no example with split='holiday'"),
        (["--sheet", "sheet.xyz"], "sheet.xyz"),
        (["--steps", "0"], "steps must be"),
    ],
)
def test_wrong_evaluations_end_with_2(loaded, data, capsys, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(data, *flags) == 2
    assert message in capsys.readouterr().err


def test_evaluation_checks_its_results_place_first(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_evaluate, "load_pipeline", lambda options: pytest.fail("loaded before the check"))
    (tmp_path / "file").write_text("")
    assert evaluate(data, "--json", tmp_path / "file" / "scores.json") == 2
    assert "scores.json cannot be written" in capsys.readouterr().err
    assert evaluate(tmp_path) == 2
    assert "is not a dataset" in capsys.readouterr().err


def test_compare_names_the_better_one(tmp_path, capsys):
    rows = {f"scene{n}": {"psnr": 10.0 + n, "ssim": 0.4} for n in range(5)}
    better = {key: {"psnr": row["psnr"] + 1, "ssim": 0.4} for key, row in rows.items()}
    better["scene9"] = {"psnr": None, "ssim": 1.0}  # equal images
    for name, images in (("a", better), ("b", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images}))
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "5 images of 6 and 5" in lines[0]
    assert lines[2].split() == "all 5 psnr +1.00 dB +1.00 to +1.00 better on 100%".split()
    assert lines[3].split() == "all 5 ssim +0.000 +0.000 to +0.000 better on 50%".split()
    assert len(lines) == 4


def test_compare_by_camera_and_with_a_baseline(tmp_path, capsys):
    """Every measure that both have; smaller is better for some; where one image has none, it is left out."""
    values = [("even", 0.5, 0.2, None), ("odd", 0.6, 0.4, 12.0), ("odd", 0.7, 0.4, 30.0)]
    rows = {
        f"scene{number}": {
            "source": source,
            "psnr": 10,
            "ssim": 0.5,
            "edge_f1": f1,
            "lpips": lpips,
            "person_error": person,
        }
        for number, (source, f1, lpips, person) in enumerate(values)
    }
    gray = {key: row | {"edge_f1": 0.6, "lpips": 0.3, "person_error": 20.0} for key, row in rows.items()}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": rows, "baseline_images": {"visible_gray": gray}}))
    assert cli.main(["compare", str(path), f"{path}:visible_gray", "--json", str(tmp_path / "c.json")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["even"] * 4 + ["odd"] * 5 + ["all"] * 5  # even has nobody
    by_name = {(line[0], line[2]): line for line in lines}
    assert by_name["even", "lpips"][3:4] == ["-0.100"] and by_name["even", "lpips"][-3:] == "better on 100%".split()
    assert by_name["odd", "lpips"][3:4] == ["+0.100"] and by_name["odd", "lpips"][-1] == "0%"
    assert by_name["all", "edge_f1"][1] == "3" and by_name["all", "edge_f1"][-1] == "50%"
    assert by_name["all", "person_error"][1:5] == ["2", "person_error", "+1.0", "levels"]
    stored = json.loads((tmp_path / "c.json").read_text())["difference"]
    assert stored["all"]["lpips"]["win_rate"] == pytest.approx(1 / 3) and stored["even"]["psnr"]["difference"] == 0
    assert cli.main(["compare", str(path), f"{path}:constant"]) == 2
    assert "a.json is not a file that evaluate --json wrote with constant" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": {"a": {"psnr": 1}}}'])
def test_compare_refuses_other_files(content, tmp_path, capsys):
    (tmp_path / "a.json").write_text(content)
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 2
    assert "a.json is not a file that evaluate --json wrote" in capsys.readouterr().err
