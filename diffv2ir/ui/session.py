"""What one visitor's session remembers, so that moving a slider only denoises again."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from PIL import Image

from diffv2ir import imaging
from diffv2ir.imaging import ImageSource

if TYPE_CHECKING:
    from diffv2ir.grid import CellResult
    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline, Output

# Results that a session keeps, and the bytes of their photos and pictures in memory: those of the newest two stay.
_RESULTS = 24
_RESULTS_BYTES = 400_000_000
# Photos whose captions, maps and latents it keeps, and the bytes of these photos and maps: the newest one stays.
_KEPT = 8
_KEPT_BYTES = 400_000_000

IDLE_SECONDS = 3600
"""After so long without a sign of its visitor a session forgets what it remembers."""

_in_use: WeakSet[Session] = WeakSet()
_lock = threading.Lock()


def empty_idle(seconds: float = IDLE_SECONDS) -> None:
    """Let the sessions forget that nobody has used for so long. Gradio keeps those of programs, which have no page that
    is closed."""
    with _lock:
        idle = [session for session in _in_use if time.monotonic() - session.used >= seconds]
        for session in idle:
            _in_use.discard(session)
    for session in idle:
        session.empty()


class BoundedCache:
    """The `capacity` results asked for last, by key; fewer if their `images` take more than `most_bytes`, but one."""

    def __init__(
        self,
        capacity: int,
        images: Callable[[Any], Iterable[Image.Image | None]] = lambda entry: (),
        most_bytes: int = 0,
    ):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity, self._images, self._most_bytes = capacity, images, most_bytes
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The entry of `key`; made, and the least recently used one dropped, if it is not there."""
        if key not in self._entries:
            self._entries[key] = make()
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity or (len(self._entries) > 1 and self._bytes > self._most_bytes):
            self._entries.popitem(last=False)
        return self._entries[key]

    @property
    def _bytes(self) -> int:
        return _bytes(image for entry in self._entries.values() for image in self._images(entry))

    def items(self) -> list[tuple[Hashable, Any]]:
        """All keys and entries."""
        return list(self._entries.items())


@dataclass(frozen=True)
class Result:
    """A picture of this session: its number, counted from 1, its photo (RGB, upright) and that one's name, and how it
    came about.

    `files` are its saved pictures, by bits; see `downloads.file_of`.
    """

    number: int
    photo: Image.Image
    output: Output
    name: str = ""
    files: dict[int, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ExampleStyle:
    """The style that an example brought to the page, and the one that was there before."""

    before: str
    brought: str


class Session:
    """The understanding of the last photos, the last results, the last grid, and whether the work should stop.

    A photo's caption and regions are found once (`understand`), also where the map of them is asked for in another
    style; a changed caption, map or resolution costs a text embedding and an encoding (`condition`). Requests are
    counted when they are made, not when the model gets to them: a stop ends those made so far, also the ones that still
    wait, and none that comes after it.

    Attributes:
        request: the number of the newest request.
        shown: the result on the page, None after the photo was taken away. It alone has its output's `levels`, as many
            floats as the photo has pixels; among `results`, the newest of this visit, it is without them too.
        restored: the file dropped as a photo was a picture of ours.
        keeps_caption: the next photo does not bring its own caption, as one was restored.
        example_style: of the example on the page; None when a photo of the visitor's own is there.
        used_own_map: something was made of the photo on the page with a map of the visitor's own.
    """

    def __init__(self):
        self.request = 0
        self.restored = self.keeps_caption = self.used_own_map = False
        self.example_style: ExampleStyle | None = None
        self.evaluation_seconds = 0.0  # of the UNet, as last measured; 0 = not yet
        self.results: deque[Result] = deque(maxlen=_RESULTS)
        self._count = 0
        self._stopped = self._forgotten = -1
        self.used = time.monotonic()
        self.empty()

    def empty(self) -> None:
        """Forget photos and pictures."""
        self.shown: Result | None = None
        self.grid: list[CellResult] = []
        self.results.clear()
        self._ways = BoundedCache(_KEPT)
        self._understood, self._conditioned = (BoundedCache(_KEPT, _images_of, _KEPT_BYTES) for _ in range(2))

    def touch(self) -> None:
        """It is in use; see `empty_idle`."""
        self.used = time.monotonic()
        with _lock:
            _in_use.add(self)

    def begin(self) -> int:
        """The number of a new request, which no earlier stop concerns."""
        self.touch()
        self.request += 1
        return self.request

    def stop(self) -> None:
        """End all requests so far at their next step."""
        self.touch()
        self._stopped = self.request

    def forget(self) -> None:
        """Show nothing more of the translations asked for so far, and end them: their photo is gone."""
        self._forgotten = self.request
        self.shown = None

    def is_stopped(self, request: int) -> bool:
        self.touch()  # asked at every step of a work
        return request <= self._stopped

    def is_forgotten(self, request: int) -> bool:
        return request <= self._forgotten

    def is_over(self, request: int) -> bool:
        """Whether a translation is to end: it is stopped, or its photo is gone."""
        return self.is_stopped(request) or self.is_forgotten(request)

    def add(self, photo: Image.Image, output: Output, name: str = "") -> Result:
        """Keep a result, which is then the one shown; the oldest go when there are too many, or they are too large."""
        self._count += 1
        if output.evaluations:
            self.evaluation_seconds = output.timings.get("denoise", 0.0) / output.evaluations
        self.shown = Result(self._count, photo, output, name)
        self.results.append(dataclasses.replace(self.shown, output=dataclasses.replace(output, levels=None)))
        while len(self.results) > 2 and _size(self.results) > _RESULTS_BYTES:
            self.results.popleft()
        return self.shown

    @property
    def last(self) -> Result | None:
        """The newest result."""
        return self.results[-1] if self.results else None

    def understand(
        self, pipe: DiffV2IRPipeline, photo: ImageSource, resolution: int, **preparation: Any
    ) -> Conditioning:
        """The photo with the caption and the map of the bundle's own models.

        Args:
            resolution, preparation: as from `GenerationSettings.preparation`.

        Raises:
            ImageError: the photo cannot be used.
        """
        image = imaging.open_image(photo)
        return self._understand(pipe, image, imaging.content_hash(image), {"resolution": resolution, **preparation})

    def condition(
        self,
        pipe: DiffV2IRPipeline,
        photo: ImageSource,
        caption: str | None,
        use_map: bool,
        resolution: int,
        own_map: ImageSource | None = None,
        **preparation: Any,
    ) -> Conditioning:
        """The photo with a given caption ("" = none, None = the model's), with the model's map, `own_map`, or none.

        Raises:
            ImageError: the photo or the map cannot be used.
        """
        image = imaging.open_image(photo)
        key = imaging.content_hash(image)
        preparation["resolution"] = resolution
        understood = self._understand(pipe, image, key, preparation, any_caption=caption is not None)
        caption = understood.caption if caption is None else " ".join(caption.split())
        drawn = imaging.open_image(own_map) if use_map and own_map is not None else None
        rule = preparation.get("resolution_rule") or pipe.default_settings.resolution_rule
        same_size = (resolution, rule) == (understood.resolution, understood.resolution_rule)
        if drawn is None and same_size and (caption, use_map) == (understood.caption, True):
            return understood
        segmentation = (drawn or understood.segmentation) if use_map else False
        return self._conditioned.get(
            (key, caption, self._map_key(use_map, drawn, preparation), resolution, rule),
            # The model's own map is handed over like a drawn one, which it is not.
            lambda: _sharing(
                pipe.prepare(image, caption, segmentation, **preparation), understood, own_map=drawn is not None
            ),
        )

    @staticmethod
    def _map_key(use_map: bool, drawn: Image.Image | None, preparation: dict[str, Any]) -> Any:
        """What tells maps of one photo apart: none, the model's in a style, or one that was drawn."""
        if not use_map:
            return None
        return ("model", preparation.get("map_style")) if drawn is None else imaging.content_hash(drawn)

    def _understand(
        self,
        pipe: DiffV2IRPipeline,
        image: Image.Image,
        key: str,
        preparation: dict[str, Any],
        any_caption: bool = False,
    ) -> Conditioning:
        """The photo understood; with `any_caption` with the caption that it had first."""
        way = {"captioning": preparation.get("captioning"), "caption_seed": preparation.get("caption_seed", 0)}
        first = self._ways.get(key, lambda: way)
        way = first if any_caption else way

        def prepare() -> Conditioning:
            known = [(asked, made) for asked, made in self._understood.items() if asked[0] == key]
            regions = next((made.regions for _, made in known), None)
            caption = next((made.caption for asked, made in known if asked[2:] == tuple(way.values())), None)
            made = pipe.prepare(image, caption, **{**preparation, **way, "regions": regions})
            return _sharing(made, known[0][1]) if known else made

        return self._understood.get((key, preparation.get("map_style"), *way.values()), prepare)


def _sharing(made: Conditioning, other: Conditioning, **changes: Any) -> Conditioning:
    """`made`, with the photo of another conditioning of the same photo, so that it is in memory once; and its map."""
    same = made.segmentation is not None and made.segmentation == other.segmentation
    segmentation = other.segmentation if same else made.segmentation
    return dataclasses.replace(made, image=other.image, segmentation=segmentation, **changes)


def _images_of(conditioning: Conditioning) -> tuple[Image.Image | None, ...]:
    return conditioning.image, conditioning.segmentation


def _size(results: Iterable[Result]) -> int:
    """Bytes of the photos and pictures of results."""
    return _bytes(
        image for result in results for image in (result.photo, result.output.image, result.output.segmentation)
    )


def _bytes(images: Iterable[Image.Image | None]) -> int:
    """Those of images in memory, each image once."""
    kept = {id(image): image for image in images if image is not None}
    return sum(image.width * image.height * len(image.getbands()) for image in kept.values())
