"""What one visitor's session remembers, so that moving a slider only denoises again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from PIL import Image

from diffv2ir import imaging
from diffv2ir.imaging import ImageSource

if TYPE_CHECKING:
    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline


class BoundedCache:
    """The `capacity` results asked for last, by key."""

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The entry of `key`; made, and the least recently used one dropped, if it is not there."""
        if key not in self._entries:
            self._entries[key] = make()
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return self._entries[key]


class Session:
    """The understanding of the last photos, and whether the running work should stop.

    A photo's caption and segmentation map are made once (`understand`); a changed caption, map or resolution costs a
    text embedding and an encoding (`condition`).
    """

    def __init__(self, capacity: int = 8):
        self.cancelled = False
        self._understood = BoundedCache(capacity)
        self._conditioned = BoundedCache(capacity)

    def understand(self, pipe: DiffV2IRPipeline, photo: ImageSource, resolution: int) -> Conditioning:
        """The photo with the caption and the map of the bundle's own models.

        Raises:
            ImageError: the photo cannot be used.
        """
        image = imaging.open_image(photo)
        return self._understand(pipe, image, _content(image), resolution)

    def condition(
        self, pipe: DiffV2IRPipeline, photo: ImageSource, caption: str, use_map: bool, resolution: int
    ) -> Conditioning:
        """The photo with a given caption ("" = none), with or without its map.

        Raises:
            ImageError: the photo cannot be used.
        """
        image = imaging.open_image(photo)
        key = _content(image)
        understood = self._understand(pipe, image, key, resolution)
        caption = " ".join(caption.split())
        if (caption, use_map, resolution) == (understood.caption, True, understood.resolution):
            return understood
        segmentation = understood.segmentation if use_map else False
        return self._conditioned.get(
            (key, caption, use_map, resolution), lambda: pipe.prepare(image, caption, segmentation, resolution)
        )

    def _understand(self, pipe: DiffV2IRPipeline, image: Image.Image, key: str, resolution: int) -> Conditioning:
        return self._understood.get(key, lambda: pipe.prepare(image, resolution=resolution))


def _content(image: Image.Image) -> str:
    """SHA-256 of size and pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
