"""Spaces on ZeroGPU: there is a GPU only inside functions that ask for one, each in a process of its own.

So the models live in the server, and a photo is understood and pictures are generated in such a process, a fork of the
server. What goes in and comes out is copied between the two.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from diffv2ir.imaging import working_size
from diffv2ir.memory import OutOfDeviceMemory, is_zerogpu
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.background import Tell, follow
from diffv2ir.ui.stream import is_shown

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from PIL import Image

    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline, Output

PREPARE_SECONDS = 30

# Moving the weights to the GPU and decoding; then one evaluation of a UNet of Stable Diffusion's size at 512 x 512.
_FIXED_SECONDS, _EVALUATION_SECONDS = 10, 0.06

# Reading the UNet of an early phase from the disk.
_LOADING_SECONDS = 20

# What a visitor can mend, see `told_to_the_user`. Any other exception ends the process and says only its class.
_TOLD = (ValueError, FloatingPointError, OutOfDeviceMemory)


def lending_gpu(load: Callable[[], DiffV2IRPipeline]) -> Callable[[], DiffV2IRPipeline]:
    """On ZeroGPU: loads at once, as GPUs are lent only to functions known at the launch, and returns a function that
    gives the pipeline, whose methods ask for a GPU, see `lend`. Elsewhere: `load` itself.

    Raises:
        Whatever `load` raises, on ZeroGPU.
    """
    if not is_zerogpu():
        return load
    import spaces  # before torch, as it asks

    pipe = load()
    lend(pipe, spaces.GPU)
    return lambda: pipe


def generate_seconds(conditionings: Sequence[Conditioning], settings: GenerationSettings, *_: Any) -> int:
    """Seconds of GPU to ask for: pictures times steps times branches, more for more pixels. Short visits get a GPU
    sooner."""
    return _seconds(conditionings[0], settings, len(conditionings) * settings.evaluations)


def repaint_seconds(phase: str, conditioning: Conditioning, settings: GenerationSettings) -> int:
    """Seconds of GPU to ask for to repaint a photo, see `phases.repaint`."""
    from diffv2ir.phases import repaint_evaluations

    return _LOADING_SECONDS + _seconds(conditioning, settings, repaint_evaluations(settings))


def _seconds(conditioning: Conditioning, settings: GenerationSettings, evaluations: int) -> int:
    width, height = working_size(conditioning.size, settings.resolution, 8, settings.resolution_rule)
    pixels = width * height / 512**2
    return round(_FIXED_SECONDS + evaluations * _EVALUATION_SECONDS * pixels)


class _Step(NamedTuple):
    """A step, as the other process tells it: `pictures` are the estimates, None where no page shows them."""

    step: int
    total: int
    pictures: Sequence[Image.Image | None] = ()


def lend(pipe: DiffV2IRPipeline, decorate: Callable[..., Any]) -> None:
    """Let `prepare`, `generate_batch`, through which `generate` goes, and `repaint` of a pipeline run in functions
    decorated by `decorate(duration=...)`.

    They behave as before, but for the estimates that a callback gets: only those that a page shows are there, of a
    picture that is drawn alone.
    """
    own_prepare, own_generate, own_repaint = pipe.prepare, pipe.generate_batch, pipe.repaint
    stop = multiprocessing.get_context("fork").Event()  # seen by both processes
    pipe.bundle_sha256  # noqa: B018  now, so that no process computes it again

    @decorate(duration=PREPARE_SECONDS)
    def prepare_on_gpu(image, caption, segmentation, preparation: dict[str, Any]) -> Conditioning | Exception:
        try:
            return _on_cpu(own_prepare(image, caption, segmentation, **preparation))
        except _TOLD as error:
            return error

    @decorate(duration=generate_seconds)
    def generate_on_gpu(conditionings, settings, seeds, gain) -> Iterator[_Step | list[Output] | Exception]:
        def work(tell: Tell) -> Iterator[list[Output]]:
            def on_step(step: int, total: int, estimates) -> bool:
                show = len(estimates) == 1 and is_shown(step, total)
                return tell(_Step(step, total, [estimate() if show else None for estimate in estimates]))

            yield own_generate(conditionings, settings, seeds, on_step, gain)

        yield from _events(work, stop)

    @decorate(duration=repaint_seconds)
    def repaint_on_gpu(phase, conditioning, settings) -> Iterator[_Step | Image.Image | None | Exception]:
        def work(tell: Tell) -> Iterator[Image.Image | None]:
            yield own_repaint(phase, conditioning, settings, lambda step, total: tell(_Step(step, total)))

        yield from _events(work, stop)

    def prepare(image, caption=None, segmentation=None, resolution=None, **preparation: Any) -> Conditioning:
        return _raised(prepare_on_gpu(image, caption, segmentation, {"resolution": resolution, **preparation}))

    def generate_batch(conditionings, settings=None, seeds=None, callback=None, gain=None) -> list[Output]:
        def on_step(event: _Step) -> Any:
            estimates = [lambda picture=picture: picture for picture in event.pictures]
            return callback is None or callback(event.step, event.total, estimates)

        conditionings = list(conditionings)
        settings = pipe._settings_for(conditionings, settings)
        return _answer(generate_on_gpu(conditionings, settings, seeds, gain), on_step, stop)

    def repaint(phase, conditioning, settings, callback) -> Image.Image | None:
        events = repaint_on_gpu(phase, conditioning, settings)
        return _answer(events, lambda event: callback(event.step, event.total), stop)

    pipe.prepare, pipe.generate_batch, pipe.repaint = prepare, generate_batch, repaint


def _events(work: Callable[[Tell], Iterator[Any]], stop: Event) -> Iterator[Any]:
    """There: what `work` tells and gives until `stop` is set, and the error that a visitor can mend."""
    try:
        yield from follow(work, stop.is_set)
    except _TOLD as error:
        yield error


def _answer(events: Iterator[Any], on_step: Callable[[_Step], Any], stop: Event) -> Any:
    """Here: what the other process gives; `stop` is set where `on_step`, which hears of each step, returns False."""
    stop.clear()
    with closing(events):
        for event in events:
            if not isinstance(event, _Step):
                answer = _raised(event)
            elif on_step(event) is False:
                stop.set()
    return answer


def _on_cpu(conditioning: Conditioning) -> Conditioning:
    """The conditioning without anything on a GPU, which its process takes along when it ends."""
    names = ("prompt_embeds", "null_embeds", "visible_latents", "segmentation_latents")
    return dataclasses.replace(conditioning, **{name: getattr(conditioning, name).cpu() for name in names})


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
