"""Spaces on ZeroGPU: there is a GPU only inside functions that ask for one, each in a process of its own.

So the models live in the server, and a photo is understood and a picture generated in such a process, a fork of the
server. What goes in and comes out is copied between the two.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from diffv2ir.memory import OutOfDeviceMemory, is_zerogpu
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.stream import Step, stream

if TYPE_CHECKING:
    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline, Output

PREPARE_SECONDS = 30

# Moving the weights to the GPU and decoding; then one evaluation of a UNet of Stable Diffusion's size at 512 x 512.
_FIXED_SECONDS, _EVALUATION_SECONDS = 10, 0.06

# What a visitor can mend, see `told_to_the_user`. Any other exception ends the process and says only its class.
_TOLD = (ValueError, FloatingPointError, OutOfDeviceMemory)


def lending_gpu(load: Callable[[], DiffV2IRPipeline]) -> Callable[[], DiffV2IRPipeline]:
    """On ZeroGPU: loads at once, as GPUs are lent only to functions known at the launch, and returns a function that
    gives the pipeline, whose `prepare` and `generate` ask for a GPU. Elsewhere: `load` itself.

    Raises:
        Whatever `load` raises, on ZeroGPU.
    """
    if not is_zerogpu():
        return load
    import spaces  # before torch, as it asks

    pipe = load()
    lend(pipe, spaces.GPU)
    return lambda: pipe


def generate_seconds(conditioning: Conditioning, settings: GenerationSettings) -> int:
    """Seconds of GPU to ask for: steps times branches, more for more pixels. Short visits get a GPU sooner."""
    pixels = (settings.resolution / 512) ** 2 * max(conditioning.size) / min(conditioning.size)
    return round(_FIXED_SECONDS + settings.evaluations * _EVALUATION_SECONDS * pixels)


def lend(pipe: DiffV2IRPipeline, decorate: Callable[..., Any]) -> None:
    """Let `prepare` and `generate` of a pipeline run in functions decorated by `decorate(duration=...)`.

    They behave as before, but for the estimates that a callback gets: only those that a page shows are there.
    """
    own_prepare, own_generate = pipe.prepare, pipe.generate
    here = SimpleNamespace(generate=own_generate)
    stop = multiprocessing.get_context("fork").Event()  # seen by both processes
    pipe.bundle_sha256  # noqa: B018  now, so that no process computes it again

    @decorate(duration=PREPARE_SECONDS)
    def prepare_on_gpu(image, caption, segmentation, preparation: dict[str, Any]) -> Conditioning | Exception:
        try:
            return _on_cpu(own_prepare(image, caption, segmentation, **preparation))
        except _TOLD as error:
            return error

    @decorate(duration=generate_seconds)
    def generate_on_gpu(
        conditioning: Conditioning, settings: GenerationSettings
    ) -> Iterator[Step | Output | Exception]:
        try:
            yield from stream(here, conditioning, settings, stop.is_set)
        except _TOLD as error:
            yield error

    def prepare(image, caption=None, segmentation=None, resolution=None, **preparation: Any) -> Conditioning:
        return _raised(prepare_on_gpu(image, caption, segmentation, {"resolution": resolution, **preparation}))

    def generate(conditioning, settings=None, callback=None) -> Output:
        size = {"resolution": conditioning.resolution, "resolution_rule": conditioning.resolution_rule}
        settings = settings or pipe.default_settings.replace(**size)
        stop.clear()
        with closing(generate_on_gpu(conditioning, settings)) as events:
            for event in events:
                if not isinstance(event, Step):
                    output = _raised(event)
                elif callback and callback(event.step, event.total, lambda preview=event.preview: preview) is False:
                    stop.set()
        return output

    pipe.prepare, pipe.generate = prepare, generate


def _on_cpu(conditioning: Conditioning) -> Conditioning:
    """The conditioning without anything on a GPU, which its process takes along when it ends."""
    names = ("prompt_embeds", "null_embeds", "visible_latents", "segmentation_latents")
    return dataclasses.replace(conditioning, **{name: getattr(conditioning, name).cpu() for name in names})


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
