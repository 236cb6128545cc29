"""The page: its tabs, the state of a session, and what all tabs look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.batch import BatchTab
from diffv2ir.ui.model import Model
from diffv2ir.ui.session import Session
from diffv2ir.ui.translate import TranslateTab
from diffv2ir.ui.video import VideoTab

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

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

_QUEUE_LENGTH = 20
_SESSION_SECONDS = 3600


class Page:
    """The page for one model. Tabs are built one after the other, then connected: a tab may use what others hold.

    Attributes:
        model: the shared model; facts: of its bundle, known before it has loaded.
        session: the visitor's `Session`.
        translate: the first tab, whose photo and settings the others start from.
    """

    def __init__(self, model: Model):
        self.model, self.facts = model, model.facts
        self.translate = TranslateTab(self)

    @property
    def pipe(self) -> DiffV2IRPipeline:
        """The loaded pipeline; waits for it. For handlers."""
        return self.model.get()

    def build(self) -> gr.Blocks:
        tabs = {"Translate": self.translate, "Batch": BatchTab(self), "Video": VideoTab(self)}
        with gr.Blocks(title="DiffV2IR", delete_cache=(_SESSION_SECONDS, _SESSION_SECONDS)) as demo:
            self.session = gr.State(Session, time_to_live=_SESSION_SECONDS)
            gr.Markdown(_INTRODUCTION)
            with gr.Tabs() as self.tabs:
                for name, tab in tabs.items():
                    with gr.Tab(name, id=name.lower()):
                        tab.build()
            for tab in tabs.values():
                tab.connect()
        return demo.queue(max_size=_QUEUE_LENGTH)


def build_demo(model: Model) -> gr.Blocks:
    """The page for a model; launch it with `**LAUNCH_OPTIONS`."""
    return Page(model).build()
