"""Memory modes: which models lie on the device while they do not work. Without torch until a pipeline is placed."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from diffv2ir.pipeline import DiffV2IRPipeline

logger = logging.getLogger(__name__)

MODES = {
    "full": "everything stays on the device",
    "park": "the caption and SAM models leave the device when they are done",
    "model": "each model is on the device only while it works",
    "sequential": "each layer is on the device only while it works, and the VAE works in tiles",
}
"""From the fastest, which needs most memory, to the one that needs least."""

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Short names of the weights' kinds, and torch's names."""

UNDERSTANDING = ("captioner", "segmenter")
GENERATING = ("text_encoder", "unet", "vae")

# What the models need besides their weights, at Stable Diffusion's and SAM ViT-B's widths. Estimates, on the safe side:
# four branches of 512 x 512 and decoding them per byte of a number; SAM at 1024 x 1024: its encoder, and the masks of a
# point (measured: 2.6 GB, and 3.3 GB for 64 points).
_GENERATING_BYTES = 768 * 2**20
_ENCODING_BYTES = 2700 * 10**6
_POINT_BYTES = 52 * 10**6
_WIDTH, _RESOLUTION, _SAM_SIZE = 320, 512, 1024
# Points that SAM is asked for at a time where memory is short: their masks then need less than its encoder does.
_FEW_POINTS = 16
# Another mode is worth a second attempt if it needs at most this share of what did not suffice.
_SMALLER = 0.9

# Errors that are no torch.OutOfMemoryError: of libraries that allocate by themselves, and of other devices.
_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)


class OutOfDeviceMemory(RuntimeError):
    """The device has too little memory, also in the next memory mode; the message says what would help."""


def choose_mode(free: int, sizes: Mapping[str, int], working: int) -> tuple[str, str]:
    """The fastest memory mode that fits, and why.

    Args:
        free: bytes free on the device.
        sizes: bytes of the weights by component, those of `UNDERSTANDING` and of `GENERATING`.
        working: bytes needed besides the weights.
    """
    for mode, weights in _weights_on_device(sizes).items():
        if weights + working <= free:
            return mode, f"about {_gigabytes(weights + working)} needed, {_gigabytes(free)} free"
    least = _weights_on_device(sizes)["model"] + working
    return "sequential", f"a model at a time would need about {_gigabytes(least)}, {_gigabytes(free)} are free"


def _weights_on_device(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of weights on the device at a time, at most, by mode; without "sequential", which has few there."""
    generating = sum(sizes[name] for name in GENERATING)
    return {
        "full": sum(sizes.values()),
        "park": generating + max(sizes[name] for name in UNDERSTANDING),
        "model": max(sizes.values()),
    }


def next_mode(mode: str, sizes: Mapping[str, int], working: int) -> str | None:
    """The next mode that needs clearly less memory; None where there is none.

    Args:
        sizes, working: as for `choose_mode`.
    """
    modes, weights = list(MODES), _weights_on_device(sizes)
    for following in modes[modes.index(mode) + 1 :]:
        if following not in weights or weights[following] + working <= _SMALLER * (weights[mode] + working):
            return following
    return None


def weight_sizes(pipe: DiffV2IRPipeline) -> dict[str, int]:
    """Bytes of the weights of each model."""
    return {
        name: sum(parameter.numel() * parameter.element_size() for parameter in getattr(pipe, name).parameters())
        for name in (*UNDERSTANDING, *GENERATING)
    }


def working_memory(pipe: DiffV2IRPipeline) -> int:
    """Bytes needed besides the weights, estimated, at the bundle's default resolution."""
    pixels = (pipe.default_settings.resolution / _RESOLUTION) ** 2
    width = pipe.unet.config.block_out_channels[0] / _WIDTH
    generating = _GENERATING_BYTES * pipe.unet.dtype.itemsize * pixels * width
    points = _POINT_BYTES * pipe.segmenter.config.points_per_batch
    segmenting = max(_ENCODING_BYTES, points) * (pipe.segmenter.config.image_size / _SAM_SIZE) ** 2
    return round(max(generating, segmenting))


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device; None where that is not known or is the computer's own memory."""
    import torch

    backend = {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)
    return None if backend is None else backend.mem_get_info(device)[0]


def is_zerogpu() -> bool:
    """Whether this is a Space on ZeroGPU, by the variable that its package `spaces` goes by."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def place(pipe: DiffV2IRPipeline, device: str | torch.device | None = None, mode: str | None = None) -> None:
    """Put a pipeline on a device in a memory mode, which may be changed later in the same way.

    Where memory does not suffice, the next mode that needs clearly less is tried once.

    Args:
        device: None = a CUDA GPU if there is one, else the CPU.
        mode: one of `MODES`; None = the fastest that fits the free memory, which is logged with the reason.

    Raises:
        ValueError: no such mode.
        RuntimeError, AssertionError: torch cannot use the device.
        OutOfDeviceMemory: it does not fit.
    """
    import torch

    if mode is not None and mode not in MODES:
        raise ValueError(f"memory must be one of {', '.join(MODES)}, got {mode!r}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _gather(pipe)
    if mode is None:
        mode, reason = _chosen(pipe, device)
        level = logging.WARNING if mode != "full" else logging.DEBUG if device.type == "cpu" else logging.INFO
        logger.log(level, "memory mode %s (%s), weights in %s: %s", mode, MODES[mode], _kind(pipe), reason)
    try:
        _apply(pipe, device, mode)
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Here, outside of that block, nothing holds what the failed attempt had allocated.
    _fall_back(pipe, device, mode)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory, by any of the names that torch and CUDA's libraries have for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(name in str(error) for name in _OUT_OF_MEMORY)


def falling_back(method: Callable) -> Callable:
    """A method of the pipeline that, out of memory, is called once more in the next memory mode.

    Raises:
        OutOfDeviceMemory: there is none, or it did not suffice either.
    """

    @functools.wraps(method)
    def call(pipe: DiffV2IRPipeline, *arguments: Any, **options: Any) -> Any:
        try:
            return method(pipe, *arguments, **options)
        except RuntimeError as error:  # see `place`
            if not is_out_of_memory(error):
                raise
            part = _part(error)
        finally:
            _rest(pipe)
        _fall_back(pipe, pipe.compute_device, pipe.memory_mode, part)
        try:
            return method(pipe, *arguments, **options)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _refusal(pipe, pipe.compute_device, pipe.memory_mode, _part(error)) from error
        finally:
            _rest(pipe)

    return call


@contextmanager
def at_work(pipe: DiffV2IRPipeline, name: str) -> Iterator[Any]:
    """The captioner or the segmenter, on the device while it works.

    Moved as a whole in all modes but "full": what they do is not in their `forward`, where accelerate's hooks would be.
    In "model" and "sequential" the segmenter looks at few points at a time; its masks are the same.
    """
    model, stays = getattr(pipe, name), pipe.memory_mode == "full"
    few = name == "segmenter" and pipe.memory_mode in ("model", "sequential")
    points = model.config.points_per_batch if few else 0
    if not stays:
        model.to(pipe.compute_device)
    try:
        if few:
            model.register_to_config(points_per_batch=min(points, _FEW_POINTS))
        yield model
    except RuntimeError as error:
        error.at_work = name  # for `_part`
        raise
    finally:
        if few:
            model.register_to_config(points_per_batch=points)
        if not stays:
            model.to("cpu")


def _part(error: RuntimeError) -> str | None:
    """Which of the models of `UNDERSTANDING` was at work when memory ran out."""
    return getattr(error, "at_work", None)


@contextmanager
def weights_at_hand(pipe: DiffV2IRPipeline) -> Iterator[None]:
    """The UNet with real weights that can be changed, which it has not between the layers of "sequential"."""
    if pipe.memory_mode != "sequential":
        yield
        return
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    device = pipe.compute_device
    remove_hook_from_module(pipe.unet, recurse=True)
    try:
        yield
    finally:
        cpu_offload(pipe.unet, device)


def _chosen(pipe: DiffV2IRPipeline, device: torch.device) -> tuple[str, str]:
    if is_zerogpu():
        return "full", "ZeroGPU lends a whole GPU"
    free = free_memory(device)
    if free is None:
        return "full", f"on {device.type} there is nothing to choose"
    return choose_mode(free, weight_sizes(pipe), working_memory(pipe))


def _gather(pipe: DiffV2IRPipeline) -> None:
    """Undo a memory mode: every model has its weights, wherever they lie."""
    pipe.remove_all_hooks()
    pipe.vae.disable_tiling()
    pipe.memory_mode, pipe.offload_device = "full", None


def _apply(pipe: DiffV2IRPipeline, device: torch.device, mode: str) -> None:
    if mode == "full":
        pipe.to(device)
    elif mode == "park":
        for name in UNDERSTANDING:
            getattr(pipe, name).to("cpu")
        for name in GENERATING:
            getattr(pipe, name).to(device)
    elif mode == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        _offload_layers(pipe, device)
    pipe.memory_mode = mode
    pipe.offload_device = device if mode in ("model", "sequential") else None


def _offload_layers(pipe: DiffV2IRPipeline, device: torch.device) -> None:
    from diffv2ir.compilation import leave_compiled

    leave_compiled(pipe)
    # As `enable_sequential_cpu_offload` does it, but for the models of `UNDERSTANDING`: SAM reads weights of layers
    # that it never calls.
    from accelerate import cpu_offload
    from diffusers import AutoencoderKL

    pipe.to("cpu")
    for name in GENERATING:
        cpu_offload(getattr(pipe, name), device)
    # AutoencoderTiny is small, and its tiles are right only for eight pixels per latent.
    if isinstance(pipe.vae, AutoencoderKL):
        pipe.vae.enable_tiling()


def _fall_back(pipe: DiffV2IRPipeline, device: torch.device, mode: str, part: str | None = None) -> None:
    from diffusers.utils.torch_utils import empty_device_cache

    following = next_mode(mode, weight_sizes(pipe), working_memory(pipe))
    if following is None:
        raise _refusal(pipe, device, mode, part)
    logger.warning("out of memory in mode %s; now %s: %s", mode, following, MODES[following])
    _gather(pipe)
    empty_device_cache(device.type)
    try:
        _apply(pipe, device, following)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _refusal(pipe, device, following, part) from error


def _rest(pipe: DiffV2IRPipeline) -> None:
    """Nothing is left on the device by the mode "model" when a call is over."""
    if pipe.memory_mode == "model":
        pipe.maybe_free_model_hooks()


def _refusal(pipe: DiffV2IRPipeline, device: torch.device, mode: str, part: str | None) -> OutOfDeviceMemory:
    """The error, with what helps; `part`: see `_part`."""
    remedies = {"segmenter": ["--segmentation none", "--segmentation FILE"], "captioner": ["--caption TEXT"]}.get(
        part, ["a smaller resolution"]
    )
    if pipe.unet.dtype.itemsize > 2 and part != "segmenter":  # which stays in float32
        remedies.append("--dtype fp16")
    if mode != "sequential":
        remedies.append("--memory sequential")
    return OutOfDeviceMemory(
        f"{device} has too little memory, also in memory mode {mode!r}; what helps: {', '.join(remedies)}, or another "
        "--device"
    )


def _kind(pipe: DiffV2IRPipeline) -> str:
    """Short name of the kind of the weights that generate."""
    name = str(pipe.unet.dtype).removeprefix("torch.")
    return next((short for short, kind in DTYPES.items() if kind == name), name)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
