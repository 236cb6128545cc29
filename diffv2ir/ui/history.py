"""The History tab: the session's results, two of which can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.common import by_name, status, told_to_the_user
from diffv2ir.ui.downloads import file_of, served_folder
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
            label="Results", columns=4, height=360, object_fit="contain", interactive=False, format="png",
            buttons=["download", "fullscreen"], elem_id="history",
        )  # fmt: skip
        self.chosen = gr.State(None)
        self.pinned = gr.State((None, None))
        with gr.Row():
            self.use = gr.Button("Use its settings", variant="primary")
            self.pin_left, self.pin_right = gr.Button("Pin left"), gr.Button("Pin right")
        self.comparison = gr.ImageSlider(
            label="Left | right", interactive=False, format="png", height=420, buttons=["fullscreen"]
        )
        self.difference = gr.Markdown()

    def connect(self) -> None:
        tab = self.page.translate
        quietly = dict(api_visibility="private", show_progress="hidden", queue=False)
        self.gallery.select(_number, self.page.session, self.chosen, **quietly)
        inputs = {"session": self.page.session, "chosen": self.chosen, "pinned": self.pinned}
        common = dict(inputs=list(inputs.values()), **quietly)
        outputs = [*tab.restore.outputs, tab.status, self.page.tabs]
        self.use.click(by_name(self.use_settings, inputs), outputs=outputs, **common)
        shown = [self.pinned, self.comparison, self.difference]
        for side, button in enumerate((self.pin_left, self.pin_right)):
            button.click(by_name(self._pin(side), inputs), outputs=shown, **common)

    @staticmethod
    def items(session: Session) -> list[tuple[Any, str]]:
        """Pictures and labels for the gallery: the files with their settings, for whoever downloads one there."""
        return [(file_of(result), _label(result)) for result in session.results]

    def use_settings(self, data: dict[str, Any]) -> dict:
        """The chosen result's settings, caption and map, in the Translate tab."""
        tab, result = self.page.translate, self._chosen(data)
        changes = tab.restore.put(result.output.record, data["session"])
        if result.output.record.segmentation == "own":
            path = served_folder() / "map.png"
            result.output.segmentation.save(path)
            changes[tab.own_map] = str(path)
        return {
            **changes,
            tab.status: status(f"The settings are those of picture {result.number}."),
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
        if data["chosen"] is None:
            raise ValueError("choose a picture of the history first")
        for result in data["session"].results:
            if result.number == data["chosen"]:
                return result
        raise ValueError(f"picture {data['chosen']} is no longer kept, choose another")


def _number(session: Session, event: gr.SelectData) -> int:
    """Of the clicked picture: places in the gallery shift when the oldest picture goes."""
    session.touch()
    with told_to_the_user():
        if event.index >= len(session.results):
            raise ValueError("this picture is no longer kept")
        return session.results[event.index].number


def _label(result: Result) -> str:
    settings = result.output.settings
    steps = f"{settings.steps} step{'s' * (settings.steps != 1)}"
    return f"#{result.number} {settings.style} · seed {result.output.seed} · {steps}"


def _differences(left: Result, right: Result) -> str:
    """What two results were made with differently, as a Markdown table."""
    records = [
        {"caption": r.output.caption, "map": r.output.record.segmentation, **r.output.settings.to_dict()}
        for r in (left, right)
    ]
    rows = [f"| {name} | {records[0][name]} | {records[1][name]} |" for name in records[0] if
            records[0][name] != records[1][name]]  # fmt: skip
    if not rows:
        return "Made with the same settings."
    return "\n".join([f"| | picture {left.number} | picture {right.number} |", "| --- | --- | --- |", *rows])
