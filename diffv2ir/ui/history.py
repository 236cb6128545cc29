"""The History tab: the session's results, two of which can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.common import by_name
from diffv2ir.ui.session import Result, Session

if TYPE_CHECKING:
    from diffv2ir.ui.page import Page


class HistoryTab:
    """Results with their settings; one click takes the settings over, two pins compare."""

    def __init__(self, page: Page):
        self.page = page

    def build(self) -> None:
        gr.Markdown("The pictures of this visit, newest last. Choose one, then pin it or take its settings.")
        self.gallery = gr.Gallery(
            label="Results", columns=4, height=360, object_fit="contain", interactive=False, format="png"
        )
        self.chosen = gr.State(None)
        self.pinned = gr.State((None, None))
        with gr.Row():
            self.use = gr.Button("Use its settings", variant="primary")
            self.pin_left, self.pin_right = gr.Button("Pin left"), gr.Button("Pin right")
        self.comparison = gr.ImageSlider(label="Left | right", interactive=False, format="png", height=420)
        self.difference = gr.Markdown()

    def connect(self) -> None:
        tab = self.page.translate
        self.gallery.select(_index, None, self.chosen, api_visibility="private", show_progress="hidden")
        inputs = {"session": self.page.session, "chosen": self.chosen, "pinned": self.pinned}
        common = dict(inputs=list(inputs.values()), api_visibility="private", show_progress="hidden")
        outputs = [*tab.settings.values(), tab.caption, self.page.tabs]
        self.use.click(by_name(self.use_settings, inputs), outputs=outputs, **common)
        shown = [self.pinned, self.comparison, self.difference]
        for side, button in enumerate((self.pin_left, self.pin_right)):
            button.click(by_name(self._pin(side), inputs), outputs=shown, **common)

    @staticmethod
    def items(session: Session) -> list[tuple[Any, str]]:
        """Pictures and labels for the gallery."""
        return [(result.output.image, _label(result)) for result in session.results]

    def use_settings(self, data: dict[str, Any]) -> dict:
        """The chosen result's settings and caption, in the Translate tab."""
        tab, output = self.page.translate, self._chosen(data).output
        return {
            **tab.controls.show(output.settings),
            tab.caption: output.caption,
            self.page.tabs: gr.Tabs(selected="translate"),
        }

    def _pin(self, side: int):
        def pin(data: dict[str, Any]) -> tuple[Any, Any, str]:
            """Put the chosen result on one side of the comparison."""
            pinned = list(data["pinned"])
            pinned[side] = self._chosen(data).number
            kept = {result.number: result for result in data["session"].results}
            left, right = (kept.get(number) for number in pinned)
            if left is None or right is None:
                return tuple(pinned), gr.skip(), f"Pinned picture {pinned[side]}. Pin another one on the other side."
            size = left.output.image.size
            pictures = left.output.image, right.output.image.resize(size)
            return tuple(pinned), pictures, _differences(left, right)

        return pin

    @staticmethod
    def _chosen(data: dict[str, Any]) -> Result:
        results = data["session"].results
        if data["chosen"] is None or data["chosen"] >= len(results):
            raise ValueError("choose a picture of the history first")
        return results[data["chosen"]]


def _index(event: gr.SelectData) -> int:
    return event.index


def _label(result: Result) -> str:
    s = result.output.settings
    scales = f"{s.visible_scale:g}/{s.segmentation_scale:g}/{s.text_scale:g}"
    return f"{result.number}: {s.style}, {s.steps} steps, {scales}, seed {result.output.seed}"


def _differences(left: Result, right: Result) -> str:
    """What two results were made with differently, as a Markdown table."""
    records = [{"caption": r.output.caption, **r.output.settings.to_dict()} for r in (left, right)]
    rows = [f"| {name} | {records[0][name]} | {records[1][name]} |" for name in records[0] if
            records[0][name] != records[1][name]]  # fmt: skip
    if not rows:
        return "Made with the same settings."
    return "\n".join([f"| | picture {left.number} | picture {right.number} |", "| --- | --- | --- |", *rows])
