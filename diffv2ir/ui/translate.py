"""The Translate tab: a photo in, its caption, segmentation map and infrared picture out, and what tunes it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.imaging import ImageError
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.common import MODEL_QUEUE, by_name, status
from diffv2ir.ui.controls import Controls
from diffv2ir.ui.downloads import file_of
from diffv2ir.ui.examples import example_photos
from diffv2ir.ui.requests import AT_ONCE, Work, connect_stop, tell_refused, telling, waiting
from diffv2ir.ui.restore import Restore
from diffv2ir.ui.session import ExampleStyle, Result, Session
from diffv2ir.ui.stream import Step, stream
from diffv2ir.ui.training_phases import TrainingPhases
from diffv2ir.ui.tuning import Tuning
from diffv2ir.ui.upload import Upload
from diffv2ir.ui.viewer import Viewer
from diffv2ir.vlum.prompt import build_prompt, with_phrase

if TYPE_CHECKING:
    from diffv2ir.pipeline import Conditioning
    from diffv2ir.ui.page import Page

_BUTTONS = ["download", "fullscreen"]
_BEGIN = "Choose a photo to begin."
_NO_FILE = gr.update(value=None, visible=False)

Changes = dict[gr.components.Component, Any]


class TranslateTab:
    """The first tab. Its inputs are also what grid, batch and video start from.

    Attributes:
        settings: components of `GenerationSettings`, by field.
        inputs: all components that a translation reads, by name: session, photo, caption, the settings, new_seed,
            use_map, own_map, view, palette, and request: its number in the session, as the browser sent it.
    """

    def __init__(self, page: Page):
        self.page = page
        self.controls, self.viewer = Controls(page.facts), Viewer()
        self.tuning, self.phases, self.restore = Tuning(self), TrainingPhases(self), Restore(self)
        self.settings = self.controls.fields
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        # On a phone one below the other; on a wide screen the first and the last share the left column (see the CSS).
        with gr.Row(elem_id="workbench"):
            with gr.Column(scale=2, min_width=300):
                self._build_request()
            with gr.Column(scale=3, min_width=320):
                self.viewer.build()
            with gr.Column(scale=2, min_width=300):
                self._build_wording()
        with gr.Row(equal_height=True):
            self.prompt = gr.Textbox(
                label="Caption, as the prompt has it", interactive=False, lines=6, elem_classes="prompt"
            )
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
        self.photo = Upload(
            label="Photo", sources=["upload", "webcam", "clipboard"], height=300, elem_id="photo",
            webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}}),
        )  # fmt: skip
        with gr.Row():
            self.translate_button = gr.Button("Translate", variant="primary", elem_id="translate", min_width=120)
            self.stop_button = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
        self.status = gr.HTML(status(_BEGIN), elem_classes="status")
        self.request = gr.Number(0, precision=0, visible="hidden")

    def _build_wording(self) -> None:
        self.caption = gr.Textbox(
            label="Caption",
            info="Written by the model; change it and translate again. Empty: no text guides the picture.",
            lines=2,
        )
        self._build_examples()
        gr.HTML("<p class='chips-label'>What would it look like …</p>", visible=bool(self.page.facts.phrases))
        with gr.Row(elem_classes="chips"):
            self.chips = {phrase: gr.Button(phrase, size="sm", min_width=70) for phrase in self.page.facts.phrases}

    def _build_examples(self) -> None:
        photos = example_photos(self.page.facts.styles)
        self.examples = gr.Dataset(
            # A gallery of one: its caption is also what a screen reader says of the picture.
            components=[gr.Gallery(render=False)],
            samples=[[[(path, label)]] for path, _, label in photos],
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
            "request": self.request,
        }
        inputs = list(self.inputs.values())
        self.outputs = [
            self.status, self.caption, self.prompt, self.map, self.infrared, self.viewer.slider, self.deep_file,
            *self.settings.values(), self.page.history.gallery, self.tuning.verdict, self.tuning.difference,
            self.phases.gallery, self.own_map,
        ]  # fmt: skip
        quietly = dict(show_progress="hidden", api_visibility="private")
        self.work = dict(inputs=inputs, outputs=self.outputs, **quietly, **MODEL_QUEUE)
        understand, translate = (
            dict(fn=by_name(telling(work, self.status), self.inputs), trigger_mode="multiple", **self.work)
            for work in (self.understand, self.translate)
        )
        received = self.photo.upload(
            by_name(self.restore.receive, self.inputs),
            inputs,
            list(dict.fromkeys([self.photo, self.request, *self.outputs, *self.restore.outputs])),
            **AT_ONCE,
        )
        asked = {"session": self.page.session, "number": self.examples, **self._style}
        chosen = self.examples.click(
            by_name(self.example, asked), list(asked.values()), [self.photo, self.request, *self.outputs], **AT_ONCE
        )
        for begun in (received, chosen):
            understood = begun.success(**understand)
            translated = understood.success(**translate)
            tell_refused(understood, self.status)
            tell_refused(translated, self.status)
        self.on([self.translate_button.click, self.caption.submit], self.translate)
        for phrase, chip in self.chips.items():
            self.on([chip.click], self._vary(phrase))
        self.photo.clear(self._clear, self.page.session, self.outputs, **AT_ONCE)
        connect_stop(self.stop_button, self.page, self.status)
        asked = {"session": self.page.session}
        self.deep_button.click(
            by_name(self.deep, asked), list(asked.values()), self.deep_file, api_visibility="private"
        )
        self.controls.connect()
        self.viewer.connect(self.page.session)
        self.tuning.connect()
        self.phases.connect()
        self.restore.connect()

    def on(self, triggers: Sequence[Any], work: Work) -> None:
        """Let the model do `work` when one of the triggers happens; the page says at once that it waits for it.

        Asked for again while it is at work, it is done once more after that, with what the page says by then.
        """
        begun = gr.on(triggers, self._begin, self.page.session, [self.request, self.status], **AT_ONCE)
        worked = begun.success(
            by_name(telling(work, self.status), self.inputs), trigger_mode="always_last", **self.work
        )
        tell_refused(worked, self.status)

    @property
    def _style(self) -> dict[str, gr.components.Component]:
        """The field of the style, where the bundle has several."""
        return {name: field for name, field in self.settings.items() if name == "style"}

    def _begin(self, session: Session) -> Changes:
        return {self.request: session.begin(), self.status: waiting(self.page)}

    def take_in(self, session: Session) -> Changes:
        """Updates for another photo: what was made of the one before goes."""
        session.restored = False
        return {**self._blank(session), **self._begin(session)}

    def receive(self, data: dict[str, Any]) -> Changes:
        """Updates for a photo of the visitor's own: the style that an example brought goes with the example."""
        session, changes = data["session"], {}
        if session.example_style and data.get("style") == session.example_style.brought:
            changes[self.settings["style"]] = session.example_style.before
        session.example_style = None
        return {**self.take_in(session), **changes}

    def _clear(self, session: Session) -> Changes:
        caption = gr.skip() if session.keeps_caption else ""
        return {**self._blank(session), self.status: status(_BEGIN), self.caption: caption}

    def _blank(self, session: Session) -> Changes:
        """What was made of a photo goes, and with it a map of one's own that it was made with."""
        session.forget()
        pictures = [self.map, self.infrared, self.viewer.slider, self.tuning.difference, self.phases.gallery]
        if session.used_own_map:
            pictures.append(self.own_map)
        session.used_own_map = False
        texts = (self.prompt, self.tuning.verdict)
        return {**dict.fromkeys(pictures), **dict.fromkeys(texts, ""), self.deep_file: _NO_FILE}

    def example(self, data: dict[str, Any]) -> Changes:
        """An example's photo in its style; the other settings stay."""
        session, (photo, style, _) = data["session"], self._example_photos[data["number"]]
        session.keeps_caption = False
        changes = self.take_in(session)
        if self._style:
            before = session.example_style.before if session.example_style else data["style"]
            session.example_style = ExampleStyle(before, style)
            changes[self.settings["style"]] = style
        return {**changes, self.photo: photo}

    def read_settings(self, data: dict[str, Any]) -> GenerationSettings:
        """The settings among a handler's values."""
        return self.controls.read(data)

    def understand(self, data: dict[str, Any]) -> Iterator[Changes]:
        """A new photo: its caption and its segmentation map."""
        session, request = data["session"], data["request"]
        if not data["photo"] or session.is_over(request):  # a result, whose settings were restored, or stopped
            yield {self.infrared: gr.skip()}
            return
        yield {self.status: waiting(self.page, "Reading the photo …")}
        started, settings = time.monotonic(), self.read_settings(data)
        conditioning = session.understand(self.page.pipe, data["photo"], **settings.preparation)
        if session.is_forgotten(request):
            return
        caption = gr.skip() if session.keeps_caption else conditioning.caption
        session.keeps_caption = False
        yield {
            self.status: status(f"Understood in {time.monotonic() - started:.1f} s.", working=True),
            self.caption: caption,
            self.prompt: self._prompt(conditioning.caption, settings),
            self.map: conditioning.segmentation,
            self.viewer.slider: self.viewer.preview(conditioning.image, conditioning.image),
        }

    def translate(self, data: dict[str, Any]) -> Iterator[Changes]:
        """The infrared picture of a photo, with a status line after each step and previews on the way."""
        session, request, started = data["session"], data["request"], time.monotonic()
        restored, session.restored = session.restored and not data["photo"], False
        if restored or session.is_forgotten(request):
            yield {self.infrared: gr.skip()}
            return
        session.keeps_caption = False
        conditioning = None if session.is_over(request) else self.condition(data)
        if conditioning is None or session.is_over(request):
            yield self.stopped(session, request)
            return
        for event in self.events(data, conditioning, self.read_settings(data)):
            if isinstance(event, Step):
                yield self._progress(event, conditioning)
            else:
                result = session.add(conditioning.image, event, Path(data["photo"]).stem)
                yield self.shown(result, data, summary(result, time.monotonic() - started))

    def condition(self, data: dict[str, Any], caption: str | None = None) -> Conditioning:
        """Caption, map and latents as the page asks for them; `caption` stands in for the page's.

        Raises:
            ImageError: there is no photo, or it or the map cannot be used.
        """
        if not data["photo"]:
            raise ImageError("choose a photo first")
        caption = data["caption"] if caption is None else caption
        data["session"].used_own_map |= bool(data["use_map"] and data["own_map"])
        return data["session"].condition(
            self.page.pipe,
            data["photo"],
            (caption or "") if data["use_caption"] else "",
            bool(data["use_map"]),
            own_map=data["own_map"],
            **self.read_settings(data).preparation,
        )

    def events(self, data: dict[str, Any], conditioning: Conditioning, settings: GenerationSettings) -> Iterator[Any]:
        """The steps and the output of one generation, until the request is stopped; none once it is forgotten."""
        session, request = data["session"], data["request"]
        for event in stream(self.page.pipe, conditioning, settings, lambda: session.is_over(request)):
            if session.is_forgotten(request):
                return
            yield event

    def stopped(self, session: Session, request: int) -> Changes:
        """The status of a request that was stopped before it had a picture; of one that is forgotten nothing."""
        forgotten = session.is_forgotten(request)
        return {self.status: gr.skip() if forgotten else status("Stopped before the first step.")}

    def shown(self, result: Result, data: dict[str, Any], line: str) -> Changes:
        """Updates that show a result everywhere on the page."""
        output = result.output
        return {
            self.status: line,
            self.prompt: self._prompt(output.caption, output.settings),
            self.map: output.segmentation,
            self.infrared: file_of(result),
            self.deep_file: _NO_FILE,
            self.viewer.slider: self.viewer.of(result, data["view"], data["palette"]),
            self.settings["seed"]: output.seed,
            self.page.history.gallery: self.page.history.items(data["session"]),
            self.tuning.verdict: "",
            self.tuning.difference: None,
        }

    def _prompt(self, caption: str, settings: GenerationSettings) -> str:
        return build_prompt(caption, self.page.pipe.band(settings)) or "(no caption)"

    def deep(self, data: dict[str, Any]) -> dict[str, Any]:
        """The shown picture with 16 bits: the decoder's levels before they are rounded to 256."""
        result = data["session"].shown
        if result is None:
            raise ValueError("translate a photo first; then its picture can be had with 16 bits")
        return gr.update(value=file_of(result, bits=16), visible=True)

    def _vary(self, phrase: str):
        def vary(data: dict[str, Any]) -> Iterator[Changes]:
            """The picture with the caption as it is, and with the phrase, from the same noise, side by side."""
            session, settings = data["session"], self.read_settings(data)
            request, pictures, started = data["request"], [], time.monotonic()
            unchanged = data["caption"] or ""
            for caption in (unchanged, with_phrase(unchanged, phrase, self.page.facts.phrases)):
                if session.is_over(request):
                    break
                conditioning = self.condition({**data, "use_caption": True}, caption)
                for event in self.events(data, conditioning, settings):
                    if isinstance(event, Step):
                        yield self._progress(event, conditioning)
                    else:
                        settings = settings.replace(seed=event.seed)
                        pictures.append(session.add(conditioning.image, event, Path(data["photo"]).stem))
            if session.is_forgotten(request) or not pictures:
                yield self.stopped(session, request)
                return
            result = pictures[-1]
            changes = self.shown(result, data, summary(result, time.monotonic() - started))
            if len(pictures) == 2:
                names = ("unchanged", phrase)
                changes[self.viewer.slider] = self.viewer.of_two(pictures, names, data["view"], data["palette"])
            else:
                changes[self.status] = status(f"Stopped before the picture “{phrase}”.")
            yield changes

        return vary

    def _progress(self, event: Step, conditioning: Conditioning) -> Changes:
        left = event.seconds / event.step * (event.total - event.step)
        changes: Changes = {
            self.status: status(f"Step {event.step} of {event.total}, about {left:.0f} s left", event.step, event.total)
        }
        if event.preview is not None:
            changes[self.viewer.slider] = self.viewer.preview(conditioning.image, event.preview)
        return changes


def summary(result: Result, seconds: float) -> str:
    """The status line of a result: whether it is whole, after how long, seed and style; its work by stage in a fold."""
    output = result.output
    timings = [f"{name} {seconds:.1f} s" for name, seconds in output.timings.items() if seconds >= 0.05]
    ended = f"Stopped after step {output.steps_done} of {output.settings.steps}" if output.cancelled else "Done"
    work = f"{output.evaluations} evaluation{'s' * (output.evaluations != 1)} of the UNet"
    details = ", ".join([work, *timings])
    return status(f"{ended} in {seconds:.1f} s · seed {output.seed} · style {output.settings.style}", details=details)
