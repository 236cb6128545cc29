"""Vision-language understanding (paper Sec. 3.2): BLIP caption, SAM segmentation map, prompt.

The parts load on first use: the page needs the words of `prompt` before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffv2ir.vlum.caption import caption_images
    from diffv2ir.vlum.prompt import INFRARED_PROMPT, build_prompt
    from diffv2ir.vlum.segment import MAP_STYLES, SamSegmenter, segmentation_colour, segmentation_map

_HOMES = {
    "INFRARED_PROMPT": "prompt",
    "MAP_STYLES": "segment",
    "SamSegmenter": "segment",
    "build_prompt": "prompt",
    "caption_images": "caption",
    "segmentation_colour": "segment",
    "segmentation_map": "segment",
}

__all__ = [
    "INFRARED_PROMPT",
    "MAP_STYLES",
    "SamSegmenter",
    "build_prompt",
    "caption_images",
    "segmentation_colour",
    "segmentation_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffv2ir.vlum' has no attribute {name!r}")
    return getattr(import_module(f"diffv2ir.vlum.{_HOMES[name]}"), name)
