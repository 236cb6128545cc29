"""The settings of one generation: the single source of every default, range and label."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from diffv2ir.vlum.prompt import BANDS

SAMPLERS = ("euler_ancestral", "dpmpp_2m", "unipc", "ddim")
MAP_STYLES = ("union", "regions")
BRANCH_ORDERS = ("vst", "svt")
RESOLUTION_RULES = ("shorter", "longer")
CAPTIONINGS = ("greedy", "sampled")
MAX_SEED = 2**31 - 1
GENERAL_STYLE = "general"
STYLE_BAND = "auto"
BUNDLE_MAP = "auto"

_STYLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def _setting(default: Any, label: str, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"label": label, "help": help, **metadata})


@dataclass(frozen=True)
class GenerationSettings:
    """Everything that decides a picture besides the photo, its caption and its segmentation map.

    Each field's metadata holds `label`, `help` and, for numbers, `minimum`, `maximum` and `step` of a slider and
    `limit`: the largest accepted value (None: there is none). Fields with a closed set of values have `choices`.

    Raises:
        ValueError: a value out of range, naming field, value and range.
    """

    steps: int = _setting(
        100, "Steps",
        "In how many steps the picture is made out of noise (denoising); more is slower, with full-size models finer.",
        minimum=1, maximum=200, limit=500, step=1,
    )  # fmt: skip
    visible_scale: float = _setting(
        1.5, "Visible scale (s_V)", "How strongly the picture follows the photo (s_V of Eq. 2 of the paper).",
        minimum=0.0, maximum=15.0, limit=None, step=0.1,
    )  # fmt: skip
    segmentation_scale: float = _setting(
        1.5, "Segmentation scale (s_S)",
        "How strongly the picture follows the map of the photo's regions (s_S of Eq. 2 of the paper).",
        minimum=0.0, maximum=15.0, limit=None, step=0.1,
    )  # fmt: skip
    text_scale: float = _setting(
        7.5, "Text scale (s_T)", "How strongly the picture follows the caption (s_T of Eq. 2 of the paper).",
        minimum=0.0, maximum=15.0, limit=None, step=0.1,
    )  # fmt: skip
    seed: int | None = _setting(
        None, "Seed", "Start of the random noise: the same seed gives the same picture; without one, one is drawn.",
        minimum=0, maximum=MAX_SEED, limit=MAX_SEED, step=1,
    )  # fmt: skip
    sampler: str = _setting(
        "euler_ancestral", "Sampler",
        "How a step gets from noise to picture. euler_ancestral: the paper's; dpmpp_2m and unipc need fewer steps.",
        choices=SAMPLERS,
    )  # fmt: skip
    resolution: int = _setting(
        512,
        "Resolution",
        "Pixels of the photo's shorter side (or longer one, see the resolution rule) while the model works; "
        "the result has the photo's size.",
        minimum=64,
        maximum=1024,
        limit=2048,
        step=64,
    )
    edge_radius: float = _setting(
        0.0, "Edges", "How far around, in percent of the shorter side, outlines are drawn to where the photo has them; "
        "0 = as the model drew them.", minimum=0.0, maximum=25.0, limit=25.0, step=0.5,
    )  # fmt: skip
    gain_control: float = _setting(
        0.0, "Gain control", "How far the grays are spread about their mean, as an infrared camera's electronics do; "
        "0 = as predicted, 1 = over the whole range.",
        minimum=0.0, maximum=1.0, limit=1.0, step=0.05,
    )  # fmt: skip
    style: str = _setting(
        GENERAL_STYLE, "Style",
        "Which camera's pictures the result resembles; 'general' is none in particular (the model without adapter).",
    )  # fmt: skip
    band: str = _setting(
        STYLE_BAND, "Band",
        "What the prompt asks for. LWIR: heat, as thermal cameras see it; NIR: light just beyond red, in which leaves "
        "are bright; auto: that of the style, LWIR for most.",
        choices=(STYLE_BAND, *BANDS),
    )  # fmt: skip
    branch_order: str = _setting(
        "vst", "Order of the conditions",
        "In what order photo, map and caption are weighed. vst: the photo first (Eq. 2 of the paper); svt: the map "
        "first, as the paper's released code does, so that s_S weighs the map alone and s_V the photo beside it.",
        choices=BRANCH_ORDERS,
    )  # fmt: skip
    resolution_rule: str = _setting(
        "shorter", "Resolution rule",
        "Which side of the photo the resolution counts. shorter: the shorter one; longer: about the longer one, both "
        "multiples of 64, as in the paper's released code, which is faster on wide photos.",
        choices=RESOLUTION_RULES,
    )  # fmt: skip
    captioning: str = _setting(
        "greedy", "Captioning",
        "How the model words its caption. greedy: its most likely words, the same for every seed; sampled: drawn by "
        "the seed (top-p 0.9, 5 to 20 tokens), as in the paper's released code.",
        choices=CAPTIONINGS,
    )  # fmt: skip
    map_style: str = _setting(
        BUNDLE_MAP, "Style of the map",
        "How the map shows the photo's regions. auto: as the model learnt it; union: all of them white on black, as in "
        "the paper's released code; regions: each in a colour of its own.",
        choices=(BUNDLE_MAP, *MAP_STYLES),
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("steps", "resolution", "seed"):
            if name != "seed" or self.seed is not None:
                object.__setattr__(self, name, self._checked(name, integer=True))
        for name in ("visible_scale", "segmentation_scale", "text_scale", "edge_radius", "gain_control"):
            object.__setattr__(self, name, self._checked(name, integer=False))
        for name, known in self.__dataclass_fields__.items():
            choices, value = known.metadata.get("choices"), getattr(self, name)
            if choices and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if not isinstance(self.style, str) or not _STYLE_NAME.fullmatch(self.style):
            raise ValueError(f"style must be a name of letters, digits, '-' and '_', got {self.style!r}")

    def _checked(self, name: str, integer: bool) -> int | float:
        """The field's value as int or float (JSON and sliders write whole numbers either way), or a ValueError."""
        value, metadata = getattr(self, name), self.__dataclass_fields__[name].metadata
        low, high = metadata["minimum"], metadata["limit"]
        kind = "a whole number" if integer else "a number"
        wanted = f"{kind} from {low} to {high}" if high is not None else f"{kind}, {low:g} or more"
        number = not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
        if not number or (integer and value != int(value)) or value < low or (high is not None and value > high):
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        return int(value) if integer else float(value)

    @property
    def evaluations(self) -> int:
        """Evaluations of the UNet, with all conditions on: steps times the branches of Eq. 2 of a weight not zero."""
        images = (self.visible_scale, self.segmentation_scale)
        scales = (1.0, *(images if self.branch_order == "vst" else images[::-1]), self.text_scale, 0.0)
        return self.steps * sum(above != below for above, below in pairwise(scales))

    @property
    def preparation(self) -> dict[str, Any]:
        """What `DiffV2IRPipeline.prepare` has to know of the settings, by its arguments."""
        return {
            "resolution": self.resolution,
            "resolution_rule": self.resolution_rule,
            "captioning": self.captioning,
            "caption_seed": (self.seed or 0) if self.captioning == "sampled" else 0,
            "map_style": self.map_style,
        }

    def with_seed(self) -> GenerationSettings:
        """The same; without a seed, with one that is drawn, from the operating system: a caller's seed of a global
        generator must not repeat "random" pictures.

        A picture whose caption is drawn too needs that before `DiffV2IRPipeline.prepare`, so that one seed gives both.
        """
        return self if self.seed is not None else self.replace(seed=random.SystemRandom().randint(0, MAX_SEED))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationSettings:
        """The settings with these values, defaults for the rest; unknown keys are a ValueError."""
        unknown = [str(name) for name in values if name not in cls.__dataclass_fields__]
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"unknown settings: {', '.join(unknown)} (known: {known})")
        return cls(**values)

    def replace(self, **changes: Any) -> GenerationSettings:
        """A copy with these fields changed; unknown names are a ValueError."""
        return self.from_dict({**self.to_dict(), **changes})

    def with_preset(self, name: str) -> GenerationSettings:
        """A bundle's own settings with what one of `PRESETS` changes.

        One of `SAVING` changes nothing where it would take as many evaluations or more.
        """
        changed = self.replace(**PRESETS[name])
        return self if name in SAVING and changed.evaluations >= self.evaluations else changed


# What a preset changes in the bundle's own defaults, see `GenerationSettings.with_preset`.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"sampler": "dpmpp_2m", "steps": 10},
    "balanced": {"sampler": "dpmpp_2m", "steps": 25},
    "paper": {
        "sampler": "euler_ancestral",
        "steps": 100,
        "visible_scale": 1.5,
        "segmentation_scale": 1.5,
        "text_scale": 7.5,
        "edge_radius": 0.0,
        "gain_control": 0.0,
        "branch_order": "vst",
    },
    # What the paper's released code does, where the paper says nothing or something else.
    "paper-code": {
        "sampler": "euler_ancestral",
        "steps": 100,
        "visible_scale": 1.5,
        "segmentation_scale": 1.5,
        "text_scale": 7.5,
        "resolution": 512,
        "branch_order": "svt",
        "resolution_rule": "longer",
        "captioning": "sampled",
        "map_style": "union",
        "edge_radius": 0.0,
        "gain_control": 0.0,
    },
}

# Presets that are there to save time.
SAVING = ("fast", "balanced")
