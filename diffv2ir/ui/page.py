"""The page: its tabs, the state of a session, and what all tabs look like."""

from __future__ import annotations

import html
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.api import Api
from diffv2ir.ui.background import settle
from diffv2ir.ui.batch import BatchTab
from diffv2ir.ui.grid import GridTab
from diffv2ir.ui.history import HistoryTab
from diffv2ir.ui.model import Model
from diffv2ir.ui.session import IDLE_SECONDS, Session
from diffv2ir.ui.translate import TranslateTab
from diffv2ir.ui.video import VideoTab
from diffv2ir.video import ClipLimits

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

logger = logging.getLogger(__name__)

_INTRODUCTION = """
# DiffV2IR: from a colour photo to an infrared picture

Drop a photo. The model describes it in words, cuts it into regions, and paints the infrared picture from all three.
"""

_PAPER = "https://arxiv.org/abs/2503.19012"

_NOTICES = {
    "loading": "⏳ The model is loading, which takes some seconds. You can choose a photo already.",
    "failed": "⚠️ The model could not be loaded; the server's log says why. Please try again later.",
}

# The keys belong to the open tab: its main button, and its Stop. An Escape that closes a list of choices or a picture
# that fills the window closes that alone: whether one is open is asked before the page hears of the key, and whether
# the page took the key, after that.
_SHORTCUTS = """
const press = (kind) => {
    const buttons = document.querySelectorAll(`[role=tabpanel] button.${kind}`);
    const button = [...buttons].find((button) => button.offsetParent);
    if (button) button.click();
};
document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        press("primary");
    } else if (event.key === "Escape") {
        const open = "input[aria-expanded=true], ul[role=listbox], .block.fullscreen";
        const closes = document.fullscreenElement || document.querySelector(open);
        setTimeout(() => { if (!closes && !event.defaultPrevented) press("stop"); });
    }
}, true);
"""

# Only fonts that every machine has: the page works without a network.
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONOSPACE = ["ui-monospace", "Consolas", "monospace"]

_CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.notice, .honest { font-size: 0.95rem; line-height: 1.5; }
.status { min-height: 3.4em; line-height: 1.6; }
.status [data-testid=status-tracker]:has(.progress-text) {
  display: block !important; visibility: visible !important; opacity: 1 !important; inset: 0; overflow: visible;
}
.status details { font-size: 0.9rem; }
.status progress { width: 100%; height: 0.6em; accent-color: var(--color-accent); }
.chips-label { margin: 0; font-size: 0.95rem; }
.chips button, .wraps { white-space: normal; }
.colour-bar { display: flex; align-items: center; gap: 0.6em; font-size: 0.9rem; }
.colour-bar > div { flex: 1; height: 1em; border-radius: 0.3em; border: 1px solid var(--border-color-primary); }
#history .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
@media (min-width: 800px) {
  #workbench { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); grid-template-rows: auto 1fr; }
  #workbench > :nth-child(2) { grid-area: 1 / 2 / 3 / 3; }
}
@media (max-width: 799px) {
  #workbench > :nth-child(2):not(:has(#viewer img)) { display: none; }
  #history .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""

LAUNCH_OPTIONS: dict[str, Any] = dict(
    theme=gr.themes.Soft(primary_hue="orange", font=_FONTS, font_mono=_MONOSPACE),
    css=_CSS,
    js=f"() => {{{_SHORTCUTS}}}",
    footer_links=["api", "settings"],
    max_file_size="64mb",
    ssr_mode=False,
    state_session_capacity=1000,  # a program has a session for each of its clients
)


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for in one go: photos of a batch, and the clip. The others wait as long as it takes."""

    photos: int = 200
    clip: ClipLimits = ClipLimits()


class Page:
    """The page for one model. Tabs are built one after the other, then connected: a tab may use what others hold.

    Attributes:
        model: the shared model; facts: of its bundle, known before it has loaded.
        session: the visitor's `Session`.
        translate: the first tab, whose photo and settings the others start from.
    """

    def __init__(self, model: Model, limits: Limits | None = None):
        self.model, self.facts, self.limits = model, model.facts, limits or Limits()
        self.translate, self.history, self.api = TranslateTab(self), HistoryTab(self), Api(self)

    @property
    def pipe(self) -> DiffV2IRPipeline:
        """The loaded pipeline; waits for it, and until work whose visitor has gone is off it. For handlers, not for the
        work that they `follow`, which would wait for itself."""
        settle()
        return self.model.get()

    def build(self) -> gr.Blocks:
        tabs = {
            "Translate": self.translate,
            "Grid": GridTab(self),
            "Batch": BatchTab(self),
            "Video": VideoTab(self),
            "History": self.history,
        }
        with gr.Blocks(title="DiffV2IR", delete_cache=(IDLE_SECONDS, IDLE_SECONDS)) as demo:
            self.session = gr.State(Session)  # without a time to live, which is counted from the beginning
            gr.Markdown(_INTRODUCTION)
            notice = gr.HTML(self._notice, elem_classes="notice")
            with gr.Tabs() as self.tabs:
                for name, tab in tabs.items():
                    with gr.Tab(name, id=name.lower()):
                        tab.build()
            gr.HTML(self._honest_line(), elem_classes="honest")
            self.api.build()
            for part in (*tabs.values(), self.api):
                part.connect()
            # One look when the model is there: the notice goes away by itself.
            demo.load(self._when_loaded, None, notice, queue=False, api_visibility="private", show_progress="hidden")
        return demo

    def _notice(self) -> str:
        text = _NOTICES.get(self.model.state, "")
        return f'<div role="status" aria-live="polite">{text}</div>' if text else ""

    def _when_loaded(self) -> str:
        try:
            self.model.get()
        except Exception:
            logger.debug("told on the page", exc_info=True)  # whoever started the loading logs it
        return self._notice()

    def _honest_line(self) -> str:
        facts = self.facts
        trained = f", trained on {html.escape(facts.trained_on)}" if facts.trained_on else ""
        terms = f", terms of its weights: {html.escape(facts.terms)}" if facts.terms else ""
        return (
            "<p>What you see is a <strong>plausible</strong> infrared picture, not a measurement of temperature. "
            f"Made by the model <strong>{html.escape(facts.name)}</strong>{trained}{terms}. "
            "Saved files say that they are generated. The method is that of the paper "
            f'<a href="{_PAPER}" target="_blank" rel="noopener">DiffV2IR</a>. '
            "Ctrl+Enter translates, Esc stops.</p>"
        )


def build_demo(model: Model, queue_size: int = 20, concurrency: int = 8, limits: Limits | None = None) -> gr.Blocks:
    """The page for a model; launch it with `**LAUNCH_OPTIONS`, or `serve` it.

    Args:
        queue_size: requests that may wait for the model; the next one is told to come back later.
        concurrency: light requests served at a time; the model makes one picture at a time.
    """
    page = Page(model, limits)
    demo = page.build().queue(
        max_size=queue_size,
        default_concurrency_limit=concurrency,
        api_open=False,  # nobody may pass by the queue: the model makes one picture at a time
    )
    demo.page = page
    return demo
