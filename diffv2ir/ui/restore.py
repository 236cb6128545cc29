"""A saved picture gives its settings back: by a file field, or dropped where a photo is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.imaging import ImageError
from diffv2ir.metadata import Record, restore
from diffv2ir.ui.common import by_name, status
from diffv2ir.ui.session import Session

if TYPE_CHECKING:
    from diffv2ir.ui.translate import TranslateTab

_ALL, _ALL_BUT_SEED = "all", "all but the seed"


class Restore:
    """A fold of the Translate tab, and what puts the settings of a record there."""

    def __init__(self, tab: TranslateTab):
        self.tab = tab

    @property
    def outputs(self) -> list[gr.components.Component]:
        """The components that `put` changes."""
        tab = self.tab
        return [*tab.settings.values(), tab.caption, tab.controls.new_seed, tab.use_map, tab.use_caption, tab.own_map]

    def build(self) -> None:
        with gr.Accordion("Restore the settings of a saved picture", open=False):
            with gr.Row():
                self.file = gr.File(label="A PNG made here", file_types=[".png"], height=120)
                self.what = gr.Radio([_ALL, _ALL_BUT_SEED], value=_ALL, label="Restore")

    def connect(self) -> None:
        tab = self.tab
        inputs = {**tab.inputs, "file": self.file, "what": self.what}
        self.file.upload(
            by_name(self.restore_file, inputs),
            list(inputs.values()),
            [tab.status, *self.outputs],
            show_progress="hidden",
            api_visibility="private",
        )

    def restore_file(self, data: dict[str, Any]) -> dict:
        """Settings and caption of a saved picture into the page."""
        record = restore(data["file"])
        changes = self.put(record, data["session"], keep_seed=data["what"] == _ALL)
        return {**changes, self.tab.status: _told(record, "translate" if data["photo"] else "choose the photo")}

    def receive(self, data: dict[str, Any]) -> dict:
        """A file dropped as a photo: if it is a picture of ours, its settings are restored and the photo stays away."""
        tab, session = self.tab, data["session"]
        try:
            record = restore(data["photo"])
        except ImageError:
            return tab.receive(data)
        changes = self.put(record, session)
        session.restored = True
        return {**changes, tab.photo: None, tab.status: _told(record, "choose the photo")}

    def put(self, record: Record, session: Session, keep_seed: bool = True) -> dict:
        """Updates that put how a picture was made into the Translate tab: settings, caption and whether a map guided.

        Its caption stays when the next photo is read. A map of one's own is not in a record; the model's takes the
        place of one that is still in the page.
        """
        tab, session.example_style = self.tab, None
        changes = {**tab.controls.show(record.settings, keep_seed), tab.use_map: record.segmentation != "none"}
        if keep_seed:
            changes[tab.controls.new_seed] = False
        if record.segmentation == "model":
            changes[tab.own_map] = None
        if record.caption is not None:
            session.keeps_caption = bool(record.caption)
            changes |= {tab.caption: record.caption, tab.use_caption: bool(record.caption)}
        return changes


def _told(record: Record, then: str) -> str:
    own = " It was made with a map of its own, which is not in the file." if record.segmentation == "own" else ""
    return status(f"The settings of this picture are restored.{own} Now {then}.")
