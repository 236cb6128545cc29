"""A generation as an iterator of events: the pipeline works in a thread and can be stopped between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.background import Tell, follow

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


def is_shown(step: int, total: int) -> bool:
    """Whether the page shows the estimate of a step: about six of them, and none where the picture comes next."""
    return step % max(1, total // _PREVIEWS) == 0 and step < total


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
    started = time.monotonic()

    def work(tell: Tell) -> Iterator[Output]:
        def on_step(step: int, total: int, estimate) -> bool:
            preview = estimate() if is_shown(step, total) else None
            return tell(Step(step, total, time.monotonic() - started, preview))

        yield pipe.generate(conditioning, settings, callback=on_step)

    return follow(work, cancelled)
