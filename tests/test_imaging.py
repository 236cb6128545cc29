"""Any picture in; the right size, orientation and message out."""

import io

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms, ImageOps

from diffv2ir import imaging
from diffv2ir.imaging import (
    MAX_ASPECT,
    ImageError,
    check_same_section,
    control_gain,
    fitted_size,
    limited_size,
    open_image,
    to_gray,
    to_tensor,
)
from diffv2ir.imaging import working_size as size_for

ORIENTATION = 0x0112
MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
DEEP = ["I", "F", "I;16", "I;16B", "I;16L"]
sides = st.integers(1, 40)


@settings(deadline=None)
@given(sides, sides, st.sampled_from(MODES + DEEP))
def test_any_mode_and_size_becomes_rgb(width, height, mode):
    opened = open_image(Image.new(mode, (width, height)))
    assert (opened.mode, opened.size) == ("RGB", (width, height))


def gradient():
    """16 x 9 pixels, each of another gray."""
    return np.arange(0, 144, dtype=np.uint8).reshape(9, 16)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_values_of_opaque_pictures_are_kept(mode):
    expected = np.stack([gradient()] * 3, axis=-1)
    image = Image.fromarray(gradient()).convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE)
    assert np.abs(np.asarray(open_image(image)).astype(int) - expected).max() <= 1


def test_two_colours():
    assert np.asarray(open_image(Image.fromarray(gradient() > 70))).ravel()[::3].tolist() == [
        255 * bool(value > 70) for value in gradient().ravel()
    ]


@pytest.mark.parametrize("mode", DEEP)
def test_deep_gray_is_scaled_by_its_range(mode):
    values = gradient().astype(np.uint16) * 257
    dtype = {"I": np.int32, "F": np.float32, "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (16, 9), values.astype(dtype).tobytes())
    assert np.array_equal(np.asarray(open_image(image))[:, :, 0], gradient())


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_dark_deep_gray_stays_dark(mode):
    image = Image.frombytes(mode, (16, 9), gradient().astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.asarray(open_image(image)).max() <= 1


def test_deep_gray_files(tmp_path):
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(gradient().astype(np.uint16) * 257).save(tmp_path / name)
        assert np.array_equal(np.asarray(open_image(tmp_path / name))[:, :, 1], gradient())


def test_numbers_beyond_gray_are_refused():
    for value in (-1.0, 70000.0, float("nan"), float("inf")):
        with pytest.raises(ImageError, match="image: gray values must be finite and from 0 to 65535"):
            open_image(Image.new("F", (4, 4), value))


def test_transparency_is_laid_on_white(tmp_path):
    half = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    half.save(tmp_path / "half.png")
    indexed = half.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    indexed.save(tmp_path / "indexed.png", transparency=indexed.getpixel((1, 0)))
    for source in (half, tmp_path / "half.png", tmp_path / "indexed.png", np.array(half)):
        opened = open_image(source)
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation, tmp_path):
    upright = Image.fromarray(np.kron(gradient()[:, :9], np.ones((8, 8), np.uint8)).repeat(2, axis=1)).convert("RGB")
    stored = upright
    # Store it in such a way that the flag brings it upright: the inverse of what readers do.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    if orientation > 1:
        stored = upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for name in ("photo.png", "photo.jpg", "photo.webp", "photo.tif"):
        stored.save(tmp_path / name, exif=exif, quality=95)
        opened = open_image(tmp_path / name)
        assert opened.size == upright.size
        assert np.abs(np.asarray(opened, int) - np.asarray(upright, int)).mean() < 3
        assert opened.getexif().get(ORIENTATION, 1) == 1
        assert ImageOps.exif_transpose(opened).size == upright.size


@settings(deadline=None)
@given(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), st.sampled_from([(), (1,), (3,), (4,)]))
def test_arrays_of_every_kind_agree(shape, channels):
    picture = np.random.default_rng(0).integers(0, 256, shape + channels, dtype=np.uint8)
    if channels == (4,):
        picture[..., 3] = 255
    expected = np.broadcast_to(picture if channels else picture[..., None], (*shape, channels[0] if channels else 1))
    expected = np.broadcast_to(expected[..., : min(3, expected.shape[-1])], (*shape, 3))
    kinds = [picture, picture / 255, (picture / 255).astype(np.float32), picture.astype(np.uint16) * 257]
    for kind in [*kinds, (picture.astype(np.uint16) * 257).astype(">u2"), np.asfortranarray(picture)]:
        assert np.array_equal(np.asarray(open_image(kind)), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.uint8), r"got shape \(5,\)"),
        (np.zeros((5, 5, 2), np.uint8), r"got shape \(5, 5, 2\)"),
        (np.zeros((0, 5), np.uint8), r"got shape \(0, 5\)"),
        (np.zeros((1, 5, 5, 3), np.uint8), "got shape"),
        (np.zeros((5, 5), np.int64), "uint8, uint16 or float, got int64"),
        (np.zeros((5, 5), bool), "got bool"),
        (np.full((5, 5), 1.01), r"finite and in \[0, 1\]"),
        (np.full((5, 5), -0.01), r"finite and in \[0, 1\]"),
        (np.full((5, 5), np.nan), r"finite and in \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(ImageError, match=message):
        open_image(array)


def test_the_source_is_not_changed():
    image = Image.new("RGB", (3, 3), "red")
    opened = open_image(image)
    opened.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def encoded(image_format, scale=8):
    buffer = io.BytesIO()
    Image.fromarray(np.kron(gradient(), np.ones((scale, scale), np.uint8))).convert("RGB").save(buffer, image_format)
    return buffer.getvalue()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(200))
    (tmp_path / "clip.jpg").write_bytes(b"\0\0\0\x24ftypisom" + bytes(200))
    (tmp_path / "cut.jpg").write_bytes(encoded("JPEG")[:-200])
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:-60])
    for name, message in (
        ("missing.png", "no such file"),
        ("", "is a folder"),
        ("text.png", "not an image"),
        ("empty.jpg", "not an image"),
        ("phone.heic", "a HEIC photo.*export it as JPEG"),
        ("clip.jpg", "not an image"),
        ("cut.jpg", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("a" * 3000, "cannot be read"),
        ("a\0b", "no such file|cannot be read"),
    ):
        path = tmp_path / name
        for source in (path, str(path)):
            with pytest.raises(ImageError, match=message) as error:
                open_image(source)
            assert str(path) in str(error.value)
    for source in (None, b"bytes", 3):
        with pytest.raises(ImageError, match=f"got {type(source).__name__}"):
            open_image(source)


def test_lazily_opened_picture_that_is_cut():
    with pytest.raises(ImageError, match="image: cannot be read"):
        open_image(Image.open(io.BytesIO(encoded("JPEG")[:-200])))


@pytest.mark.parametrize("limit", [9_999, 1_000])  # refused by us; refused by Pillow, beyond twice the limit
def test_enormous_pictures_are_refused(tmp_path, monkeypatch, limit):
    path = tmp_path / "large.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(imaging, "_max_pixels", None)
    imaging.limit_pixels(limit)
    with pytest.raises(ImageError, match=f"large.png: has .*more than the {limit:,}"):
        open_image(path)
    assert Image.MAX_IMAGE_PIXELS == limit  # wherever else a file is opened


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "PPM", "ICO"]))
def test_damaged_files_are_read_or_refused(tmp_path_factory, data, image_format):
    """Whatever a decoder stumbles over, the error names the file."""
    content = bytearray(encoded(image_format, scale=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(300, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert open_image(path).mode == "RGB"
    except ImageError as error:
        assert str(error).startswith(str(path))


@given(
    st.tuples(st.integers(1, 20000), st.integers(1, 20000)),
    st.integers(64, 2048),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)
def test_working_size(size, resolution, multiple):
    width, height = size_for(size, resolution, multiple)
    assert width % multiple == height % multiple == 0 and min(width, height) >= multiple
    assert size_for(size[::-1], resolution, multiple) == (height, width)
    aspect = max(size) / min(size)
    longer, shorter = max(width, height), min(width, height)
    assert longer <= MAX_ASPECT * resolution + multiple / 2
    if aspect <= MAX_ASPECT:
        assert abs(shorter - resolution) <= multiple / 2
        assert abs(longer - resolution * aspect) <= multiple / 2 + 1e-6
    else:
        assert abs(longer - MAX_ASPECT * resolution) <= multiple / 2
        assume(MAX_ASPECT * resolution / aspect >= multiple / 2)
        assert abs(shorter - MAX_ASPECT * resolution / aspect) <= multiple / 2 + 1e-6


def test_tensors_and_back():
    picture = gradient()
    tensor = to_tensor(Image.fromarray(picture))
    assert tensor.shape == (3, 9, 16) and tensor.dtype == torch.float32
    assert -1 <= tensor.min() and tensor.max() <= 1
    assert to_tensor(Image.new("L", (1, 1), 255)).max() == 1 and to_tensor(Image.new("L", (1, 1), 0)).min() == -1
    one, other = to_gray(torch.stack([tensor, tensor * 5]))
    assert one.mode == "L" and np.array_equal(np.asarray(one), picture)
    assert np.asarray(other).max() == 255 or np.asarray(other).min() == 0  # out of range is cut, not wrapped
    mixed = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    assert to_gray(mixed)[0].getpixel((0, 0)) == 128


@given(st.integers(0, 1000), st.floats(0, 0.6), st.floats(0.3, 0.4), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gain_control_is_a_line_about_the_mean(seed, low, span, share):
    levels = (low + span * np.random.default_rng(seed).random((40, 50))).clip(0, 1).astype(np.float32)
    spread = control_gain(levels, share)
    assert spread.dtype == np.float32 and 0 <= spread.min() and spread.max() <= 1
    np.testing.assert_allclose(control_gain(levels, 0.0), levels, atol=1e-6)
    assert np.all(np.diff(spread.ravel()[np.argsort(levels, axis=None)]) >= 0)  # what is warmer stays so
    inside = (spread > 0) & (spread < 1)
    ends = np.quantile(levels, (0.005, 0.995))
    factor = 1 + share * (1 / (ends[1] - ends[0]) - 1)
    expected = levels.mean() + factor * (levels - levels.mean())
    np.testing.assert_allclose(spread[inside], expected[inside], atol=1e-5)
    if inside.all():
        assert spread.mean() == pytest.approx(levels.mean(), abs=1e-5)


def test_gain_control_leaves_the_noise_of_an_even_picture_small():
    noise = 0.02 * np.random.default_rng(0).random((40, 50)).astype(np.float32)
    assert np.ptp(control_gain(0.3 + noise, 1.0)) <= 0.081  # four times as much, not fifty
    np.testing.assert_allclose(control_gain(np.full((4, 5), 0.3, np.float32), 1.0), 0.3, atol=1e-6)


def test_lab_photo_keeps_its_colours():
    rgb = Image.new("RGB", (2, 2), (200, 60, 40))
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    opened = open_image(ImageCms.applyTransform(rgb, transform))
    assert np.abs(np.array(opened.getpixel((0, 0))) - (200, 60, 40)).max() <= 3


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 2000))
def test_sizes_are_fitted_into_the_longest_side(size, longest):
    fitted = fitted_size(size, longest)
    assert max(fitted) == longest and min(fitted) >= 1
    scale = longest / max(size)
    assert all(abs(new - side * scale) <= 0.5 or new == 1 for new, side in zip(fitted, size, strict=True))
    assert limited_size(size, longest) == (fitted if max(size) > longest else size)


def test_what_is_of_another_section_is_refused():
    photo = Image.new("RGB", (300, 200))
    for size in ((300, 200), (30, 20), (31, 20), (3, 2), (2, 1)):
        check_same_section(Image.new("RGB", size), "the map", photo)
    with pytest.raises(
        ImageError, match=r"^the map \(200x300\) has another aspect ratio than the photo \(300x200\); turn it$"
    ):
        check_same_section(Image.new("RGB", (200, 300)), "the map", photo, "; turn it")
    with pytest.raises(ImageError, match="another aspect ratio"):
        check_same_section(Image.new("RGB", (320, 200)), "the map", photo)
