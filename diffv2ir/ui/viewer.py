"""The picture area: a before/after slider whose right side is switched, and a colour bar."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from diffv2ir import palettes
from diffv2ir.imaging import limited_size
from diffv2ir.ui.session import Result, Session

INFRARED, PALETTE, SEGMENTATION, VISIBLE = "Infrared", "Palette", "Segmentation", "Visible"

_PALETTE = "ironbow"

# What is shown; results keep their own size.
_LONGEST_SIDE = 1280


class Viewer:
    """Before/after slider: the photo on the left, on the right what the switch says."""

    def build(self) -> None:
        # No download: what it shows is small and without the settings, unlike the picture in the field "Infrared".
        self.slider = gr.ImageSlider(
            label=_label(INFRARED), interactive=False, format="webp", height=460, max_height=460, elem_id="viewer",
            buttons=["fullscreen"],
        )  # fmt: skip
        with gr.Row():
            self.view = gr.Radio(
                [INFRARED, PALETTE, SEGMENTATION, VISIBLE], value=INFRARED, label="Right side", scale=3
            )
            self.palette = gr.Dropdown(
                list(palettes.PALETTES), value=_PALETTE, label="Palette", info="For display; files stay gray.", scale=2
            )
        self.bar = gr.HTML(_bar(_PALETTE), label="Colour bar", visible=False)
        self.used_palette = gr.State(_PALETTE)

    def connect(self, session: gr.State) -> None:
        quietly = dict(show_progress="hidden", api_visibility="private", queue=False)
        self.view.input(self._switch, [session, self.view, self.palette], [self.slider, self.bar], **quietly)
        self.palette.input(
            self._choose_palette,
            [session, self.palette, self.used_palette],
            [self.slider, self.bar, self.view, self.used_palette],
            **quietly,
        )

    def of(self, result: Result, view: str, palette: str) -> dict[str, Any]:
        """An update of the slider: a result's photo and what the switch says."""
        return gr.update(value=(_small(result.photo), self._right(result, view, palette)), label=_label(view))

    def of_two(self, results: tuple[Result, Result], names: tuple[str, str], view: str, palette: str) -> dict[str, Any]:
        """An update of the slider: two results side by side, in the palette if the switch says so."""
        view = view if view == PALETTE else INFRARED
        sides = tuple(self._right(result, view, palette) for result in results)
        return gr.update(value=sides, label=" | ".join(names))

    @staticmethod
    def preview(photo: Image.Image, estimate: Image.Image) -> dict[str, Any]:
        """An update of the slider while the work goes on."""
        left = _small(photo)
        return gr.update(value=(left, estimate.resize(left.size, Image.Resampling.BICUBIC)), label=_label(INFRARED))

    def _right(self, result: Result, view: str, palette: str) -> Image.Image:
        infrared = _small(result.output.image)
        if view == PALETTE:
            return palettes.apply(infrared, palette)
        if view == SEGMENTATION and result.output.segmentation is not None:
            return result.output.segmentation.resize(infrared.size, Image.Resampling.NEAREST)
        return _small(result.photo) if view == VISIBLE else infrared

    def _switch(self, session: Session, view: str, palette: str) -> tuple[Any, dict[str, Any]]:
        session.touch()
        shown = gr.skip() if session.shown is None else self.of(session.shown, view, palette)
        return shown, gr.update(value=_bar(palette), visible=view == PALETTE)

    def _choose_palette(self, session: Session, palette: str, used: str) -> tuple[Any, ...]:
        """Show the palette. Gradio also calls it where the field only loses the focus: then nothing changes."""
        if palette == used:
            return (gr.skip(),) * 4
        return *self._switch(session, PALETTE, palette), PALETTE, palette


def _label(view: str) -> str:
    return f"Photo | {view.lower()}"


def _small(image: Image.Image) -> Image.Image:
    return image.resize(limited_size(image.size, _LONGEST_SIDE), Image.Resampling.LANCZOS)


def _bar(palette: str) -> str:
    levels = palettes.colour_bar(palette, (17, 1))
    stops = ", ".join(f"rgb{levels.getpixel((x, 0))}" for x in range(levels.width))
    return (
        f'<div class="colour-bar"><span>dark</span><div role="img" aria-label="colour bar of the palette {palette}" '
        f'style="background: linear-gradient(to right, {stops})"></div><span>bright</span></div>'
    )
