"""Endpoints for programs: `/prepare` and `/translate`, with the types and ranges of the page's own components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.common import MODEL_QUEUE, by_name
from diffv2ir.ui.downloads import saved
from diffv2ir.ui.stream import Step, stream

if TYPE_CHECKING:
    from diffv2ir.ui.page import Page

# The settings that say what is made of a photo before it is translated.
_PREPARING = ("resolution", "resolution_rule", "captioning", "map_style")


class Api:
    """Invisible components that give the endpoints their signature."""

    def __init__(self, page: Page):
        self.page = page

    def build(self) -> None:
        # Without a value: a call that leaves the caption out gets the model's.
        self.caption = gr.Textbox(visible=False, value=None, label="Caption")
        self.steps_done = gr.Number(visible=False, label="Steps done")
        self.picture = gr.Image(visible=False, format="png", label="Infrared")
        self.map = gr.Image(visible=False, format="png", label="Segmentation map")
        self.used = gr.JSON(visible=False, label="Settings used")
        self.triggers = [gr.Button(visible=False) for _ in range(2)]

    def connect(self) -> None:
        tab = self.page.translate
        shared = {"session": self.page.session, "photo": tab.photo}
        translate = {
            **shared,
            **tab.settings,
            "new_seed": tab.controls.new_seed,
            "use_map": tab.use_map,
            "caption": self.caption,
            "own_map": tab.own_map,
        }
        self.triggers[0].click(
            by_name(self.translate, translate, optional=("caption", "own_map")),
            list(translate.values()),
            [self.picture, self.caption, self.used],
            api_name="translate",
            **MODEL_QUEUE,
        )
        prepare = {**shared, **{name: tab.settings[name] for name in _PREPARING}}
        self.triggers[1].click(
            by_name(self.prepare, prepare),
            list(prepare.values()),
            [self.caption, self.map],
            api_name="prepare",
            **MODEL_QUEUE,
        )

    def prepare(self, data: dict[str, Any]) -> tuple[str, Any]:
        """What the model understands of a photo: its caption and its segmentation map."""
        photo = _photo(data)
        asked = {name: data[name] for name in _PREPARING}
        settings = self.page.facts.defaults.replace(**asked)
        conditioning = data["session"].understand(self.page.pipe, photo, **settings.preparation)
        return conditioning.caption, conditioning.segmentation

    def translate(self, data: dict[str, Any]) -> Iterator[tuple[Any, str, dict]]:
        """A photo to an infrared picture (PNG, 8-bit gray), the caption used, and all settings with the seed.

        Without a caption the model writes it; an empty one switches it off. Previews come before the picture; the
        last answer is the picture, the same that the page gives for these settings.
        """
        photo, settings = _photo(data), self.page.translate.read_settings(data).with_seed()
        conditioning = data["session"].condition(
            self.page.pipe,
            photo,
            data["caption"],
            bool(data["use_map"]),
            own_map=data["own_map"],
            **settings.preparation,
        )
        for event in stream(self.page.pipe, conditioning, settings):
            if not isinstance(event, Step):
                yield saved(event), event.caption, event.settings.to_dict()
            elif event.preview is not None:
                progress = {"step": event.step, "steps": event.total}
                yield event.preview.resize(conditioning.size), conditioning.caption, progress


def _photo(data: dict[str, Any]) -> str:
    if not data["photo"]:
        raise ValueError("choose a photo first")
    return data["photo"]
