"""The Translate tab: a photo in, its caption, segmentation map and infrared picture out, and what tunes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.imaging import ImageError
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.common import MODEL_QUEUE, by_name, status
from diffv2ir.ui.controls import Controls
from diffv2ir.ui.downloads import saved
from diffv2ir.ui.examples import example_photos
from diffv2ir.ui.restore import Restore
from diffv2ir.ui.session import Result, Session
from diffv2ir.ui.stream import Step, stream
from diffv2ir.ui.training_phases import TrainingPhases
from diffv2ir.ui.tuning import Tuning
from diffv2ir.ui.upload import Upload
from diffv2ir.ui.viewer import Viewer
from diffv2ir.vlum.prompt import HEAT_PHRASES, with_phrase

if TYPE_CHECKING:
    from diffv2ir.pipeline import Conditioning
    from diffv2ir.ui.page import Page

_BUTTONS = ["download", "fullscreen"]
_BEGIN = "Choose a photo to begin."

Changes = dict[gr.components.Component, Any]


class TranslateTab:
    """The first tab. Its inputs are also what grid, batch and video start from.

    Attributes:
        settings: components of `GenerationSettings`, by field.
        inputs: all components that a translation reads, by name: session, photo, caption, the settings, new_seed,
            use_map, own_map, view, palette.
    """

    def __init__(self, page: Page):
        self.page = page
        self.controls, self.viewer = Controls(page.facts), Viewer()
        self.tuning, self.phases, self.restore = Tuning(self), TrainingPhases(self), Restore(self)
        self.settings = self.controls.fields
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self._build_request()
            with gr.Column(scale=3, min_width=320):
                self.viewer.build()
        self.status = gr.HTML(status(_BEGIN), elem_classes="status")
        with gr.Row(equal_height=True):
            self.understood = gr.Textbox(label="Caption used", interactive=False, lines=6, elem_classes="caption-used")
            self.map = gr.Image(label="Segmentation map", interactive=False, format="png", buttons=_BUTTONS, height=260)
            self.infrared = gr.Image(label="Infrared", interactive=False, format="png", buttons=_BUTTONS, height=260)
        with gr.Row():
            self.deep_button = gr.Button("Make a 16-bit PNG of it", size="sm", min_width=160)
            self.deep_file = gr.File(label="16-bit PNG", visible=False, interactive=False, height=90)
        with gr.Accordion("Guidance, sampling and style", open=False):
            self.controls.build()
            with gr.Row():
                self.use_map = gr.Checkbox(True, label="Use the segmentation map")
                self.use_caption = gr.Checkbox(True, label="Use the caption")
            self.own_map = Upload(label="Your own segmentation map (optional)", sources=["upload"], height=180)
        self.tuning.build()
        self.phases.build()
        self.restore.build()

    def _build_request(self) -> None:
        self.photo = Upload(label="Photo", sources=["upload", "webcam", "clipboard"], height=300, elem_id="photo")
        with gr.Row():
            self.translate_button = gr.Button("Translate", variant="primary", elem_id="translate", min_width=120)
            self.stop_button = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
        self.caption = gr.Textbox(
            label="Caption",
            info="Written by the model; change it and translate again. Empty: no text guides the picture.",
            lines=2,
        )
        self._build_examples()
        gr.HTML("<p class='chips-label'>What would it look like …</p>")
        with gr.Row(elem_classes="chips"):
            self.chips = {phrase: gr.Button(phrase, size="sm", min_width=70) for phrase in HEAT_PHRASES}

    def _build_examples(self) -> None:
        photos = example_photos(self.page.facts.styles)
        self.examples = gr.Dataset(
            components=[self.photo],
            samples=[[path] for path, _ in photos],
            type="index",
            label="Examples",
            layout="gallery",
            visible=bool(photos),
        )
        self._example_photos = photos

    def connect(self) -> None:
        self.inputs = {
            "session": self.page.session,
            "photo": self.photo,
            "caption": self.caption,
            **self.settings,
            "new_seed": self.controls.new_seed,
            "use_map": self.use_map,
            "use_caption": self.use_caption,
            "own_map": self.own_map,
            "view": self.viewer.view,
            "palette": self.viewer.palette,
        }
        inputs = list(self.inputs.values())
        self.outputs = [
            self.status, self.caption, self.understood, self.map, self.infrared, self.viewer.slider,
            *self.settings.values(), self.page.history.gallery, self.tuning.verdict,
        ]  # fmt: skip
        self.quietly = dict(inputs=inputs, outputs=self.outputs, show_progress="hidden", api_visibility="private")
        self.run = dict(fn=by_name(self.translate, self.inputs), **self.quietly, **MODEL_QUEUE)
        understand = dict(fn=by_name(self.understand, self.inputs), **self.quietly, **MODEL_QUEUE)
        received = self.photo.upload(
            by_name(self.restore.receive, self.inputs),
            inputs,
            [self.photo, *self.outputs, self.use_map],
            show_progress="hidden",
            api_visibility="private",
        )
        received.success(**understand).success(**self.run)
        chosen = self.examples.click(
            self._example,
            self.examples,
            [self.photo, self.caption, *self.settings.values()],
            show_progress="hidden",
            api_visibility="private",
        )
        chosen.success(**understand).success(**self.run)
        gr.on([self.translate_button.click, self.caption.submit], **self.run)
        for phrase, chip in self.chips.items():
            work = self._vary(phrase)
            chip.click(by_name(work, self.inputs), **self.quietly, **MODEL_QUEUE)
        cleared = [self.status, self.caption, self.understood, self.map, self.infrared, self.viewer.slider]
        self.photo.clear(_cleared, None, cleared, api_visibility="private")
        # Not queued: it must come through while the model is at work.
        self.stop_button.click(_stop, self.page.session, None, queue=False, api_visibility="private")
        asked = {"session": self.page.session}
        self.deep_button.click(
            by_name(self.deep, asked), list(asked.values()), self.deep_file, api_visibility="private"
        )
        self.controls.connect()
        self.viewer.connect(self.page.session)
        self.tuning.connect()
        self.phases.connect()
        self.restore.connect()

    def _example(self, number: int) -> Changes:
        photo, style = self._example_photos[number]
        return {self.photo: photo, **self.controls.show(self.page.facts.defaults.replace(style=style))}

    def read_settings(self, data: dict[str, Any]) -> GenerationSettings:
        """The settings among a handler's values."""
        return self.controls.read(data)

    def understand(self, data: dict[str, Any]) -> Iterator[Changes]:
        """A new photo: its caption and its segmentation map."""
        if not data["photo"]:  # it was a result, whose settings were restored
            yield {self.infrared: gr.skip()}
            return
        yield {self.status: status(self._waiting("Reading the photo …"))}
        started = time.monotonic()
        preparation = self.read_settings(data).preparation
        conditioning = data["session"].understand(self.page.pipe, data["photo"], **preparation)
        yield {
            self.status: status(f"Understood in {time.monotonic() - started:.1f} s."),
            self.caption: conditioning.caption,
            self.understood: conditioning.caption,
            self.map: conditioning.segmentation,
            self.viewer.slider: self.viewer.preview(conditioning.image, conditioning.image),
        }

    def translate(self, data: dict[str, Any]) -> Iterator[Changes]:
        """The infrared picture of a photo, with a status line after each step and previews on the way."""
        session = data["session"]
        if not data["photo"] and session.restored:
            session.restored = False
            yield {self.infrared: gr.skip()}
            return
        conditioning, settings = self.condition(data), self.read_settings(data)
        for event in self.events(data, conditioning, settings):
            if isinstance(event, Step):
                yield self._progress(event, conditioning)
            else:
                result = session.add(conditioning.image, event)
                yield self.shown(result, data, summary(result))

    def condition(self, data: dict[str, Any], caption: str | None = None) -> Conditioning:
        """Caption, map and latents as the page asks for them; `caption` stands in for the page's.

        Raises:
            ImageError: there is no photo, or it or the map cannot be used.
        """
        if not data["photo"]:
            raise ImageError("choose a photo first")
        caption = data["caption"] if caption is None else caption
        return data["session"].condition(
            self.page.pipe,
            data["photo"],
            (caption or "") if data["use_caption"] else "",
            bool(data["use_map"]),
            own_map=data["own_map"],
            **self.read_settings(data).preparation,
        )

    def events(self, data: dict[str, Any], conditioning: Conditioning, settings: GenerationSettings) -> Iterator[Any]:
        """The steps and the output of one generation, until the session is stopped."""
        session = data["session"]
        session.cancelled = False
        return stream(self.page.pipe, conditioning, settings, lambda: session.cancelled)

    def shown(self, result: Result, data: dict[str, Any], text: str) -> Changes:
        """Updates that show a result everywhere on the page."""
        output = result.output
        return {
            self.status: status(text),
            self.understood: output.caption or "(no caption)",
            self.map: output.segmentation,
            self.infrared: saved(output),
            self.viewer.slider: self.viewer.of(result, data["view"], data["palette"]),
            self.settings["seed"]: output.seed,
            self.page.history.gallery: self.page.history.items(data["session"]),
            self.tuning.verdict: "",
        }

    def deep(self, data: dict[str, Any]) -> dict[str, Any]:
        """The last picture with 16 bits: the decoder's levels before they are rounded to 256."""
        result = data["session"].last
        if result is None:
            raise ValueError("translate a photo first; then its picture can be had with 16 bits")
        return gr.update(value=saved(result.output, bits=16), visible=True)

    def _vary(self, phrase: str):
        def vary(data: dict[str, Any]) -> Iterator[Changes]:
            """The picture with the caption as it is, and with the phrase, from the same noise, side by side."""
            session, settings = data["session"], self.read_settings(data)
            pictures = []
            for caption in (data["caption"] or "", with_phrase(data["caption"] or "", phrase)):
                conditioning = self.condition({**data, "use_caption": True}, caption)
                for event in self.events(data, conditioning, settings):
                    if isinstance(event, Step):
                        yield self._progress(event, conditioning)
                settings = settings.replace(seed=event.seed)
                pictures.append(session.add(conditioning.image, event))
            before, after = pictures
            yield {
                **self.shown(after, data, f"Left: “{before.output.caption}”. Right: “{after.output.caption}”."),
                self.viewer.slider: (before.output.image, after.output.image),
            }

        return vary

    def _waiting(self, text: str) -> str:
        return text if self.page.model.state != "loading" else "The model is still loading; your photo comes next …"

    def _progress(self, event: Step, conditioning: Conditioning) -> Changes:
        left = event.seconds / event.step * (event.total - event.step)
        changes: Changes = {
            self.status: status(f"Step {event.step} of {event.total}, about {left:.0f} s left", event.step, event.total)
        }
        if event.preview is not None:
            changes[self.viewer.slider] = self.viewer.preview(conditioning.image, event.preview)
        return changes


def summary(result: Result) -> str:
    """One line about a result: whether it is whole, its seed, style, work and time."""
    output = result.output
    timings = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in output.timings.items() if seconds >= 0.05)
    ended = f"Stopped after step {output.steps_done} of {output.settings.steps}" if output.cancelled else "Done"
    work = f"{output.evaluations} evaluation{'s' * (output.evaluations != 1)} of the UNet"
    return f"{ended}. Seed {output.seed}, style {output.settings.style}, {work}. {timings}"


def _cleared() -> tuple[str, str, str, None, None, None]:
    return status(_BEGIN), "", "", None, None, None


def _stop(session: Session) -> None:
    session.cancelled = True


def photo_stem(data: dict[str, Any]) -> str:
    """The uploaded file's name without its ending."""
    return Path(data["photo"]).stem if data.get("photo") else "photo"
