"""A short clip in, its infrared clip out: frame by frame, every frame from the same noise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from diffv2ir.settings import GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline, Output

# VP9 in MP4: every browser built of Chromium or Firefox plays it, also those without the licensed H.264, and so does
# Safari since version 14. OpenCV's wheels write it, so nothing has to be installed. They do not write H.264, and their
# MPEG-4 ("mp4v") plays in no browser.
_CODEC = "vp09"

# The first bytes of MP4 and MOV, of WebM and MKV, of AVI. Told from the content, because FFmpeg would also follow
# playlists, whose lines may name other files of this machine.
_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_CONTAINERS = (*((4, atom) for atom in _ATOMS), (0, b"\x1a\x45\xdf\xa3"), (8, b"AVI "))

_LIKELY_FPS = 25.0
_HIGHEST_FPS = 240.0

Callback = Callable[[int, int, int], Any]


class VideoError(ValueError):
    """A clip that cannot be read, used or written; says why and, for a limit, which."""


@dataclass(frozen=True)
class ClipLimits:
    """The largest clip: frames that are translated, seconds it lasts, pixels of a frame."""

    frames: int = 300
    seconds: float = 60.0
    pixels: int = 3840 * 2160


@dataclass(frozen=True)
class Clip:
    """A clip and what is known of it: (width, height), upright; number of frames; frames per second."""

    path: Path
    size: tuple[int, int]
    frames: int
    fps: float


@dataclass(frozen=True)
class FrameResult:
    """Frame `number` of `total`, from 1, and its picture."""

    number: int
    total: int
    output: Output


def open_clip(path: str | os.PathLike, every: int = 1, limits: ClipLimits | None = None) -> Clip:
    """Look at a clip, and refuse one that would be too much.

    Args:
        every: take every n-th frame.

    Raises:
        VideoError: no video, a damaged one, or one beyond a limit. The message has no path.
        ValueError: `every` is not a whole number of at least 1.
    """
    _check_every(every)
    limits = limits or ClipLimits()
    path = Path(path)
    with _reader(path) as video:
        width, height = (int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > limits.pixels:  # before a frame is unpacked
            raise VideoError(
                f"the clip's frames are too large ({width}x{height}): at most {limits.pixels / 1e6:.3g} million pixels"
            )
        frames, fps = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
        good, frame = video.read()
        if not good:
            raise VideoError("the clip has no frame that can be read; save it as MP4 or WebM and try again")
        if not (1 <= frames < math.inf and 0 < fps <= _HIGHEST_FPS):
            frames, fps = _count(video, math.ceil(limits.seconds * _HIGHEST_FPS))
    clip = Clip(path, (frame.shape[1], frame.shape[0]), int(frames), float(fps))
    _check_length(clip, every, limits)
    return clip


def translate_clip(
    pipe: DiffV2IRPipeline,
    clip: Clip,
    out: str | os.PathLike,
    settings: GenerationSettings,
    caption: str | None = None,
    use_map: bool = True,
    every: int = 1,
    callback: Callback | None = None,
) -> Iterator[FrameResult]:
    """Translate a clip, yielding each frame once it is written to `out`, an MP4 that is complete when this ends.

    All frames get the noise of one seed and the gain of the first, so that what stands still stays still, and one
    caption. Each has its own segmentation map. The result's frame rate is that of the clip, divided by `every`.

    Args:
        caption: None asks BLIP about the first frame; "" switches the text condition off.
        use_map: False switches the segmentation map off.
        every: take every n-th frame.
        callback: called as callback(number, step, steps) for the frame in work, from 1, with step 0 before it is
            understood and again before it is denoised; returning False ends the clip before that frame.

    Raises:
        VideoError: `out` cannot be written. It is not made if no frame was finished.
        ValueError: a setting that the bundle cannot follow, or `every` of a wrong kind or range.
        FloatingPointError: see `DiffV2IRPipeline.decode`.
    """
    _check_every(every)
    settings, total, gain = settings.with_seed(), math.ceil(clip.frames / every), None
    with _writer(Path(out), clip.fps / every) as write:
        for number, frame in enumerate(_frames(clip, every), start=1):

            def goes_on(step: int, steps: int, estimate: Any = None, number: int = number) -> bool:
                return callback is None or callback(number, step, steps) is not False

            if not goes_on(0, settings.steps):
                return
            conditioning = pipe.prepare(frame, caption, None if use_map else False, **settings.preparation)
            if not goes_on(0, settings.steps):
                return
            output = pipe.generate(conditioning, settings, goes_on, gain)
            if output.cancelled:
                return
            caption, gain = output.caption, output.gain  # of the first frame
            write(output.image)
            yield FrameResult(number, total, output)


def _check_every(every: int) -> None:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")


def _check_length(clip: Clip, every: int, limits: ClipLimits) -> None:
    seconds = clip.frames / clip.fps
    if seconds > limits.seconds:
        raise VideoError(f"the clip lasts {seconds:.1f} s: at most {limits.seconds:g} s are taken, cut it shorter")
    if math.ceil(clip.frames / every) > limits.frames:
        enough = math.ceil(clip.frames / limits.frames)
        raise VideoError(
            f"the clip has {clip.frames} frames and at most {limits.frames} are translated: "
            f"take every n-th frame, n = {enough} or more, or cut it shorter"
        )


@contextmanager
def _reader(path: Path) -> Iterator[cv2.VideoCapture]:
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise VideoError(f"the clip cannot be opened: {error.strerror}") from None
    if not any(start[at : at + len(mark)] == mark for at, mark in _CONTAINERS):
        raise VideoError("this is no video of a known kind; give an MP4, MOV, WebM, MKV or AVI file")
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise VideoError("the clip is damaged or of an unknown codec; save it as MP4 or WebM and try again")
        video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # phones store how they were held
        yield video
    finally:
        video.release()


def _count(video: cv2.VideoCapture, most: int) -> tuple[int, float]:
    """Frames and their rate, counted: for files that browsers record, which tell neither. One frame is read already.

    Counting ends after `most` frames.
    """
    first, last, frames = video.get(cv2.CAP_PROP_POS_MSEC), 0.0, 1
    while frames <= most and video.grab():
        frames, last = frames + 1, video.get(cv2.CAP_PROP_POS_MSEC)
    fps = (frames - 1) / (last - first) * 1000 if last > first else _LIKELY_FPS
    return frames, min(fps, _HIGHEST_FPS)


def _frames(clip: Clip, every: int) -> Iterator[Image.Image]:
    """Every n-th frame, RGB, upright."""
    with _reader(clip.path) as video:
        for index in range(clip.frames):
            if not video.grab():
                return
            if index % every:
                continue
            good, frame = video.retrieve()  # (H, W, 3) uint8, BGR
            if good:
                yield Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


@contextmanager
def _writer(path: Path, fps: float) -> Iterator[Callable[[Image.Image], None]]:
    """Gives a function that adds a picture to a film; the first one decides on the size, made even as VP9 needs it."""
    video: cv2.VideoWriter | None = None
    size = (0, 0)

    def write(picture: Image.Image) -> None:
        nonlocal video, size
        if video is None:
            size = tuple(max(2, side - side % 2) for side in picture.size)
            video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*_CODEC), fps, size)
            if not video.isOpened():
                raise VideoError("the result cannot be written: this OpenCV has no VP9, or the place is not writable")
        gray = picture.convert("L").resize(size, Image.Resampling.BICUBIC)
        video.write(cv2.cvtColor(np.asarray(gray), cv2.COLOR_GRAY2BGR))

    try:
        yield write
    finally:
        if video is not None:
            video.release()
