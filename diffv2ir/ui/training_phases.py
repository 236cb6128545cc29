"""The fold that shows one photo through the phases of the training, as the paper's Figure I does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.background import Progress, follow
from diffv2ir.ui.common import status

if TYPE_CHECKING:
    from diffv2ir.ui.translate import TranslateTab

_EXPLANATION = (
    "The same photo and the same noise through what the model was at each phase of its training: the text-to-image "
    "base and phase 1, which repaint the photo (where the bundle holds them), phase 2, which learnt from pairs, and "
    "phase 3, one picture a style."
)


class TrainingPhases:
    """A fold of the Translate tab."""

    def __init__(self, tab: TranslateTab):
        self.tab = tab

    def build(self) -> None:
        with gr.Accordion("Through the phases of the training", open=False):
            gr.Markdown(_EXPLANATION)
            self.button = gr.Button("Show the phases")
            self.gallery = gr.Gallery(
                label="Phases", columns=4, height=300, object_fit="contain", interactive=False, format="png"
            )

    def connect(self) -> None:
        self.tab.on([self.button.click], self.show)

    def show(self, data: dict[str, Any]) -> Iterator[dict]:
        """One picture a phase, as they are done."""
        from diffv2ir.phases import PhasePicture, draw_phases, held_phases

        tab, session, request = self.tab, data["session"], data["request"]
        if session.is_over(request):
            yield tab.stopped(session, request)
            return
        conditioning, settings, pipe = tab.condition(data), tab.read_settings(data), tab.page.pipe
        names, pictures = held_phases(pipe), []
        yield {tab.status: status("The phases of the training …"), self.gallery: []}

        def work(tell):
            yield from draw_phases(
                pipe, conditioning, settings, lambda done, step, steps: tell(Progress(done, step, steps))
            )

        for event in follow(work, lambda: session.is_over(request)):
            if session.is_forgotten(request):
                return
            if isinstance(event, PhasePicture):
                pictures.append((event.image, event.name))
                yield {self.gallery: list(pictures)}
            else:
                text = f"{names[event.number].capitalize()}: step {event.step} of {event.steps}"
                done, total = event.number + event.step / event.steps, len(names)
                yield {tab.status: status(text, round(100 * done), 100 * total)}
        ended = "Done" if len(pictures) == len(names) else "Stopped"
        yield {tab.status: status(f"{ended}: {len(pictures)} of {len(names)} phases.")}
