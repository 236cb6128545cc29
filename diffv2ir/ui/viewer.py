"""The picture area: a before/after slider whose right side is switched, and a colour bar."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from diffv2ir import palettes
from diffv2ir.ui.session import Result, Session

INFRARED, PALETTE, SEGMENTATION, VISIBLE = "Infrared", "Palette", "Segmentation", "Visible"

# What is shown; results keep their own size.
_LONGEST_SIDE = 1280


class Viewer:
    """Before/after slider: the photo on the left, on the right what the switch says."""

    def build(self) -> None:
        self.slider = gr.ImageSlider(
            label="Photo | infrared", interactive=False, format="png", height=460, max_height=460, elem_id="viewer"
        )
        with gr.Row():
            self.view = gr.Radio(
                [INFRARED, PALETTE, SEGMENTATION, VISIBLE], value=INFRARED, label="Right side", scale=3
            )
            self.palette = gr.Dropdown(
                list(palettes.PALETTES), value="ironbow", label="Palette", info="For display; files stay gray.", scale=2
            )
        self.bar = gr.HTML(_bar("ironbow"), label="Colour bar")

    def connect(self, session: gr.State) -> None:
        show = dict(
            fn=self._switch,
            inputs=[session, self.view, self.palette],
            outputs=[self.slider, self.bar],
            show_progress="hidden",
            api_visibility="private",
        )
        self.view.input(**show)
        self.palette.input(lambda: PALETTE, None, self.view, api_visibility="private").then(**show)

    def of(self, result: Result, view: str, palette: str) -> tuple[Image.Image, Image.Image]:
        """Both sides of the slider for a result."""
        return _small(result.photo), self._right(result, view, palette)

    @staticmethod
    def preview(photo: Image.Image, estimate: Image.Image) -> tuple[Image.Image, Image.Image]:
        """Both sides while the work goes on."""
        left = _small(photo)
        return left, estimate.resize(left.size, Image.Resampling.BICUBIC)

    def _right(self, result: Result, view: str, palette: str) -> Image.Image:
        infrared = _small(result.output.image)
        if view == PALETTE:
            return palettes.apply(infrared, palette)
        if view == SEGMENTATION and result.output.segmentation is not None:
            return result.output.segmentation.resize(infrared.size, Image.Resampling.NEAREST)
        return _small(result.photo) if view == VISIBLE else infrared

    def _switch(self, session: Session, view: str, palette: str) -> tuple[Any, str]:
        shown = gr.skip() if session.last is None else self.of(session.last, view, palette)
        return shown, _bar(palette)


def _small(image: Image.Image) -> Image.Image:
    scale = min(1.0, _LONGEST_SIDE / max(image.size))
    if scale == 1:
        return image
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def _bar(palette: str) -> str:
    levels = palettes.colour_bar(palette, (17, 1))
    stops = ", ".join(f"rgb{levels.getpixel((x, 0))}" for x in range(levels.width))
    return (
        f'<div class="colour-bar"><span>dark</span><div role="img" aria-label="colour bar of the palette {palette}" '
        f'style="background: linear-gradient(to right, {stops})"></div><span>bright</span></div>'
    )
