"""What a saved picture says about itself: how it was made, so that it can be made again, and that it is generated.

The record is JSON under the key "diffv2ir" of a PNG's text. An XMP packet says the same in the standard's words: IPTC's
digital source type "trained algorithmic media", which viewers and platforms read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from diffv2ir.imaging import ImageError
from diffv2ir.settings import GenerationSettings

KEY = "diffv2ir"
XMP_KEY = "XML:com.adobe.xmp"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 Iptc4xmpExt:DigitalSourceType="{source}" xmp:CreatorTool="{tool}">
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""

# Pixels beyond which a file is written fast rather than small: a grainy picture of 16000x900 in 0.8 s, not 4.5 s, and
# 14 % larger. zlib's levels.
_LARGE = 4_000_000
_FAST, _SMALL = 1, 6

# What XML 1.0 and UTF-8 cannot hold: control characters and halves of surrogate pairs.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Record:
    """How a picture was made.

    Attributes:
        settings: with the seed that was drawn.
        caption: "" where no text guided; None where an older file does not say.
        segmentation: "model", "own" or "none": whose map guided.
        photo_sha256: of the photo's size and RGB pixels, upright. bundle_sha256: of the bundle's weight files.
        version: of this package.
    """

    settings: GenerationSettings
    caption: str | None = None
    segmentation: str = ""
    photo_sha256: str = ""
    bundle: str = ""
    bundle_sha256: str = ""
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "settings": self.settings.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """From `to_dict`; fields of a newer version are left out, and the settings alone are an older version's record.

        Raises:
            ValueError: settings that this version does not know or that are out of range, or no text where text is due.
        """
        if "settings" not in values:
            return cls(GenerationSettings.from_dict(values))
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        for name, value in known.items():
            if name != "settings" and not isinstance(value, str) and (name, value) != ("caption", None):
                raise ValueError(f"{name} must be a text, got {value!r}")
        return cls(**{**known, "settings": GenerationSettings.from_dict(values["settings"])})


def save_png(image: Image.Image, path: str | os.PathLike, record: Record) -> None:
    """Write a gray picture (mode L or I;16) as PNG with its record."""
    tool = _UNWRITABLE.sub("", f"DiffV2IR {record.version} ({record.bundle})")
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(record.to_dict()))
    caption = _UNWRITABLE.sub("", record.caption or "")
    info.add_itxt("Description", caption)
    info.add_itxt("Software", tool)
    text = f"Generated infrared picture, not a measurement. {caption}".strip()
    info.add_itxt(XMP_KEY, _XMP.format(source=DIGITAL_SOURCE_TYPE, tool=escape(tool), description=escape(text)))
    level = _FAST if image.width * image.height > _LARGE else _SMALL
    image.save(path, format="PNG", pnginfo=info, compress_level=level)


def restore(path: str | os.PathLike) -> Record:
    """The record of a picture that `save_png` wrote.

    Raises:
        ImageError: not a picture of ours, or its record is damaged.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except Exception as error:  # Pillow's readers of headers raise nearly anything over a damaged file
        raise ImageError(f"{path}: cannot be read ({error})") from None
    if text is None:
        raise ImageError(f"{path}: holds no settings of DiffV2IR")
    try:
        return Record.from_dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ImageError(f"{path}: the settings in its metadata cannot be used ({error})") from None


def deep_gray(levels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Gray levels, float (H, W) in [0, 1], at another size (width, height) as a 16-bit picture (mode I;16)."""
    resized = Image.fromarray(levels.astype(np.float32), mode="F").resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(resized).clip(0, 1) * 65535).round().astype(np.uint16))
