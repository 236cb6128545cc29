"""The text side of VLUM (paper Sec. 3.2)."""

from __future__ import annotations

INFRARED_PROMPT = "an infrared image"
"""The one prompt of phase 1 (paper Sec. 3.3)."""


def build_prompt(caption: str) -> str:
    """The instruction the text encoder sees: "turn the visible image of {caption} into infrared".

    White space is collapsed. An empty caption gives "", the null text.
    """
    caption = " ".join(caption.split())
    return f"turn the visible image of {caption} into infrared" if caption else ""
