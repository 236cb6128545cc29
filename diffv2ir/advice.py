"""Which setting to move for a fault that a person sees (Eq. 2 of the paper and its Fig. 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffv2ir.settings import GenerationSettings

_SMALLEST_STEP = 0.25
_SHARE = 0.25


@dataclass(frozen=True)
class Advice:
    """A fault, the setting to move and which way (+1 up, -1 down)."""

    fault: str
    setting: str
    direction: int

    def apply(self, settings: GenerationSettings) -> GenerationSettings:
        """The settings with this one moved by a quarter, and by 0.25, or a quarter of its range, at least.

        It stays at 0 or above.
        """
        value = getattr(settings, self.setting)
        limit = GenerationSettings.__dataclass_fields__[self.setting].metadata["limit"] or math.inf
        step = max(min(_SMALLEST_STEP, _SHARE * limit), _SHARE * value)
        moved = min(max(0.0, value + self.direction * step), limit)
        return settings.replace(**{self.setting: round(moved, 2)})


ADVICE = (
    Advice("Texture of the photo shows through", "visible_scale", -1),
    Advice("Structure of the scene is lost", "visible_scale", +1),
    Advice("Objects run into each other", "segmentation_scale", +1),
    Advice("Regions look cut out", "segmentation_scale", -1),
    Advice("Heat is flat", "text_scale", +1),
    Advice("Halos around lamps, too much contrast", "text_scale", -1),
    Advice("The whole picture is gray, or nearly black", "gain_control", +1),
    Advice("Too much black and white", "gain_control", -1),
    Advice("Outlines are soft", "edge_radius", +1),
    Advice("Print and shadows of the photo show", "edge_radius", -1),
)
