"""The page: a photo, its caption, segmentation map and infrared picture side by side, and the sliders of Eq. 2."""

from __future__ import annotations

import dataclasses
import html
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from diffv2ir.imaging import ImageError
from diffv2ir.pipeline import DiffV2IRPipeline, Output
from diffv2ir.settings import GENERAL_STYLE, GenerationSettings
from diffv2ir.ui.session import Session
from diffv2ir.ui.stream import Step, stream

_INTRODUCTION = """
# DiffV2IR: from a colour photo to an infrared picture

Drop a photo. The model describes it in words, cuts it into regions, and paints the infrared picture from all three.
What you see is a plausible infrared picture, not a measurement of temperature.
"""

# Only fonts that every machine has: the page works without a network.
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONOSPACE = ["ui-monospace", "Consolas", "monospace"]

_CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.status { min-height: 3.2em; line-height: 1.6; }
.status progress { width: 100%; height: 0.6em; accent-color: var(--color-accent); }
"""

LAUNCH_OPTIONS: dict[str, Any] = dict(
    theme=gr.themes.Soft(primary_hue="orange", font=_FONTS, font_mono=_MONOSPACE),
    css=_CSS,
    footer_links=["api"],
    max_file_size="64mb",
    ssr_mode=False,
)

_BUTTONS = ["download", "fullscreen"]

_QUEUE_LENGTH = 20
_SESSION_SECONDS = 3600

# One model, whose weights a style changes in place: one piece of work at a time.
_MODEL = dict(concurrency_limit=1, concurrency_id="model")


class Page:
    """Components and handlers of the page for one loaded pipeline."""

    def __init__(self, pipe: DiffV2IRPipeline):
        self.pipe = pipe
        self.defaults = pipe.default_settings
        self.settings: dict[str, gr.components.Component] = {}
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="DiffV2IR", delete_cache=(_SESSION_SECONDS, _SESSION_SECONDS)) as demo:
            self.session = gr.State(Session, time_to_live=_SESSION_SECONDS)
            gr.Markdown(_INTRODUCTION)
            with gr.Row(equal_height=True):
                self.photo = gr.Image(
                    label="Photo",
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    height=320,
                )
                self.map = gr.Image(
                    label="Segmentation map", interactive=False, format="png", buttons=_BUTTONS, height=320
                )
                self.infrared = gr.Image(
                    label="Infrared", interactive=False, format="png", buttons=_BUTTONS, height=320
                )
            self.status = gr.HTML(_message("Choose a photo to begin."), elem_classes="status")
            with gr.Row(equal_height=True):
                self.caption = gr.Textbox(
                    label="Caption",
                    info="Written by the model; change it and translate again. Empty: no text guides the picture.",
                    lines=2,
                    scale=4,
                )
                with gr.Column(scale=1, min_width=180):
                    self.translate_button = gr.Button("Translate", variant="primary", size="lg")
                    self.stop_button = gr.Button("Stop", variant="stop")
            self._build_settings()
            self._connect()
        return demo.queue(max_size=_QUEUE_LENGTH)

    def _build_settings(self) -> None:
        with gr.Row():
            for name in ("visible_scale", "segmentation_scale", "text_scale", "steps"):
                self._slider(name)
        with gr.Row():
            if len(self.pipe.styles) > 1:
                field = _field("style")
                self.settings["style"] = gr.Radio(
                    self.pipe.styles, value=self.defaults.style, label=field["label"], info=field["help"], scale=2
                )
            field = _field("sampler")
            self.settings["sampler"] = gr.Dropdown(
                list(field["choices"]), value=self.defaults.sampler, label=field["label"], info=field["help"]
            )
            self._slider("resolution")
            field = _field("seed")
            self.settings["seed"] = gr.Number(
                value=self.defaults.seed or 0,
                precision=0,
                minimum=field["minimum"],
                maximum=field["limit"],
                label=field["label"],
                info="Start of the random noise: the same seed gives the same picture.",
            )
        with gr.Row():
            self.use_map = gr.Checkbox(True, label="Use the segmentation map")
            self.new_seed = gr.Checkbox(False, label="Draw a new seed each time")

    def _slider(self, name: str) -> None:
        field = _field(name)
        # A bundle's default may lie outside of a comfortable slider; the slider then reaches to it.
        value = getattr(self.defaults, name)
        self.settings[name] = gr.Slider(
            min(field["minimum"], value),
            max(field["maximum"], value),
            value=value,
            step=field["step"],
            label=field["label"],
            info=field["help"],
        )

    def _connect(self) -> None:
        # Hand over the uploaded file as it is: orientation and what to say of a bad file are the matter of `imaging`.
        self.photo.preprocess = lambda upload: None if upload is None else upload.path
        self.inputs = {
            "session": self.session,
            "photo": self.photo,
            "caption": self.caption,
            **self.settings,
            "new_seed": self.new_seed,
            "use_map": self.use_map,
        }
        inputs, pictures = list(self.inputs.values()), [self.status, self.infrared]
        everything = [self.status, self.caption, self.map, self.infrared]
        understand = dict(fn=self._handler(self.understand), inputs=inputs, outputs=everything, **_MODEL)
        translate = dict(fn=self._handler(self.translate), inputs=inputs, outputs=pictures, **_MODEL)
        understood = self.photo.upload(api_name="understand", show_progress="minimal", **understand)
        understood.success(api_visibility="private", show_progress="hidden", **translate)
        gr.on(
            [self.translate_button.click, self.caption.submit],
            api_name="translate",
            show_progress="hidden",
            **translate,
        )
        self.photo.clear(_cleared, None, everything, api_visibility="private")
        # Not queued: it must come through while the model is at work.
        self.stop_button.click(_stop, self.session, None, queue=False, api_visibility="private")

    def _handler(self, method: Callable[[dict[str, Any]], Iterator[tuple]]) -> Callable[..., Iterator[tuple]]:
        """`method`, which takes the values by name, as Gradio calls it; the names are also those of the API."""
        names = list(self.inputs)

        def handle(*values: Any) -> Iterator[tuple]:
            with _told_to_the_user():
                yield from method(dict(zip(names, values, strict=True)))

        parameter = inspect.Parameter.POSITIONAL_OR_KEYWORD
        handle.__signature__ = inspect.Signature([inspect.Parameter(name, parameter) for name in names])
        handle.__doc__ = method.__doc__
        return handle

    def understand(self, data: dict[str, Any]) -> Iterator[tuple[str, str, Any, None]]:
        """A new photo: its caption and its segmentation map."""
        photo = _required_photo(data)
        started = time.monotonic()
        conditioning = data["session"].understand(self.pipe, photo, self._settings(data).resolution)
        status = _message(f"Understood in {time.monotonic() - started:.1f} s.")
        yield status, conditioning.caption, conditioning.segmentation, None

    def translate(self, data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The infrared picture of a photo, with a status line after each step and previews on the way."""
        session, photo = data["session"], _required_photo(data)
        settings = self._settings(data)
        session.cancelled = False
        conditioning = session.condition(
            self.pipe, photo, data["caption"] or "", bool(data["use_map"]), settings.resolution
        )
        for event in stream(self.pipe, conditioning, settings, lambda: session.cancelled):
            if isinstance(event, Output):
                yield from self._finish(event, photo)
            else:
                picture = gr.skip() if event.preview is None else event.preview.resize(conditioning.size)
                yield _progress(event), picture

    def _finish(self, output: Output, photo: str) -> Iterator[tuple[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="diffv2ir-") as folder:
            path = Path(folder) / f"{Path(photo).stem}_ir.png"
            output.save(path)
            yield _summary(output), str(path)  # Gradio copies the file before it comes back here

    def _settings(self, data: dict[str, Any]) -> GenerationSettings:
        values = {name: data[name] for name in self.settings}
        if data["new_seed"]:
            values["seed"] = None
        return self.defaults.replace(**{"style": GENERAL_STYLE, **values})


def build_demo(pipe: DiffV2IRPipeline) -> gr.Blocks:
    """The page for a loaded pipeline; launch it with `**LAUNCH_OPTIONS`."""
    return Page(pipe).build()


def _field(name: str) -> Any:
    return {field.name: field for field in dataclasses.fields(GenerationSettings)}[name].metadata


def _required_photo(data: dict[str, Any]) -> str:
    if not data["photo"]:
        raise ImageError("choose a photo first")
    return data["photo"]


def _cleared() -> tuple[str, str, None, None]:
    return _message("Choose a photo to begin."), "", None, None


def _stop(session: Session) -> None:
    session.cancelled = True


@contextmanager
def _told_to_the_user():
    """What the user can mend becomes one sentence on the page."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:
        text = str(error)
        raise gr.Error(
            text[:1].upper() + text[1:] + ("" if text.endswith(".") else "."), print_exception=False
        ) from error


def _message(text: str) -> str:
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def _progress(event: Step) -> str:
    left = event.seconds / event.step * (event.total - event.step)
    return _message(f"Step {event.step} of {event.total}, about {left:.0f} s left") + (
        f'<progress value="{event.step}" max="{event.total}" aria-label="denoising"></progress>'
    )


def _summary(output: Output) -> str:
    timings = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in output.timings.items() if seconds >= 0.05)
    ended = f"Stopped after step {output.steps_done} of {output.settings.steps}" if output.cancelled else "Done"
    work = f"{output.evaluations} evaluation{'s' * (output.evaluations != 1)} of the UNet"
    return _message(f"{ended}. Seed {output.seed}, style {output.settings.style}, {work}. {timings}")
