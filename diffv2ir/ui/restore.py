"""A saved picture gives its settings back: by a file field, or dropped where a photo is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.imaging import ImageError
from diffv2ir.metadata import restore
from diffv2ir.ui.common import by_name, status

if TYPE_CHECKING:
    from diffv2ir.ui.translate import TranslateTab

_ALL, _ALL_BUT_SEED = "all", "all but the seed"


class Restore:
    """A fold of the Translate tab."""

    def __init__(self, tab: TranslateTab):
        self.tab = tab

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
            [*tab.outputs, tab.use_map],
            show_progress="hidden",
            api_visibility="private",
        )

    def restore_file(self, data: dict[str, Any]) -> dict:
        """Settings and caption of a saved picture into the page."""
        return self._changes(data["file"], keep_seed=data["what"] == _ALL)

    def receive(self, data: dict[str, Any]) -> dict:
        """A file dropped as a photo: if it is a picture of ours, its settings are restored and the photo stays away."""
        try:
            changes = self._changes(data["photo"])
        except ImageError:
            return {self.tab.status: gr.skip()}
        data["session"].restored = True
        return {self.tab.photo: None, **changes}

    def _changes(self, path: str, keep_seed: bool = True) -> dict:
        record = restore(path)
        tab = self.tab
        return {
            **tab.controls.show(record.settings, keep_seed),
            tab.caption: record.caption,
            tab.status: status("The settings of this picture are restored. Now choose the photo to translate."),
        }
