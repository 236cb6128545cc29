"""The text side of VLUM (paper Sec. 3.2)."""

from __future__ import annotations

import re

INFRARED_PROMPT = "an infrared image"
"""The one prompt of phase 1 (paper Sec. 3.3)."""


def build_prompt(caption: str) -> str:
    """The instruction the text encoder sees: "turn the visible image of {caption} into infrared".

    White space is collapsed. An empty caption gives "", the null text.
    """
    caption = " ".join(caption.split())
    return f"turn the visible image of {caption} into infrared" if caption else ""


HEAT_PHRASES = ("by day", "at night", "after rain", "in hot sun", "in winter")
"""What changes a scene's heat, as a caption says it."""


def with_phrase(caption: str, phrase: str) -> str:
    """The caption with one of `HEAT_PHRASES` at its end, in place of any that it has."""
    words = " ".join(caption.split())
    for known in HEAT_PHRASES:
        words = re.sub(rf"(^|\s){known}(?=$|[\s,.;])", "", words, flags=re.IGNORECASE)
    return f"{words.strip().rstrip(',.;')} {phrase}".strip()
