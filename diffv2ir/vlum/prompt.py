"""The text side of VLUM (paper Sec. 3.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

INFRARED_PROMPT = "an infrared image"
"""The one prompt of phase 1 (paper Sec. 3.3)."""


_BAND_WORDS = {"LWIR": "infrared", "NIR": "near infrared"}

BANDS = tuple(_BAND_WORDS)
"""Bands that a prompt can ask for: LWIR, the heat that thermal cameras see (the paper's prompt), and NIR, reflected
light just beyond red, in which leaves are bright."""


def build_prompt(caption: str, band: str = "LWIR") -> str:
    """The instruction the text encoder sees: "turn the visible image of {caption} into infrared".

    White space is collapsed. An empty caption gives "", the null text.

    Args:
        band: one of `BANDS`; the words for NIR are "near infrared".
    """
    caption = " ".join(caption.split())
    return f"turn the visible image of {caption} into {_BAND_WORDS[band]}" if caption else ""


def known_band(band: str) -> str:
    """A camera's band as a prompt says it: what `BANDS` does not have is infrared, as LWIR is."""
    return band if band in BANDS else BANDS[0]


HEAT_PHRASES = ("by day", "at night", "after rain", "in hot sun", "in winter")
"""What changes a scene's heat, as a caption says it: what is offered where a bundle names no phrases of its own."""

# What captions say of hour, season and light, as our captioner does ("in daylight", "at dusk", "indoors"): it could
# contradict a phrase beside it.
_WEATHER = "sunny|rainy|cloudy|overcast|bright|clear|hot|cold|warm|snowy|foggy|dark"
_SEASON = "spring|summer|autumn|fall|winter"
_HOUR = "day|night|morning|afternoon|evening"
_LIGHT = (
    rf"{_HOUR}|daylight|day[- ]?time|night[- ]?time|dusk|dawn|noon|midnight|sunset|sunrise|twilight|"
    "darkness|sun|sunlight|sunshine|rain"
)
_SAID = (
    rf"(?:by|at|in|during|after) (?:the )?(?:(?:{_WEATHER}) )?(?:{_LIGHT})",
    rf"(?:in|during) (?:the )?(?:{_SEASON})",
    rf"on an? (?:(?:{_WEATHER}) )?(?:(?:{_SEASON}) )?(?:{_HOUR})",
    "indoors|outdoors",
    "in the dark(?! [a-z])",
)


def with_phrase(caption: str, phrase: str, phrases: Sequence[str] = HEAT_PHRASES) -> str:
    """The caption with one of `phrases` at its end, in place of what it says of hour, season and light.

    Args:
        phrases: what else may stand there, from an earlier time; taken away, too.
    """
    words = _times(tuple(phrases)).sub("", " ".join(caption.split()))
    return f"{words.strip(' ,.;')} {phrase}".strip()


@lru_cache(maxsize=8)
def _times(phrases: tuple[str, ...]) -> re.Pattern:
    said = "|".join((*map(re.escape, phrases), *_SAID))
    return re.compile(rf"(?:^|\s)(?:{said})(?=$|[\s,.;])", re.IGNORECASE)
