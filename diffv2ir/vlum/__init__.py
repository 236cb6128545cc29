"""Vision-language understanding (paper Sec. 3.2): BLIP caption, SAM segmentation map, prompt."""

from diffv2ir.vlum.caption import caption_images
from diffv2ir.vlum.prompt import INFRARED_PROMPT, build_prompt
from diffv2ir.vlum.segment import MAP_STYLES, SamSegmenter, segmentation_colour, segmentation_map

__all__ = [
    "INFRARED_PROMPT",
    "MAP_STYLES",
    "SamSegmenter",
    "build_prompt",
    "caption_images",
    "segmentation_colour",
    "segmentation_map",
]
