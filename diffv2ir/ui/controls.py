"""The settings as components: presets with their cost, the scales of Eq. 2, sampling, style and seed."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffv2ir.settings import GENERAL_STYLE, PRESETS, SAVING, GenerationSettings
from diffv2ir.ui.common import by_name, field_of
from diffv2ir.ui.model import BundleFacts

SCALES = ("visible_scale", "segmentation_scale", "text_scale")
VARIANTS = ("branch_order", "resolution_rule", "captioning", "map_style")
_OWN, _CUSTOM = "bundle", "custom"


class Controls:
    """Components of `GenerationSettings`, by field, and what is asked beside them.

    Attributes:
        fields: component by field of `GenerationSettings`.
        new_seed: whether each run draws a new seed.
    """

    def __init__(self, facts: BundleFacts):
        self.facts, self.defaults = facts, facts.defaults
        self.fields: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        self.preset = gr.Radio(
            self._preset_choices(self.defaults),
            value=_OWN,
            label="Preset",
            info="Each tells how often it evaluates the UNet.",
        )
        with gr.Row():
            for name in (*SCALES, "steps"):
                self._slider(name)
        with gr.Row():
            if len(self.facts.styles) > 1:
                field = field_of("style")
                self.fields["style"] = gr.Radio(
                    list(self.facts.styles), value=self.defaults.style, label=field["label"], info=field["help"]
                )
            self._choice("band")
        with gr.Row():
            self._choice("sampler")
            self._slider("resolution")
        with gr.Row():
            self._slider("edge_radius")
            self._slider("gain_control")
        with gr.Row():
            field = field_of("seed")
            self.fields["seed"] = gr.Number(
                value=self.defaults.seed or 0,
                precision=0,
                minimum=field["minimum"],
                maximum=field["limit"],
                label=field["label"],
                info="Start of the random noise: the same seed gives the same picture.",
            )
            self.new_seed = gr.Checkbox(False, label="Draw a new seed each time", info="The seed used is always shown.")
        with gr.Accordion("As the paper says, or as its released code does", open=False), gr.Row():
            for name in VARIANTS:
                self._choice(name)

    def connect(self) -> None:
        names = list(self.fields)
        self.preset.input(
            self._apply_preset, self.preset, [self.fields[name] for name in names], api_visibility="private"
        )
        inputs = {"preset": self.preset, **self.fields}
        gr.on(
            [self.fields[name].change for name in self.fields if name in _in_presets()],
            by_name(self.name_preset, inputs),
            list(inputs.values()),
            self.preset,
            preprocess=False,  # which would complain about a number that is being typed
            trigger_mode="always_last",
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )

    def read(self, data: dict[str, Any]) -> GenerationSettings:
        """The settings among a handler's values; a new seed is drawn where `data["new_seed"]` says so."""
        values = {name: data[name] for name in self.fields}
        if data.get("new_seed"):
            values["seed"] = None
        return self.defaults.replace(**{"style": GENERAL_STYLE, **values})

    def show(self, settings: GenerationSettings, keep_seed: bool = True) -> dict[gr.components.Component, Any]:
        """Updates that put `settings` into the components.

        Raises:
            ValueError: a style that this bundle does not have.
        """
        if settings.style not in self.facts.styles:
            raise ValueError(
                f"style {settings.style!r} is not in this bundle, which has {', '.join(self.facts.styles)}"
            )
        wanted = [name for name in self.fields if keep_seed or name != "seed"]
        shown = {name: getattr(settings, name) for name in wanted}
        return {self.fields[name]: self.value(name, value) for name, value in shown.items() if value is not None}

    def value(self, name: str, value: Any) -> Any:
        """An update that puts a value into a field. A slider reaches to one that is beyond its comfortable range."""
        field = self.fields[name]
        if not isinstance(field, gr.Slider) or field.minimum <= value <= field.maximum:
            return value
        return gr.update(value=value, minimum=min(field.minimum, value), maximum=max(field.maximum, value))

    def name_preset(self, data: dict[str, Any]) -> dict[str, Any]:
        """The preset that the components show: the chosen one if it still is, or "Custom" with its cost."""
        try:
            settings = self.read(data)
        except (TypeError, ValueError):  # a number is being typed
            return gr.skip()
        names = sorted((_OWN, *self._presets), key=lambda name: name != data["preset"])
        preset = next((name for name in names if self._is_preset(settings, name)), _CUSTOM)
        return gr.update(choices=self._preset_choices(settings), value=preset)

    def _is_preset(self, settings: GenerationSettings, name: str) -> bool:
        preset = self._preset(name)
        return all(
            getattr(settings, field) == getattr(preset, field) for field in self.fields if field in _in_presets()
        )

    @property
    def _presets(self) -> list[str]:
        """Those worth offering: what is to save time has to cost less than the bundle's own settings."""
        return [name for name in PRESETS if name not in SAVING or self._preset(name) != self.defaults]

    def _preset(self, name: str) -> GenerationSettings:
        return self.defaults if name == _OWN else self.defaults.with_preset(name)

    def _preset_choices(self, settings: GenerationSettings) -> list[tuple[str, str]]:
        titles = {_OWN: "Of this bundle", **{name: name.capitalize() for name in self._presets}}
        choices = [(_cost(title, self._preset(name)), name) for name, title in titles.items()]
        return [*choices, (_cost("Custom", settings), _CUSTOM)]

    def _apply_preset(self, name: str) -> list[Any]:
        if name == _CUSTOM:  # as it is
            return [gr.skip()] * len(self.fields)
        settings, shown = self._preset(name), _in_presets()
        return [getattr(settings, field) if field in shown else gr.skip() for field in self.fields]

    def _choice(self, name: str) -> None:
        field = field_of(name)
        self.fields[name] = gr.Dropdown(
            list(field["choices"]), value=getattr(self.defaults, name), label=field["label"], info=field["help"]
        )

    def _slider(self, name: str) -> None:
        field = field_of(name)
        # A bundle's default may lie outside of a comfortable slider; the slider then reaches to it.
        value = getattr(self.defaults, name)
        self.fields[name] = gr.Slider(
            min(field["minimum"], value),
            max(field["maximum"], value),
            value=value,
            step=field["step"],
            label=field["label"],
            info=field["help"],
        )


def _in_presets() -> set[str]:
    """The settings that some preset changes."""
    return {field for preset in PRESETS.values() for field in preset}


def _cost(label: str, settings: GenerationSettings) -> str:
    return f"{label} · {settings.evaluations} evaluation{'s' * (settings.evaluations != 1)}"
