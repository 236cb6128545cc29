"""The Translate tab: a photo, its caption, segmentation map and infrared picture, and the sliders of Eq. 2."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.imaging import ImageError
from diffv2ir.settings import GENERAL_STYLE, GenerationSettings
from diffv2ir.ui.common import MODEL_QUEUE, by_name, field_of, status
from diffv2ir.ui.session import Session
from diffv2ir.ui.stream import Step, stream

if TYPE_CHECKING:
    from diffv2ir.pipeline import Output
    from diffv2ir.ui.page import Page

_BUTTONS = ["download", "fullscreen"]


class TranslateTab:
    """The first tab. Its inputs are also what grid, batch and video start from.

    Attributes:
        settings: components of `GenerationSettings`, by field.
        inputs: all components that a translation reads, by name: session, photo, caption, the settings, new_seed,
            use_map.
    """

    def __init__(self, page: Page):
        self.page = page
        self.defaults = page.facts.defaults
        self.settings: dict[str, gr.components.Component] = {}
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        with gr.Row(equal_height=True):
            self.photo = gr.Image(
                label="Photo",
                type="filepath",
                sources=["upload", "webcam", "clipboard"],
                height=320,
            )
            self.map = gr.Image(label="Segmentation map", interactive=False, format="png", buttons=_BUTTONS, height=320)
            self.infrared = gr.Image(label="Infrared", interactive=False, format="png", buttons=_BUTTONS, height=320)
        self.status = gr.HTML(status("Choose a photo to begin."), elem_classes="status")
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

    def _build_settings(self) -> None:
        with gr.Row():
            for name in ("visible_scale", "segmentation_scale", "text_scale", "steps"):
                self._slider(name)
        with gr.Row():
            if len(self.page.facts.styles) > 1:
                field = field_of("style")
                self.settings["style"] = gr.Radio(
                    self.page.facts.styles, value=self.defaults.style, label=field["label"], info=field["help"], scale=2
                )
            field = field_of("sampler")
            self.settings["sampler"] = gr.Dropdown(
                list(field["choices"]), value=self.defaults.sampler, label=field["label"], info=field["help"]
            )
            self._slider("resolution")
            field = field_of("seed")
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
        field = field_of(name)
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

    def connect(self) -> None:
        # Hand over the uploaded file as it is: orientation and what to say of a bad file are the matter of `imaging`.
        self.photo.preprocess = lambda upload: None if upload is None else upload.path
        self.inputs = {
            "session": self.page.session,
            "photo": self.photo,
            "caption": self.caption,
            **self.settings,
            "new_seed": self.new_seed,
            "use_map": self.use_map,
        }
        inputs, pictures = list(self.inputs.values()), [self.status, self.infrared]
        everything = [self.status, self.caption, self.map, self.infrared]
        understand = dict(fn=by_name(self.understand, self.inputs), inputs=inputs, outputs=everything, **MODEL_QUEUE)
        translate = dict(fn=by_name(self.translate, self.inputs), inputs=inputs, outputs=pictures, **MODEL_QUEUE)
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
        self.stop_button.click(_stop, self.page.session, None, queue=False, api_visibility="private")

    def understand(self, data: dict[str, Any]) -> Iterator[tuple[str, str, Any, None]]:
        """A new photo: its caption and its segmentation map."""
        photo = _required_photo(data)
        started = time.monotonic()
        conditioning = data["session"].understand(self.page.pipe, photo, self.read_settings(data).resolution)
        told = status(f"Understood in {time.monotonic() - started:.1f} s.")
        yield told, conditioning.caption, conditioning.segmentation, None

    def translate(self, data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The infrared picture of a photo, with a status line after each step and previews on the way."""
        session, photo = data["session"], _required_photo(data)
        settings = self.read_settings(data)
        session.cancelled = False
        conditioning = session.condition(
            self.page.pipe, photo, data["caption"] or "", bool(data["use_map"]), settings.resolution
        )
        for event in stream(self.page.pipe, conditioning, settings, lambda: session.cancelled):
            if isinstance(event, Step):
                picture = gr.skip() if event.preview is None else event.preview.resize(conditioning.size)
                yield _progress(event), picture
            else:
                yield from self._finish(event, photo)

    def _finish(self, output: Output, photo: str) -> Iterator[tuple[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="diffv2ir-") as folder:
            path = Path(folder) / f"{Path(photo).stem}_ir.png"
            output.save(path)
            yield _summary(output), str(path)  # Gradio copies the file before it comes back here

    def read_settings(self, data: dict[str, Any]) -> GenerationSettings:
        values = {name: data[name] for name in self.settings}
        if data["new_seed"]:
            values["seed"] = None
        return self.defaults.replace(**{"style": GENERAL_STYLE, **values})


def _required_photo(data: dict[str, Any]) -> str:
    if not data["photo"]:
        raise ImageError("choose a photo first")
    return data["photo"]


def _cleared() -> tuple[str, str, None, None]:
    return status("Choose a photo to begin."), "", None, None


def _stop(session: Session) -> None:
    session.cancelled = True


def _progress(event: Step) -> str:
    left = event.seconds / event.step * (event.total - event.step)
    return status(f"Step {event.step} of {event.total}, about {left:.0f} s left", event.step, event.total)


def _summary(output: Output) -> str:
    timings = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in output.timings.items() if seconds >= 0.05)
    ended = f"Stopped after step {output.steps_done} of {output.settings.steps}" if output.cancelled else "Done"
    work = f"{output.evaluations} evaluation{'s' * (output.evaluations != 1)} of the UNet"
    return status(f"{ended}. Seed {output.seed}, style {output.settings.style}, {work}. {timings}")
