"""Help for the researcher: which scale to move for which fault, and how near the picture is to the real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.advice import ADVICE, Advice
from diffv2ir.reference import compare
from diffv2ir.ui.common import by_name, field_of
from diffv2ir.ui.upload import Upload

if TYPE_CHECKING:
    from diffv2ir.ui.translate import TranslateTab

_NO_RESULT = "translate a photo first; then its picture can be compared"


class Tuning:
    """Two folds of the Translate tab: "Help me tune" and "Compare with the real one"."""

    def __init__(self, tab: TranslateTab):
        self.tab = tab
        self.buttons: list[tuple[Advice, gr.Button]] = []

    def build(self) -> None:
        with gr.Accordion("Help me tune", open=False):
            gr.Markdown("What is wrong with the picture? The button moves the scale and translates again.")
            with gr.Row(elem_classes="advice"):
                for advice in ADVICE:
                    with gr.Column(min_width=260):
                        arrow = "↑" if advice.direction > 0 else "↓"
                        name = field_of(advice.setting)["label"]
                        button = gr.Button(f"{advice.fault}: {name} {arrow}", size="md", elem_classes="wraps")
                        self.buttons.append((advice, button))
        with gr.Accordion("Compare with the real infrared picture", open=False):
            with gr.Row():
                self.real = Upload(label="Real infrared", sources=["upload"], height=260)
                self.difference = gr.Image(
                    label="Difference: red too bright, blue too dark", interactive=False, format="png", height=260,
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
            self.verdict = gr.Markdown()
            self.compare_button = gr.Button("Compare the last picture")

    def connect(self) -> None:
        tab = self.tab
        for advice, button in self.buttons:
            tab.on([button.click], self._follow(advice))
        inputs = {"session": tab.page.session, "real": self.real}
        gr.on(
            [self.real.upload, self.compare_button.click],
            by_name(self.compare, inputs),
            list(inputs.values()),
            [self.verdict, self.difference],
            api_visibility="private",
        )

    def compare(self, data: dict[str, Any]) -> tuple[str, Any]:
        """PSNR, SSIM and a difference map of the shown picture against the real one."""
        result = data["session"].shown
        if result is None:
            raise ValueError(_NO_RESULT)
        if not data["real"]:
            raise ValueError("upload the real infrared picture of the same scene first")
        comparison = compare(result.output.image, data["real"])
        return f"**PSNR {comparison.psnr:.2f} dB, SSIM {comparison.ssim:.3f}** (picture {result.number})", (
            comparison.difference
        )

    def _follow(self, advice: Advice):
        def follow(data: dict[str, Any]) -> Iterator[dict]:
            """Move the scale, then translate with the same noise."""
            settings = advice.apply(self.tab.read_settings({**data, "new_seed": False}))
            value = getattr(settings, advice.setting)
            yield {self.tab.settings[advice.setting]: self.tab.controls.value(advice.setting, value)}
            yield from self.tab.translate({**data, advice.setting: value, "new_seed": False})

        return follow
