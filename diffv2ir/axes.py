"""Axes of a grid: what can vary, and how people write its values, which is that of the X/Y/Z plots they know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from diffv2ir.settings import GenerationSettings

AXES = {
    "visible_scale": "s_V",
    "segmentation_scale": "s_S",
    "text_scale": "s_T",
    "steps": "steps",
    "edge_radius": "edges",
    "gain_control": "gain",
    "sampler": "sampler",
    "branch_order": "order",
    "style": "style",
    "band": "band",
    "seed": "seed",
    "caption": "caption",
    "map": "map",
}
"""What can vary, and how a legend calls it."""

ON, OFF = "on", "off"

# Of values on one axis: reading a short text must not take long, whatever range it asks for.
MOST_VALUES = 1000

_NUMBER = r"\d{1,12}(?:\.\d{0,9})?|\.\d{1,9}"
_SIGNED = rf"[+-]?\s*(?:{_NUMBER})"
_RANGE = re.compile(
    rf"(?P<first>{_SIGNED})\s*-\s*(?P<last>{_SIGNED})"
    rf"(?:\s*\(\s*(?P<step>{_SIGNED})\s*\)|\s*\[\s*(?P<count>\d{{1,9}})\s*\])?",
    re.ASCII,
)
_SINGLE = re.compile(_SIGNED, re.ASCII)
_WHOLE = ("steps", "seed")
_HINT = "write 1,2,3 or 1-5 or 1-5 (+2) or 1-10 [5]"


class GridError(ValueError):
    """A grid that cannot be drawn; names the axis and what would be right."""


@dataclass(frozen=True)
class Axis:
    """One direction of a grid: a name of `AXES` and its values, each once, in the order written."""

    name: str
    values: tuple[Any, ...]

    @property
    def legends(self) -> list[str]:
        """What a legend says of each value."""
        return [label(self.name, value) for value in self.values]


def parse_axis(name: str, text: str, styles: Sequence[str] = ()) -> Axis:
    """The axis that a text asks for: `1,2,3`, `1-5`, `1-5 (+2)`, `10-4 (-3)`, `1-10 [5]`, or names.

    `[5]` takes five values, evenly spaced. Whole numbers are then rounded towards zero, others to four decimals.

    Args:
        styles: of the bundle; none = any name.

    Raises:
        GridError: an unknown axis, no values, or a value that is not understood or out of range.
    """
    if name not in AXES:
        raise GridError(f"the axis must be one of {', '.join(AXES)}, got {name!r}")
    parts = [part.strip() for part in re.split(r"[,\n]", text or "") if part.strip()]
    if not parts:
        raise GridError(f"{AXES[name]}: no values given; {_help(name, styles)}")
    if _names(name, styles) is not None:
        values = [_named(name, part, styles) for part in parts]
    else:
        values = _all_numbers(name, parts)
    values = list(dict.fromkeys(values))
    for value in values:
        _check(name, value)
    return Axis(name, tuple(values))


def label(name: str, value: Any) -> str:
    """How a legend writes a value of an axis."""
    if isinstance(value, bool):
        text = ON if value else OFF
    else:
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return f"{AXES[name]} {text}"


def suggestion(name: str, settings: GenerationSettings, styles: Sequence[str] = ()) -> str:
    """Values worth comparing on an axis, as text, around those of `settings`."""
    if name == "seed":
        seed = settings.seed or 0
        return ", ".join(str(value) for value in (seed, seed + 1, seed + 2))
    names = _names(name, styles)
    return ", ".join(names if names is not None else _around(name, getattr(settings, name)))


def _around(name: str, value: float) -> list[str]:
    """The value of a number's axis between its half and its double, each once and where a slider can stand."""
    field = GenerationSettings.__dataclass_fields__[name].metadata
    low, high, step = field["minimum"], max(field["maximum"], value), field["step"]
    if value:
        others = (value / 2, value * 2)
    else:
        others = (high / 10, high / 5)
    values = sorted({value, *(min(max(round(other / step) * step, low), high) for other in others)})
    return [f"{number:.10g}" for number in values]


def _names(name: str, styles: Sequence[str]) -> Sequence[str] | None:
    """The names that an axis knows; empty for any name, None for an axis of numbers."""
    if name == "style":
        return styles
    if name in ("caption", "map"):
        return (ON, OFF)
    return GenerationSettings.__dataclass_fields__[name].metadata.get("choices")


def _help(name: str, styles: Sequence[str]) -> str:
    names = _names(name, styles)
    return _HINT if names is None else f"write one or more of {', '.join(names) or 'the styles'}"


def _named(name: str, text: str, styles: Sequence[str]) -> str | bool:
    names = _names(name, styles)
    known = {known.lower(): known for known in names}
    value = known.get(text.lower()) if names else text
    if value is None:
        raise GridError(f"{AXES[name]}: {text[:40]!r} is none of {', '.join(names)}")
    return value == ON if name in ("caption", "map") else value


def _check(name: str, value: Any) -> None:
    if name in ("caption", "map"):
        return
    try:
        GenerationSettings().replace(**{name: value})
    except ValueError as error:
        raise GridError(str(error)) from None


def _all_numbers(name: str, parts: Sequence[str]) -> list[int | float]:
    numbers: list[Decimal] = []
    for part in parts:
        numbers += _numbers(name, part)
        if len(numbers) > MOST_VALUES:
            raise GridError(f"{AXES[name]}: more than {MOST_VALUES} values")
    return [int(number) if number == int(number) else float(number) for number in numbers]


def _numbers(name: str, text: str) -> list[Decimal]:
    if _SINGLE.fullmatch(text):
        return [_decimal(text)]
    found = _RANGE.fullmatch(text)
    if not found:
        raise GridError(f"{AXES[name]}: {text[:40]!r} is neither a number nor a range; {_HINT}")
    first, last = _decimal(found["first"]), _decimal(found["last"])
    if found["count"]:
        return _evenly(name, text, first, last, int(found["count"]))
    step = _decimal(found["step"]) if found["step"] else Decimal(1 if last >= first else -1)
    if step == 0 or (last - first) * step < 0:
        right = f"{first}-{last} ({'+' if last >= first else '-'}{abs(step) or 1})"
        raise GridError(f"{AXES[name]}: {text!r} never gets from {first} to {last}; write {right}")
    count = int((last - first) / step) + 1
    if count > MOST_VALUES:
        raise GridError(f"{AXES[name]}: {text!r} has {count} values, more than {MOST_VALUES}")
    return [first + number * step for number in range(count)]


def _evenly(name: str, text: str, first: Decimal, last: Decimal, count: int) -> list[Decimal]:
    if not 1 <= count <= MOST_VALUES:
        raise GridError(f"{AXES[name]}: {text!r} must ask for 1 to {MOST_VALUES} values, got {count}")
    if count == 1:
        return [first]
    values = [first + (last - first) * number / (count - 1) for number in range(count)]
    return [Decimal(int(value)) if name in _WHOLE else round(value, 4) for value in values]


def _decimal(text: str) -> Decimal:
    return Decimal(re.sub(r"\s", "", text))
