"""torch.compile for what is done in every step and for decoding, once for photos of all sizes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from diffv2ir.memory import is_zerogpu

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

logger = logging.getLogger(__name__)


def compile_models(pipe: DiffV2IRPipeline, **options: Any) -> bool:
    """Compile the UNet's transformer blocks, one by one, and the VAE's decoder; each when it is first used.

    They are compiled for any height and width, so that a photo of another size compiles nothing anew. Working sizes
    are multiples of `pipe.size_multiple` in any case. On ZeroGPU, where each photo has a process of its own that would
    compile again, and in memory mode "sequential", where weights come and go within what is compiled, nothing is done,
    and the log says why.

    Args:
        options: of `torch.compile`, such as `mode` or `backend`.

    Returns:
        Whether they will be compiled.
    """
    import torch

    if is_zerogpu():
        logger.warning("not compiled: on ZeroGPU each photo has its own process, which would compile again")
        return False
    if pipe.memory_mode == "sequential":
        logger.warning("not compiled: in memory mode sequential the weights come and go layer by layer")
        return False
    # Otherwise a square photo, first, would be compiled for squares alone.
    torch.fx.experimental._config.use_duck_shape = False
    # A style's adapter leaves the weights in this state, and what was compiled for another would be compiled again.
    pipe.unet.requires_grad_(False)
    pipe.unet.compile_repeated_blocks(dynamic=True, **options)
    pipe.vae.decoder.compile(dynamic=True, **options)
    return True


def is_compiled(pipe: DiffV2IRPipeline) -> bool:
    """Whether `compile_models` prepared this pipeline, and `leave_compiled` did not undo it."""
    return pipe.vae.decoder._compiled_call_impl is not None


def leave_compiled(pipe: DiffV2IRPipeline) -> None:
    """UNet and VAE run as they are written again; does nothing where nothing was compiled."""
    for module in (*pipe.unet.modules(), pipe.vae.decoder):
        module._compiled_call_impl = None
