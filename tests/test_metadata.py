"""What a saved picture says about itself."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from diffv2ir import __version__, bundle, imaging
from diffv2ir.imaging import ImageError
from diffv2ir.metadata import DIGITAL_SOURCE_TYPE, KEY, XMP_KEY, Record, deep_gray, restore, save_png
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.session import Session

RECORD = Record(GenerationSettings(steps=3, seed=5), "größer <a> & 夜", "own", "ab", "mini", "cd", "1.2")


def save(path, **texts):
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    return path


def test_a_record_is_read_back(tmp_path):
    save_png(Image.new("L", (4, 4)), tmp_path / "a.png", RECORD)
    assert restore(tmp_path / "a.png") == RECORD
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == RECORD.caption


def test_a_file_says_that_it_is_generated(tmp_path):
    save_png(Image.new("L", (4, 4)), tmp_path / "a.png", RECORD)
    with Image.open(tmp_path / "a.png") as image:
        description = ElementTree.fromstring(image.text[XMP_KEY].encode()).find(".//{*}Description")
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == DIGITAL_SOURCE_TYPE
    assert RECORD.caption in description.find(".//{*}li").text


def test_captions_of_any_characters_leave_the_packet_readable(tmp_path):
    caption = "bell \x07, zero \x00, half a pair \ud83d, 夜"
    record = Record(GenerationSettings(seed=1), caption)
    save_png(Image.new("L", (4, 4)), tmp_path / "a.png", record)
    assert restore(tmp_path / "a.png") == record
    with Image.open(tmp_path / "a.png") as image:
        description = ElementTree.fromstring(image.text[XMP_KEY].encode()).find(".//{*}li").text
    assert description.endswith("bell , zero , half a pair , 夜")


def test_older_and_newer_records_are_read(tmp_path):
    old = save(tmp_path / "old.png", **{KEY: json.dumps({"steps": 7, "seed": 1})})
    assert restore(old) == Record(GenerationSettings(steps=7, seed=1))
    newer = {**RECORD.to_dict(), "weather": "rain"}
    assert restore(save(tmp_path / "new.png", **{KEY: json.dumps(newer)})) == RECORD


@pytest.mark.parametrize(
    "text, words",
    [
        ("{half", "cannot be used"),
        ('{"settings": {"steps": -1}}', "steps must be"),
        ('{"settings": {}, "caption": 5}', "caption must be a text, got 5"),
        ('{"settings": [1]}', "cannot be used"),
        ("[1]", "cannot be used"),
        ("null", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
    ],
)
def test_damaged_records_are_one_sentence(tmp_path, text, words):
    with pytest.raises(ImageError, match=words):
        restore(save(tmp_path / "a.png", **{KEY: text}))


def test_a_foreign_file_of_enormous_size_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ImageError, match="a.png: cannot be read"):
        restore(tmp_path / "a.png")


def test_foreign_files_are_named(tmp_path):
    save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("nothing")
    for name, words in (("plain.png", "holds no settings"), ("text.png", "cannot be read"), ("gone", "cannot be read")):
        with pytest.raises(ImageError, match=f"{name}: {words}"):
            restore(tmp_path / name)


def test_a_picture_records_photo_bundle_and_map(pipe, bundle_folder, photo, tmp_path):
    settings = pipe.default_settings.replace(steps=1, seed=2)
    for segmentation, source in ((None, "model"), (False, "none"), (Image.new("RGB", photo.size), "own")):
        output = pipe(photo, settings, "a tree", segmentation)
        output.save(tmp_path / "a.png")
        hashes = imaging.content_hash(photo), bundle.content_hash(bundle_folder)
        wanted = Record(settings, "a tree", source, hashes[0], "mini", hashes[1], __version__)
        assert restore(tmp_path / "a.png") == wanted


def test_the_bundle_hash_is_that_of_its_weights(bundle_folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle_folder, copy)
    assert bundle.content_hash(copy) == bundle.content_hash(bundle_folder)
    (copy / "README.md").write_text("other words")
    assert bundle.content_hash(copy) == bundle.content_hash(bundle_folder)
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert bundle.content_hash(copy) != bundle.content_hash(bundle_folder)
    seen = bundle.content_hash(copy)
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"weights of another format")
    assert bundle.content_hash(copy) != seen


@pytest.mark.parametrize(("size", "level"), [((2000, 2000), 6), ((4001, 1000), 1)])
def test_a_large_picture_is_written_fast(size, level, tmp_path, monkeypatch):
    saved, save = [], Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *args, **options: saved.append(options) or save(*args, **options))
    record = Record(GenerationSettings(seed=1), caption="a wall")
    save_png(Image.new("L", size), tmp_path / "wall.png", record)
    assert [options["compress_level"] for options in saved] == [level]
    assert restore(tmp_path / "wall.png") == record and Image.open(tmp_path / "wall.png").size == size


def test_sixteen_bits_are_finer_than_eight(pipe, photo, tmp_path):
    output = pipe(photo, pipe.default_settings.replace(steps=1, seed=2), "a tree")
    output.save(tmp_path / "deep.png", bits=16)
    output.save(tmp_path / "flat.png")
    deep, flat = (np.asarray(Image.open(tmp_path / name)) for name in ("deep.png", "flat.png"))
    assert deep.dtype == np.uint16 and flat.dtype == np.uint8 and deep.shape == flat.shape
    assert np.abs(deep / 257 - flat).mean() <= 1  # resized before rounding, not after
    assert len(np.unique(deep)) > len(np.unique(flat))
    assert restore(tmp_path / "deep.png") == restore(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="bits must be 8 or 16, got 12"):
        output.save(tmp_path / "other.png", bits=12)


@given(st.integers(0, 65535))
def test_a_level_is_kept_exactly(level):
    image = deep_gray(np.full((3, 5), level / 65535, dtype=np.float32), (5, 3))
    assert set(np.asarray(image).ravel().tolist()) == {level}


def test_a_session_records_whose_map_it_was(pipe, photo):
    session, settings = Session(), pipe.default_settings.replace(steps=1)
    wishes = [("a tree", True, None), ("a tree", True, Image.new("RGB", photo.size)), ("a tree", False, None)]
    sources = []
    for caption, use_map, own in wishes:
        conditioning = session.condition(pipe, photo, caption, use_map, settings.resolution, own)
        sources.append(pipe.generate(conditioning, settings).record.segmentation)
    assert sources == ["model", "own", "none"]
