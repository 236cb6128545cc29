"""A generation as an iterator of events: the pipeline works in a thread and can be stopped between two steps."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from diffv2ir.settings import GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline, Output

_PREVIEWS = 6


@dataclass(frozen=True)
class Step:
    """`step` of `total` are done after `seconds`; `preview` is the denoised estimate, on some steps only."""

    step: int
    total: int
    seconds: float
    preview: Image.Image | None


def stream(
    pipe: DiffV2IRPipeline,
    conditioning: Conditioning,
    settings: GenerationSettings,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Step | Output]:
    """Yield a `Step` after each denoising step and the `Output` at the end.

    The work ends at the next step once `cancelled()` is true or the iterator is closed; the output is then the estimate
    it had reached. What `generate` raises is raised here.
    """
    events: queue.SimpleQueue[Step | Output | BaseException] = queue.SimpleQueue()
    closed = threading.Event()
    started = time.monotonic()
    every = max(1, settings.steps // _PREVIEWS)

    def on_step(step: int, total: int, estimate) -> bool:
        if closed.is_set() or cancelled():
            return False
        show = step % every == 0 and step < total
        events.put(Step(step, total, time.monotonic() - started, estimate() if show else None))
        return True

    def work() -> None:
        try:
            events.put(pipe.generate(conditioning, settings, callback=on_step))
        except BaseException as error:
            events.put(error)

    # In the caller's context, which says whose request this is.
    run = contextvars.copy_context().run
    worker = threading.Thread(target=run, args=(work,), name="diffv2ir-generate", daemon=True)
    worker.start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if not isinstance(event, Step):
                return
    finally:
        closed.set()
        worker.join()
