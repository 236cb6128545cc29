"""Clips, made here by OpenCV: what is read, refused and written, and where it stops."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from diffv2ir import video
from diffv2ir.imaging import control_gain, measure_gain
from diffv2ir.video import ClipLimits, VideoError, open_clip, translate_clip

SIZE = (96, 64)


def make_clip(path, frames=6, fps=12.0, size=SIZE, codec="mp4v"):
    """Each frame is brighter than the one before; the left half is red."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, size)
    for number in range(frames):
        picture = np.full((size[1], size[0], 3), 30 + 30 * number, np.uint8)
        picture[:, : size[0] // 2] = (0, 0, 200)
        writer.write(picture)
    writer.release()
    return path


@pytest.fixture
def clip_file(tmp_path):
    return make_clip(tmp_path / "walk.mp4")


@pytest.fixture
def settings(pipe):
    return pipe.default_settings.replace(steps=1, seed=3, sampler="ddim")


def read_back(path):
    """Frames as arrays, frames per second, and the codec's name of a clip."""
    reader = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while (read := reader.read())[0]:
        frames.append(read[1])
    codec = int(reader.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    return frames, reader.get(cv2.CAP_PROP_FPS), codec


def test_a_clip_is_looked_at(clip_file):
    clip = open_clip(clip_file)
    assert (clip.size, clip.frames, clip.fps) == (SIZE, 6, 12.0)


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "VP80"), ("mkv", "mp4v"), ("avi", "MJPG"), ("mov", "mp4v")])
def test_the_usual_containers_are_read(tmp_path, suffix, codec):
    assert open_clip(make_clip(tmp_path / f"clip.{suffix}", codec=codec)).frames == 6


def test_all_frames_have_the_gain_of_the_first(pipe, clip_file, settings, tmp_path):
    """Something hot that enters would else darken all the rest."""
    clip, stretched = open_clip(clip_file), settings.replace(gain_control=0.8)
    outputs = [result.output for result in translate_clip(pipe, clip, tmp_path / "out.mp4", stretched, "a car")]
    plain = [result.output for result in translate_clip(pipe, clip, tmp_path / "plain.mp4", settings, "a car")]
    span = measure_gain(plain[0].levels)
    assert {output.gain for output in outputs} == {span} and plain[0].gain is None
    assert len({measure_gain(output.levels) for output in plain}) > 1
    for output, before in zip(outputs, plain, strict=True):
        np.testing.assert_array_equal(output.levels, control_gain(before.levels, 0.8, span))


def test_every_frame_is_translated_and_written(pipe, clip_file, settings, tmp_path):
    results = list(translate_clip(pipe, open_clip(clip_file), tmp_path / "out.mp4", settings, "a car"))
    assert [(result.number, result.total) for result in results] == [(number, 6) for number in range(1, 7)]
    assert {result.output.caption for result in results} == {"a car"}
    frames, fps, codec = read_back(tmp_path / "out.mp4")
    assert (len(frames), fps, codec) == (6, 12.0, "VP90")
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
    for frame, result in zip(frames, results, strict=True):
        assert frame.shape == (SIZE[1], SIZE[0], 3)
        assert np.abs(frame[:, :, 0].astype(int) - np.asarray(result.output.image)).mean() < 12  # VP9 loses some


def test_frames_are_those_of_the_clip_in_order(pipe, clip_file, settings, tmp_path, monkeypatch):
    seen = []
    prepare = pipe.prepare
    monkeypatch.setattr(pipe, "prepare", lambda frame, *a, **k: seen.append(frame) or prepare(frame, *a, **k))
    list(translate_clip(pipe, open_clip(clip_file), tmp_path / "out.mp4", settings, "", every=2))
    assert [abs(frame.getpixel((80, 30))[0] - (30 + 60 * number)) < 12 for number, frame in enumerate(seen)] == [
        True
    ] * 3
    red, green, blue = seen[0].getpixel((10, 30))
    assert red > 150 > 60 > max(green, blue)


def test_every_other_frame_at_half_the_rate(pipe, settings, tmp_path):
    clip = open_clip(make_clip(tmp_path / "five.mp4", frames=5), every=2)
    assert len(list(translate_clip(pipe, clip, tmp_path / "out.mp4", settings, "", every=2))) == 3
    frames, fps, _ = read_back(tmp_path / "out.mp4")
    assert (len(frames), fps) == (3, 6.0)


def test_one_seed_and_one_caption_but_a_map_for_each_frame(pipe, clip_file, settings, tmp_path, monkeypatch):
    captions, maps, generate, masks = [], [], pipe.captioner.generate, pipe.segmenter.masks
    monkeypatch.setattr(pipe.captioner, "generate", lambda *a, **k: captions.append(1) or generate(*a, **k))
    monkeypatch.setattr(pipe.segmenter, "masks", lambda *a, **k: maps.append(1) or masks(*a, **k))
    drawn = settings.replace(seed=None)
    results = list(translate_clip(pipe, open_clip(clip_file), tmp_path / "out.mp4", drawn, every=2))
    assert len({result.output.seed for result in results}) == 1
    assert len({result.output.caption for result in results}) == 1 and results[0].output.caption
    assert (len(captions), len(maps)) == (1, 3)
    seeds = {next(translate_clip(pipe, open_clip(clip_file), tmp_path / "o.mp4", drawn, "")).output.seed for _ in "ab"}
    assert len(seeds) == 2


def test_a_still_clip_stays_still(pipe, settings, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "still.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 5, SIZE)
    picture = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    for _ in range(2):
        writer.write(picture)
    writer.release()
    clip = open_clip(tmp_path / "still.avi")
    first, second = translate_clip(pipe, clip, tmp_path / "out.mp4", settings.replace(seed=None), "")
    assert first.output.image.tobytes() == second.output.image.tobytes()


def test_without_map_none_is_made(pipe, clip_file, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe.segmenter, "masks", lambda *a, **k: pytest.fail("SAM was asked"))
    clip = open_clip(clip_file)
    assert (
        next(translate_clip(pipe, clip, tmp_path / "out.mp4", settings, "", use_map=False)).output.segmentation is None
    )


def test_odd_sizes_become_even(pipe, settings, tmp_path):
    clip = open_clip(make_clip(tmp_path / "odd.avi", frames=2, size=(91, 71), codec="MJPG"))
    assert clip.size == (91, 71) or clip.size == (90, 70)
    list(translate_clip(pipe, clip, tmp_path / "out.mp4", settings, ""))
    frames, _, _ = read_back(tmp_path / "out.mp4")
    assert [frame.shape for frame in frames] == [(70, 90, 3)] * 2


@pytest.mark.parametrize(("last", "written"), [((1, 0), 0), ((3, 0), 2), ((3, 1), 2)])
def test_a_stop_keeps_the_frames_that_were_finished(pipe, clip_file, settings, tmp_path, last, written):
    out = tmp_path / "out.mp4"
    settings = settings.replace(steps=2)
    results = translate_clip(
        pipe, open_clip(clip_file), out, settings, "", callback=lambda number, step, steps: (number, step) < last
    )
    assert len(list(results)) == written
    assert len(read_back(out)[0]) == written if written else not out.exists()


def test_closing_early_leaves_a_complete_file(pipe, clip_file, settings, tmp_path):
    results = translate_clip(pipe, open_clip(clip_file), tmp_path / "out.mp4", settings, "")
    next(results)
    results.close()
    assert len(read_back(tmp_path / "out.mp4")[0]) == 1


def test_rotation_of_a_phone_is_honoured(clip_file, tmp_path):
    content = bytearray(clip_file.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # after version and flags, times, ids, duration, layer and volume
    one = 1 << 16
    assert struct.unpack_from(">9i", content, at) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, at, 0, one, 0, -one, 0, 0, SIZE[1] * one, 0, 1 << 30)
    (tmp_path / "held.mp4").write_bytes(content)
    clip = open_clip(tmp_path / "held.mp4")
    assert clip.size == SIZE[::-1]
    frame = next(video._frames(clip, 1))
    assert frame.size == SIZE[::-1] and frame.getpixel((30, 5))[0] > 150 and frame.getpixel((30, 90))[0] < 90


@pytest.mark.parametrize(
    ("limits", "every", "words"),
    [
        (ClipLimits(frames=5), 1, "has 6 frames and at most 5 are translated: take every n-th frame, n = 2 or more"),
        (ClipLimits(seconds=0.4), 1, "lasts 0.5 s: at most 0.4 s"),
        (ClipLimits(pixels=6000), 1, r"too large \(96x64\): at most 0.006 million pixels"),
        (ClipLimits(frames=2), 2, "n = 3 or more"),
    ],
)
def test_each_limit_is_named(clip_file, limits, every, words):
    with pytest.raises(VideoError, match=words):
        open_clip(clip_file, every, limits)


def test_at_the_limits_a_clip_passes(clip_file):
    assert open_clip(clip_file, 2, ClipLimits(frames=3, seconds=0.5, pixels=96 * 64)).frames == 6


@pytest.mark.parametrize("fps", [0.0, 1000.0, float("nan")])
def test_a_clip_that_does_not_tell_its_length_is_counted(clip_file, fps, monkeypatch):
    class Silent:
        def __init__(self, *arguments):
            self.reader = reader(*arguments)

        def get(self, key):
            told = {cv2.CAP_PROP_FRAME_COUNT: -1.0, cv2.CAP_PROP_FPS: fps}
            return told[key] if key in told else self.reader.get(key)

        def __getattr__(self, name):
            return getattr(self.reader, name)

    reader = cv2.VideoCapture
    monkeypatch.setattr(video.cv2, "VideoCapture", Silent)
    clip = open_clip(clip_file)
    assert clip.frames == 6 and clip.fps == pytest.approx(12.0, rel=0.01)
    with pytest.raises(VideoError, match="at most 5 are"):
        open_clip(clip_file, limits=ClipLimits(frames=5))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile walk.mp4\n"],
)
def test_what_is_no_clip_is_refused(clip_file, content):
    path = clip_file.with_name("trap.mp4")
    path.write_bytes(content)
    with pytest.raises(VideoError, match="no video of a known kind") as error:
        open_clip(path)
    assert str(path.parent) not in str(error.value)


def test_damaged_and_missing_clips_are_refused(clip_file, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip_file.read_bytes()[:200])
    for path, words in ((cut, "damaged"), (tmp_path / "gone.mp4", "cannot be opened")):
        with pytest.raises(VideoError, match=words) as error:
            open_clip(path)
        assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_every_is_checked(clip_file, every):
    with pytest.raises(ValueError, match="every must be a whole number"):
        open_clip(clip_file, every)


def test_a_place_that_cannot_be_written(pipe, clip_file, settings, tmp_path):
    with pytest.raises(VideoError, match="cannot be written"):
        list(translate_clip(pipe, open_clip(clip_file), tmp_path / "none" / "out.mp4", settings, ""))


def test_pictures_of_another_size_are_fitted(tmp_path):
    with video._writer(tmp_path / "out.mp4", 5.0) as write:
        write(Image.new("L", (64, 48), 200))
        write(Image.new("L", (80, 60), 200))
    assert [frame.shape for frame in read_back(tmp_path / "out.mp4")[0]] == [(48, 64, 3)] * 2
