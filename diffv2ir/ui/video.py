"""The Video tab: a short clip with the settings of the Translate tab, every frame from the same noise."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.data_classes import FileData

from diffv2ir.ui.background import Progress, follow
from diffv2ir.ui.batch import shared_inputs
from diffv2ir.ui.common import duration, status
from diffv2ir.ui.requests import connect_start_and_stop
from diffv2ir.video import FrameResult, VideoError, open_clip, translate_clip

if TYPE_CHECKING:
    from diffv2ir.ui.page import Page

_HINT = "Choose a clip to begin."
_CAPTION_INFO = "Empty: the model describes the first frame. Unused while the Translate tab does not use the caption."


class VideoTab:
    """A short clip, translated frame by frame.

    Attributes:
        inputs: all components that a clip's translation reads, by name: clip, clip_caption, every, session, the
            settings, new_seed, use_map, use_caption.
    """

    def __init__(self, page: Page):
        self.page = page
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        limits = self.page.limits.clip
        gr.Markdown(
            f"A clip of up to {limits.seconds:g} s, of which up to {limits.frames} frames are translated with the "
            "settings of the Translate tab: all from the same noise, so that what stands still stays still."
        )
        with gr.Row(equal_height=True):
            self.clip = gr.Video(label="Clip", sources=["upload"], height=320)
            self.preview = gr.Image(
                label="Frame", interactive=False, format="png", buttons=["download", "fullscreen"], height=320
            )
            self.film = gr.Video(label="Infrared clip", interactive=False, height=320)
        self.status = gr.HTML(status(_HINT), elem_classes="status")
        with gr.Row(equal_height=True):
            self.every = gr.Slider(
                1, 30, value=1, step=1, label="Every n-th frame", info="2 takes every other frame, in half the time."
            )
            self.caption = gr.Textbox("", label="Caption of the clip", info=_CAPTION_INFO, scale=2)
            with gr.Column(scale=0, min_width=180):
                self.start_button = gr.Button("Translate clip", variant="primary", size="lg")
                self.stop_button = gr.Button("Stop", variant="stop")

    def connect(self) -> None:
        # As written: where FFmpeg is installed, Gradio would take VP9 in MP4 for unplayable and encode it again.
        self.film.postprocess = lambda path: None if path is None else FileData(path=path, orig_name=Path(path).name)
        self.inputs = {
            "clip": self.clip,
            "clip_caption": self.caption,
            "every": self.every,
            **shared_inputs(self.page),
        }
        connect_start_and_stop(self, self.translate_clip, [self.status, self.preview, self.film], api_name="video")

    def translate_clip(self, data: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
        """Translate a clip: a status line, the frame finished last, and the infrared clip (MP4).

        The clip comes last, also after a stop, with the frames that were finished by then.
        """
        if not data["clip"]:
            raise VideoError("choose a clip first")
        settings, every = self.page.translate.read_settings(data), int(data["every"])
        session, request = data["session"], data["request"]
        clip = open_clip(data["clip"], every, self.page.limits.clip)
        total = -(-clip.frames // every)
        caption = (data["clip_caption"] or None) if data["use_caption"] else ""
        pipe, started = self.page.pipe, time.monotonic()
        with tempfile.TemporaryDirectory(prefix="diffv2ir-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"{clip.path.stem}_ir.mp4"

            def work(tell):
                def callback(number: int, step: int, steps: int) -> bool:
                    return tell(Progress(number, step, steps))

                return translate_clip(pipe, clip, path, settings, caption, bool(data["use_map"]), every, callback)

            last = None
            yield _status(Progress(1, 0, settings.steps), total, started), None, None
            for event in follow(work, lambda: session.is_stopped(request)):
                if isinstance(event, FrameResult):
                    last = event
                    yield gr.skip(), event.output.image, gr.skip()
                else:
                    yield _status(event, total, started), gr.skip(), gr.skip()
            told = _summary(last, total, session.is_stopped(request), started)
            yield (told, None, None) if last is None else (told, last.output.image, str(path))


def _status(event: Progress, total: int, started: float) -> str:
    done = event.number - 1 + event.step / event.steps
    left = ""
    if done > 0:
        left = f", about {duration((time.monotonic() - started) / done * (total - done))} left"
    return status(f"Frame {event.number} of {total}{left}", round(100 * done), 100 * total)


def _summary(last: FrameResult | None, total: int, stopped: bool, started: float) -> str:
    if last is None:
        return status("Stopped before the first frame was finished.")
    seconds = time.monotonic() - started
    ended = f"Stopped after frame {last.number} of {total}" if stopped else f"Done: {last.number} frames"
    caption = f" Caption: {last.output.caption}." if last.output.caption else ""
    return status(f"{ended}. Seed {last.output.seed}, {seconds / last.number:.1f} s a frame.{caption}")
